"""XXH3-64 compiled: block hashes and chains over uint32 tokens.

Bit-exact with the reference implementation for every input of whole 32-bit words. Importing this compiles the kernels, or loads
them from numba's cache; `events.blocks` does so when it is told to. Source of the algorithm: the xxHash specification,
https://github.com/Cyan4973/xxHash/blob/dev/doc/xxhash_spec.md
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import extending, njit, types

PRIME32_1, PRIME32_2, PRIME32_3 = np.uint64(0x9E3779B1), np.uint64(0x85EBCA77), np.uint64(0xC2B2AE3D)
PRIME64_1, PRIME64_2 = np.uint64(0x9E3779B185EBCA87), np.uint64(0xC2B2AE3D27D4EB4F)
PRIME64_3, PRIME64_4 = np.uint64(0x165667B19E3779F9), np.uint64(0x85EBCA77C2B2AE63)
PRIME64_5 = np.uint64(0x27D4EB2F165667C5)
PRIME_MX1, PRIME_MX2 = np.uint64(0x165667919E3779F9), np.uint64(0x9FB21C651E98DF25)
CHAIN_SEED = np.uint64(1337)

SECRET = bytes.fromhex(
    "b8fe6c3923a44bbe7c01812cf721ad1cded46de9839097db7240a4a4b7b3671fcb79e64eccc0e578825ad07dccff7221"
    "b8084674f743248ee03590e6813a264c3c2852bb91c300cb88d0658b1b532ea371644897a20df94e3819ef46a9deacd8"
    "a8fa763fe39c343ff9dcbbc7c70b4f1d8a51e04bcdb45931c89f7ec9d9787364eac5ac8334d3ebc3c581a0fffa1363eb"
    "170ddd51b7f0da49d316552629d4689e2b16be587d47a1fc8ff8b8d17ad031ce45cb3a8f95160428afd7fbcabb4b407e"
)
S = np.array([int.from_bytes(SECRET[at : at + 8], "little") for at in range(len(SECRET) - 7)], np.uint64)
"""The secret read as a uint64 at every byte offset."""

intrinsic: Any = extending.intrinsic  # typed with the arguments of its implementation, not of its calls
U64, U32, I64 = types.uint64, types.uint32, types.int64
TOKENS = types.Array(U32, 1, "C", readonly=True)
HASHES = types.Array(U64, 1, "C", readonly=True)
OUT = types.uint64[::1]


@intrinsic  # type: ignore[untyped-decorator]
def fold(_typing: Any, one: Any, other: Any) -> Any:
    """Low half xor high half of the 128-bit product."""

    def generate(_context: Any, builder: Any, _signature: Any, values: Any) -> Any:
        wide = ir.IntType(128)
        product = builder.mul(builder.zext(values[0], wide), builder.zext(values[1], wide))
        low = builder.trunc(product, ir.IntType(64))
        return builder.xor(low, builder.trunc(builder.lshr(product, ir.Constant(wide, 64)), ir.IntType(64)))

    return U64(U64, U64), generate


@intrinsic  # type: ignore[untyped-decorator]
def swap(_typing: Any, word: Any) -> Any:
    """The eight bytes in reverse."""

    def generate(_context: Any, builder: Any, _signature: Any, values: Any) -> Any:
        return builder.bswap(values[0])

    return U64(U64), generate


@intrinsic  # type: ignore[untyped-decorator]
def word(_typing: Any, tokens: Any, at: Any) -> Any:
    """Two tokens as one uint64, from an address and an index; tokens are only aligned to four bytes."""

    def generate(_context: Any, builder: Any, _signature: Any, values: Any) -> Any:
        first = builder.inttoptr(values[0], ir.IntType(32).as_pointer())
        pointer = builder.bitcast(builder.gep(first, [values[1]]), ir.IntType(64).as_pointer())
        return builder.load(pointer, align=4)

    return U64(I64, I64), generate


inline = njit(forceinline=True, error_model="numpy")


@intrinsic  # type: ignore[untyped-decorator]
def token(_typing: Any, tokens: Any, at: Any) -> Any:
    """One token, from an address and an index."""

    def generate(_context: Any, builder: Any, _signature: Any, values: Any) -> Any:
        first = builder.inttoptr(values[0], ir.IntType(32).as_pointer())
        return builder.zext(builder.load(builder.gep(first, [values[1]]), align=4), ir.IntType(64))

    return U64(I64, I64), generate


@inline
def _avalanche(h):  # type: ignore[no-untyped-def]
    h = (h ^ (h >> np.uint64(37))) * PRIME_MX1
    return h ^ (h >> np.uint64(32))


@inline
def up_to_2(tokens, at, count, seed):  # type: ignore[no-untyped-def]
    """1 or 2 tokens."""
    low = np.uint64(seed & np.uint64(0xFFFFFFFF))
    seed ^= swap(low) & np.uint64(0xFFFFFFFF00000000)
    flip = (S[8] ^ S[16]) - seed
    h = (token(tokens, at + count - 1) + (token(tokens, at) << np.uint64(32))) ^ flip
    h ^= (h << np.uint64(49) | h >> np.uint64(15)) ^ (h << np.uint64(24) | h >> np.uint64(40))
    h *= PRIME_MX2
    h ^= (h >> np.uint64(35)) + np.uint64(4 * count)
    h *= PRIME_MX2
    return h ^ (h >> np.uint64(28))


@inline
def of_16_bytes(low, high, length, seed):  # type: ignore[no-untyped-def]
    """9 to 16 bytes, given as the first eight and the last eight."""
    low ^= (S[24] ^ S[32]) + seed
    high ^= (S[40] ^ S[48]) - seed
    return _avalanche(np.uint64(length) + swap(low) + high + fold(low, high))


@inline
def mix(tokens, at, secret, seed):  # type: ignore[no-untyped-def]
    """16 bytes against 16 bytes of the secret."""
    return fold(
        word(tokens, at) ^ (S[np.uint64(secret)] + seed), word(tokens, at + 2) ^ (S[np.uint64(secret + 8)] - seed)
    )


@inline
def up_to_32(tokens, at, count, seed):  # type: ignore[no-untyped-def]
    """5 to 32 tokens: pairs of 16 bytes from both ends inwards."""
    total = np.uint64(4 * count) * PRIME64_1
    for pair in range((count - 1) // 8 + 1):
        total += mix(tokens, at + 4 * pair, 32 * pair, seed)
        total += mix(tokens, at + count - 4 * (pair + 1), 32 * pair + 16, seed)
    return _avalanche(total)


@inline
def up_to_60(tokens, at, count, seed):  # type: ignore[no-untyped-def]
    """33 to 60 tokens."""
    total = np.uint64(4 * count) * PRIME64_1
    for step in range(8):
        total += mix(tokens, at + 4 * step, 16 * step, seed)
    total = _avalanche(total)
    for step in range(8, count // 4):
        total += mix(tokens, at + 4 * step, 16 * (step - 8) + 3, seed)
    return _avalanche(total + mix(tokens, at + count - 4, 119, seed))


@inline
def seeded_secret(seed):  # type: ignore[no-untyped-def]
    """The long inputs' secret: row 0 read at multiples of eight bytes, row 1 three bytes later, row 2 one byte later."""
    words = np.empty(25, np.uint64)
    for pair in range(12):
        words[2 * pair] = S[16 * pair] + seed
        words[2 * pair + 1] = S[16 * pair + 8] - seed
    words[24] = 0
    secret = np.empty((3, 24), np.uint64)
    for at in range(24):
        secret[0, at] = words[at]
        secret[1, at] = words[at] >> np.uint64(24) | words[at + 1] << np.uint64(40)
        secret[2, at] = words[at] >> np.uint64(8) | words[at + 1] << np.uint64(56)
    return secret


