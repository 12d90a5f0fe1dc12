"""The identity of a prefix: tokens → block hashes → sequence hashes.

    block_hash[i]    = XXH3_64(tokens of block i as little-endian uint32, seed)
    sequence_hash[0] = block_hash[0]
    sequence_hash[i] = XXH3_64(sequence_hash[i-1] ‖ block_hash[i], both little-endian uint64, 1337)

Source of the convention: Dynamo's KV router and Mooncake's Conductor, which agree on it; so do their tools with ours.
A sequence hash names a block *and all before it*: equal hashes, equal prefixes. Only full blocks have a hash.

There are two ways to the same numbers: block by block through the xxhash package, and compiled kernels that are some twenty times
faster, but take a second to load. A process that hashes much says so at its start, with `load_kernels`.
"""

from __future__ import annotations

import array
from typing import TYPE_CHECKING

import numpy as np
import xxhash

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import ModuleType

    from numpy.typing import NDArray

SEED = 1337
DEFAULT_BLOCK_SIZE = 64
NO_HASHES: NDArray[np.uint64] = np.empty(0, np.uint64)
NO_HASHES.flags.writeable = False
_UINT32 = np.dtype("<u4")
_kernels: ModuleType | None = None
_hash_sequence: Callable[..., None] | None = None


def load_kernels() -> None:
    """Hash with compiled kernels from now on. Loads them from numba's cache, or compiles them: a second, or several once."""
    global _kernels, _hash_sequence  # the one choice of this module, made once
    from events import xxh3
    from events.entry import entry

    _kernels, _hash_sequence = xxh3, entry(xxh3.hash_sequence)


def as_tokens(tokens: Sequence[int] | NDArray[np.uint32]) -> NDArray[np.uint32]:
    """Token ids as a contiguous little-endian uint32 array. O(n).

    :raises ValueError: not a flat list of integers, or an id is negative or does not fit 32 bits.
    """
    if isinstance(tokens, np.ndarray) and tokens.dtype == np.uint32:
        return np.ascontiguousarray(tokens)
    if type(tokens) is list and tokens and type(tokens[0]) is int:
        try:
            ids = array.array("I")
            ids.fromlist(
                tokens
            )  # the fastest way: numpy would look for every type, and a constructor for every iterable
            return np.frombuffer(ids, np.uint32)
        except (TypeError, OverflowError):
            pass  # said below, with the reason
    try:
        wide = np.asarray(tokens)
    except ValueError:  # lists of different lengths
        raise ValueError("token ids must be a flat list of integers") from None
    if wide.ndim != 1 or (wide.size and wide.dtype.kind not in "iuO"):
        raise ValueError("token ids must be a flat list of integers")
    if wide.size and (wide.dtype.kind == "O" or int(wide.min()) < 0 or int(wide.max()) > 0xFFFFFFFF):
        raise ValueError("token ids must lie in [0, 2**32)")
    return wide.astype("<u4")


def salt_seed(cache_salt: str | None = None, lora_name: str | None = None) -> int:
    """The seed of block hashes in a namespace of its own: prefixes under other salts or adapters never match. O(1).

    >>> salt_seed() == SEED
    True
    >>> salt_seed("tenant-a") != salt_seed(None, "tenant-a")
    True
    """
    if not cache_salt and not lora_name:
        return SEED
    fields = b"".join(
        len(part).to_bytes(4, "little") + part for part in ((cache_salt or "").encode(), (lora_name or "").encode())
    )
    return xxhash.xxh3_64_intdigest(fields, SEED)


def block_hashes(tokens: NDArray[np.uint32], block_size: int, seed: int = SEED) -> NDArray[np.uint64]:
    """Hash of each full block on its own, shape (len(tokens) // block_size,), uint64. O(n).

    >>> int(block_hashes(np.arange(1, 65, dtype=np.uint32), 64)[0])
    17732852320395450624
    """
    count = len(tokens) // block_size
    if _kernels is not None:
        hashes = np.empty(count, np.uint64)
        _kernels.hash_blocks(tokens, block_size, seed, hashes)
        return hashes
    data = memoryview(tokens.astype("<u4", copy=False).tobytes())
    width = 4 * block_size
    digest = xxhash.xxh3_64_intdigest
    return np.fromiter((digest(data[i * width : (i + 1) * width], seed) for i in range(count)), np.uint64, count)


def chain(blocks: NDArray[np.uint64], parent: int | None = None) -> NDArray[np.uint64]:
    """Sequence hashes of consecutive blocks, the first of which follows the prefix named `parent` (None: the root). O(n).

    Shapes: (n,) uint64 in, (n,) uint64 out.
    """
    hashes = np.empty(len(blocks), np.uint64)
    if _kernels is not None:
        _kernels.chain_blocks(blocks, parent or 0, parent is not None, hashes)
        return hashes
    digest = xxhash.xxh3_64_intdigest
    previous = parent
    for position, block in enumerate(blocks.tolist()):
        previous = (
            block if previous is None else digest(previous.to_bytes(8, "little") + block.to_bytes(8, "little"), SEED)
        )
        hashes[position] = previous
    return hashes


def sequence_hashes(
    tokens: NDArray[np.uint32], block_size: int, seed: int = SEED, parent: int | None = None
) -> NDArray[np.uint64]:
    """The prefixes that a prompt consists of, shortest first: shape (len(tokens) // block_size,), uint64. O(n).

    :raises ValueError: `tokens` have several dimensions.

    >>> [int(h) for h in sequence_hashes(np.arange(1, 129, dtype=np.uint32), 64)]
    [17732852320395450624, 1050256074108617503]
    """
    if _hash_sequence is None:
        return chain(block_hashes(tokens, block_size, seed), parent)
    if tokens.dtype is not _UINT32 or tokens.strides != (4,):
        if tokens.ndim != 1:
            raise ValueError(f"tokens must have one dimension, not {tokens.ndim}")
        tokens = np.ascontiguousarray(tokens, _UINT32)
    hashes = np.empty(len(tokens) // block_size, np.uint64)
    _hash_sequence(tokens, block_size, seed, parent or 0, parent is not None, hashes)
    return hashes