@inline
def _lane(data, key):  # type: ignore[no-untyped-def]
    mixed = data ^ key
    return (mixed & np.uint64(0xFFFFFFFF)) * (mixed >> np.uint64(32))


@inline
def _scramble(total, key):  # type: ignore[no-untyped-def]
    return (total ^ total >> np.uint64(47) ^ key) * PRIME32_1


@inline
def longer(tokens, at, count, secret):  # type: ignore[no-untyped-def]
    """61 tokens and more: eight running totals over stripes of 64 bytes."""
    a, b, c, d = PRIME32_3, PRIME64_1, PRIME64_2, PRIME64_3
    e, f, g, h = PRIME64_4, PRIME32_2, PRIME64_5, PRIME32_1
    stripes = (count - 1) // 16
    for stripe in range(stripes + 1):
        last = stripe == stripes
        start = at + count - 16 if last else at + 16 * stripe
        row, key = (np.uint64(2), np.uint64(15)) if last else (np.uint64(0), np.uint64(stripe % 16))
        p, q = word(tokens, start), word(tokens, start + 2)
        r, s = word(tokens, start + 4), word(tokens, start + 6)
        t, u = word(tokens, start + 8), word(tokens, start + 10)
        v, w = word(tokens, start + 12), word(tokens, start + 14)
        a += q + _lane(p, secret[row, key])
        b += p + _lane(q, secret[row, key + np.uint64(1)])
        c += s + _lane(r, secret[row, key + np.uint64(2)])
        d += r + _lane(s, secret[row, key + np.uint64(3)])
        e += u + _lane(t, secret[row, key + np.uint64(4)])
        f += t + _lane(u, secret[row, key + np.uint64(5)])
        g += w + _lane(v, secret[row, key + np.uint64(6)])
        h += v + _lane(w, secret[row, key + np.uint64(7)])
        if key == 15 and not last:
            a, b = _scramble(a, secret[0, 16]), _scramble(b, secret[0, 17])
            c, d = _scramble(c, secret[0, 18]), _scramble(d, secret[0, 19])
            e, f = _scramble(e, secret[0, 20]), _scramble(f, secret[0, 21])
            g, h = _scramble(g, secret[0, 22]), _scramble(h, secret[0, 23])
    total = np.uint64(4 * count) * PRIME64_1
    total += fold(a ^ secret[1, 1], b ^ secret[1, 2]) + fold(c ^ secret[1, 3], d ^ secret[1, 4])
    total += fold(e ^ secret[1, 5], f ^ secret[1, 6]) + fold(g ^ secret[1, 7], h ^ secret[1, 8])
    return _avalanche(total)


@inline
def _block_hash(tokens, at, count, seed, secret):  # type: ignore[no-untyped-def]
    if count > 60:
        return longer(tokens, at, count, secret)
    if count > 32:
        return up_to_60(tokens, at, count, seed)
    if count > 4:
        return up_to_32(tokens, at, count, seed)
    if count > 2:
        return of_16_bytes(word(tokens, at), word(tokens, at + count - 2), 4 * count, seed)
    return up_to_2(tokens, at, count, seed)


@njit(types.void(TOKENS, I64, U64, OUT), cache=True, nogil=True)
def hash_blocks(tokens, block_size, seed, out):  # type: ignore[no-untyped-def]
    """Write the hash of each full block: out is uint64 (len(tokens) // block_size,)."""
    secret = seeded_secret(seed)
    for block in range(len(out)):
        out[block] = _block_hash(tokens.ctypes.data, block * block_size, block_size, seed, secret)


@njit(types.void(HASHES, U64, types.boolean, OUT), cache=True, nogil=True)
def chain_blocks(blocks, parent, has_parent, out):  # type: ignore[no-untyped-def]
    """Write the sequence hashes of consecutive blocks; both arrays are uint64 (n,), and may be the same."""
    previous, linked = parent, has_parent
    for position in range(len(blocks)):
        block = blocks[position]
        previous = of_16_bytes(previous, block, 16, CHAIN_SEED) if linked else block
        linked = True
        out[position] = previous


@inline
def _sequence(tokens, block_size, seed, parent, has_parent, out):  # type: ignore[no-untyped-def]
    secret = seeded_secret(seed)
    previous, linked = parent, has_parent
    for position in range(len(out)):
        block = _block_hash(tokens.ctypes.data, position * block_size, block_size, seed, secret)
        previous = of_16_bytes(previous, block, 16, CHAIN_SEED) if linked else block
        linked = True
        out[position] = previous


@njit(types.void(TOKENS, I64, U64, U64, types.boolean, OUT), cache=True, nogil=True)
def hash_sequence(tokens, block_size, seed, parent, has_parent, out):  # type: ignore[no-untyped-def]
    """Write the sequence hashes of all full blocks: out is uint64 (len(tokens) // block_size,)."""
    if block_size == 16:  # the usual sizes as constants: their loops are unrolled
        _sequence(tokens, 16, seed, parent, has_parent, out)
    elif block_size == 64:
        _sequence(tokens, 64, seed, parent, has_parent, out)
    else:
        _sequence(tokens, block_size, seed, parent, has_parent, out)
