"""Loops over the flat table of who holds which prefix, compiled.

A *cell* is one prefix: its key, and its holders as a 32-bit code. Cells are filled in the order in which prefixes are stored, so
that the blocks of a prompt are mostly neighbours, and a match compares them in sequence instead of looking each one up; what does
not compare equal is looked up. Nothing is taken for granted: every block of a match was seen in its cell.

A *slot* leads from a key to its cell: open addressing with linear probing, the upper half of the mixed key above the cell's number
plus 1, and 0 when empty. A slot's home is the top of its mixed key, so closing a gap reads slots alone.

*Holders*: 0 nobody; one target as (target + 1) << 3 | a bit per tier; or a shared set, SHARED | its number. Shared sets are unique:
equal codes are equal sets, and neighbours that have the same holders need no look at them.

While the table grows or shrinks there are two generations of it: the older one gives its cells to the newer one a few at a time.

Everything is reached from one *state* of int64, by its address: a call then costs the same however much there is. All of it is one
file, since numba's cache of a kernel does not notice a change in another file.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import extending, njit, types, void

TIERS = 3
GROUP = 64
"""Cells that share one mark of recent use."""
AHEAD = 24
"""How many prefixes ahead a slot is asked for."""
FETCHED = 256
"""How many neighbours of a cell a match asks for at once."""
MIGRATED_PER_STORED = 8
"""Cells that move to the newer generation for each prefix stored or removed: it is done long before it is full."""

# A generation's part of the state: addresses of its arrays, then sizes.
SLOTS, KEYS, HOLDERS, RECENT, SHIFT, CAPACITY, TOP, FREE, LIVE, CURSOR = range(10)
NEWER, OLDER = 0, 10
# The rest of the state.
SETS, SET_SLOTS, SET_CAPACITY, SET_TOP, SET_FREE, SET_LIVE, WORDS = range(20, 27)
HELD, TARGETS = 27, 28
PREFIXES, BLOCKS = 29, 32
DONE, CHANGED, ATTENTION, SPARSE, EVICTED = range(35, 40)
STORES, STORED, REMOVALS, REMOVED = range(40, 44)
STATE_SIZE = 44

# What a match is asked.
EXACT, PREDICTED, REACH, ALIVE, MATCHED, TOUCHED = range(6)

# A shared set: hash, number of cells (or the next free set), tiers as bits, then its words, tier by tier.
SET_HASH, SET_CELLS, SET_TIERS, SET_WORDS = range(4)
SCRATCH = 0
"""The set that new ones are put together in."""

SHARED = 0x8000_0000
NONE = -1
FINISHED = -2
SEVERAL = -2

intrinsic: Any = extending.intrinsic  # typed with the arguments of its implementation, not of its calls
I64, U64, U32, U8 = types.int64, types.uint64, types.uint32, types.uint8
HASHES = types.Array(U64, 1, "C", readonly=True)
FILLED = types.uint64[::1]
_LOW = np.uint64(0xFFFF_FFFF)
_HALF = np.uint64(32)
_GOLDEN = np.uint64(0x9E37_79B9_7F4A_7C15)
_EMPTY = np.uint64(0)
_ONE = np.uint64(1)

inline = njit(forceinline=True, error_model="numpy")
inner = njit(error_model="numpy")


def _reader(kind: Any, bits: int) -> Any:
    @intrinsic  # type: ignore[untyped-decorator]
    def read(_typing: Any, base: Any, index: Any) -> Any:
        def generate(_context: Any, builder: Any, _signature: Any, values: Any) -> Any:
            return builder.load(builder.gep(builder.inttoptr(values[0], ir.IntType(bits).as_pointer()), [values[1]]))

        return kind(I64, I64), generate

    return read


def _writer(kind: Any, bits: int) -> Any:
    @intrinsic  # type: ignore[untyped-decorator]
    def write(_typing: Any, base: Any, index: Any, value: Any) -> Any:
        def generate(_context: Any, builder: Any, _signature: Any, values: Any) -> Any:
            builder.store(
                values[2], builder.gep(builder.inttoptr(values[0], ir.IntType(bits).as_pointer()), [values[1]])
            )
            return _context.get_dummy_value()

        return types.void(I64, I64, kind), generate

    return write


at, put = _reader(I64, 64), _writer(I64, 64)
word_at, put_word = _reader(U64, 64), _writer(U64, 64)
code_at, put_code = _reader(U32, 32), _writer(U32, 32)
count_at, put_count = _reader(types.int32, 32), _writer(types.int32, 32)
put_mark, mark_at = _writer(U8, 8), _reader(U8, 8)


@intrinsic  # type: ignore[untyped-decorator]
def fetch(_typing: Any, base: Any, index: Any) -> Any:
    """Have a word brought into the cache, without waiting for it."""

    def generate(context: Any, builder: Any, _signature: Any, values: Any) -> Any:
        byte, flag = ir.IntType(8).as_pointer(), ir.IntType(32)
        word = builder.gep(builder.inttoptr(values[0], ir.IntType(64).as_pointer()), [values[1]])
        function = builder.module.declare_intrinsic(
            "llvm.prefetch", [byte], ir.FunctionType(ir.VoidType(), [byte, flag, flag, flag])
        )
        builder.call(function, [builder.bitcast(word, byte), flag(1), flag(3), flag(1)])
        return context.get_dummy_value()

    return types.void(I64, I64), generate


@intrinsic  # type: ignore[untyped-decorator]
def ones(_typing: Any, word: Any) -> Any:
    """How many bits are set."""

    def generate(_context: Any, builder: Any, _signature: Any, values: Any) -> Any:
        return builder.ctpop(values[0])

    return I64(U64), generate


@intrinsic  # type: ignore[untyped-decorator]
def lowest(_typing: Any, word: Any) -> Any:
    """The number of the lowest bit that is set; one is."""

    def generate(_context: Any, builder: Any, _signature: Any, values: Any) -> Any:
        return builder.cttz(values[0], ir.Constant(ir.IntType(1), 1))

    return I64(U64), generate


# ---- slots


@inline
def _tag(key):  # type: ignore[no-untyped-def] # numba infers; so below
    return key * _GOLDEN >> _HALF


@inline
def _mask(state, generation):  # type: ignore[no-untyped-def]
    return (np.int64(1) << (np.int64(32) - at(state, generation + SHIFT))) - np.int64(1)


@inline
def _fetch_slot(state, generation, key):  # type: ignore[no-untyped-def]
    """Have a key's home slot on its way while others are worked on: the slots are most of what a store or removal waits for."""
    slots = at(state, generation + SLOTS)
    if slots != 0:
        fetch(slots, np.int64(_tag(key) >> np.uint64(at(state, generation + SHIFT))))


@inline
def _locate(state, generation, key):  # type: ignore[no-untyped-def]
    """The slot that leads to a key's cell, or NONE. O(1)."""
    slots, keys = at(state, generation + SLOTS), at(state, generation + KEYS)
    if slots == 0:
        return np.int64(NONE)
    tag, mask = _tag(key), _mask(state, generation)
    slot = np.int64(tag >> np.uint64(at(state, generation + SHIFT)))
    while True:
        word = word_at(slots, slot)
        if word == _EMPTY:
            return np.int64(NONE)
        if word >> _HALF == tag and word_at(keys, np.int64(word & _LOW) - 1) == key:
            return slot
        slot = (slot + 1) & mask


@inline
def _find(state, generation, key):  # type: ignore[no-untyped-def]
    """A key's cell, or NONE; in the older generation a cell that was emptied is not found. O(1)."""
    slot = _locate(state, generation, key)
    if slot == NONE:
        return np.int64(NONE)
    cell = np.int64(word_at(at(state, generation + SLOTS), slot) & _LOW) - 1
    if generation == OLDER and code_at(at(state, OLDER + HOLDERS), cell) == 0:
        return np.int64(NONE)
    return cell


@inner
def _occupy(state, key, cell):  # type: ignore[no-untyped-def]
    """Let a slot of the newer generation lead to a cell."""
    slots, mask, tag = at(state, NEWER + SLOTS), _mask(state, NEWER), _tag(key)
    slot = np.int64(tag >> np.uint64(at(state, NEWER + SHIFT)))
    while word_at(slots, slot) != _EMPTY:
        slot = (slot + 1) & mask
    put_word(slots, slot, tag << _HALF | np.uint64(cell + 1))


@inline
def _close(slots, mask, shift, gap):  # type: ignore[no-untyped-def]
    """Empty a slot, and move up what was pushed past it, so that no probe ends too early."""
    slot = (gap + 1) & mask
    word = word_at(slots, slot)
    while word != _EMPTY:
        home = np.int64(word >> (_HALF + shift))
        if (slot - home) & mask >= (slot - gap) & mask:
            put_word(slots, gap, word)
            gap = slot
        slot = (slot + 1) & mask
        word = word_at(slots, slot)
    put_word(slots, gap, _EMPTY)


# ---- cells


@inner
def _new_cell(state, key):  # type: ignore[no-untyped-def]
    """A cell for a key in the newer generation, or NONE when there is no room. O(1)."""
    cell = at(state, NEWER + FREE)
    if cell != NONE:
        put(state, NEWER + FREE, at(at(state, NEWER + KEYS), cell))
    else:
        cell = at(state, NEWER + TOP)
        if cell == at(state, NEWER + CAPACITY):
            return np.int64(NONE)
        put(state, NEWER + TOP, cell + 1)
    put_word(at(state, NEWER + KEYS), cell, key)
    _occupy(state, key, cell)
    put(state, NEWER + LIVE, at(state, NEWER + LIVE) + 1)
    return cell


@inner
def _drop_cell(state, generation, cell):  # type: ignore[no-untyped-def]
    """Forget a prefix that nobody holds any more. O(1)."""
    put_code(at(state, generation + HOLDERS), cell, np.uint32(0))
    put(state, generation + LIVE, at(state, generation + LIVE) - 1)
    if generation == NEWER:
        slot = _locate(state, NEWER, word_at(at(state, NEWER + KEYS), cell))
        _close(at(state, NEWER + SLOTS), _mask(state, NEWER), np.uint64(at(state, NEWER + SHIFT)), slot)
        put(at(state, NEWER + KEYS), cell, at(state, NEWER + FREE))
        put(state, NEWER + FREE, cell)


@njit(I64(I64, I64), nogil=True, cache=True)
def migrate(state, budget):  # type: ignore[no-untyped-def]
    """Move cells from the older generation to the newer one; returns how many are left to look at. O(budget)."""
    cursor, top = at(state, OLDER + CURSOR), at(state, OLDER + TOP)
    keys, holders, recent = at(state, OLDER + KEYS), at(state, OLDER + HOLDERS), at(state, OLDER + RECENT)
    end = min(top, cursor + budget)
    for ahead in range(cursor, min(end, cursor + AHEAD)):
        _fetch_slot(state, NEWER, word_at(keys, ahead))
    while cursor < end:
        if cursor + AHEAD < end:
            _fetch_slot(state, NEWER, word_at(keys, cursor + AHEAD))
        code = code_at(holders, cursor)
        if code != 0:
            cell = _new_cell(state, word_at(keys, cursor))
            if cell == NONE:
                break
            put_code(at(state, NEWER + HOLDERS), cell, code)
            if mark_at(recent, cursor // GROUP):
                put_mark(at(state, NEWER + RECENT), cell // GROUP, np.uint8(1))
            put_code(holders, cursor, np.uint32(0))
            put(state, OLDER + LIVE, at(state, OLDER + LIVE) - 1)
        cursor += 1
    put(state, OLDER + CURSOR, cursor)
    return top - cursor


# ---- holders


@inline
def _set(state, number):  # type: ignore[no-untyped-def]
    """The address of a shared set."""
    return at(state, SETS) + np.int64(8) * number * (SET_WORDS + TIERS * at(state, WORDS))


@inline
def _number(code):  # type: ignore[no-untyped-def]
    return np.int64(code) & np.int64(0x7FFF_FFFF)


@inline
def _tiers_of(state, code):  # type: ignore[no-untyped-def]
    """The tiers in which anybody holds, as bits."""
    if code >= np.uint32(SHARED):
        return at(_set(state, _number(code)), SET_TIERS)
    return np.int64(code) & 7


@inline
def _bits_of(members, words, target):  # type: ignore[no-untyped-def]
    tiers = np.int64(0)
    for tier in range(TIERS):
        word = word_at(members, SET_WORDS + tier * words + (target >> 6))
        tiers |= np.int64(word >> np.uint64(target & 63) & _ONE) << tier
    return tiers


@inline
def _tiers_for(state, code, target):  # type: ignore[no-untyped-def]
    """The tiers in which a target holds, as bits."""
    if code < np.uint32(SHARED):
        return np.int64(code) & 7 if np.int64(code) >> 3 == target + 1 else np.int64(0)
    return _bits_of(_set(state, _number(code)), at(state, WORDS), target)


@inner
def _hash_words(members, count):  # type: ignore[no-untyped-def]
    mixed = _GOLDEN
    for index in range(count):
        mixed = (mixed ^ word_at(members, SET_WORDS + index)) * np.uint64(0xD6E8_FEB8_6659_FD93)
        mixed ^= mixed >> _HALF
    return mixed


@inline
def _same_words(one, other, count):  # type: ignore[no-untyped-def]
    for index in range(count):  # noqa: SIM110 - numba compiles no generator expressions
        if word_at(one, SET_WORDS + index) != word_at(other, SET_WORDS + index):
            return False
    return True


@inner
def _intern(state):  # type: ignore[no-untyped-def]
    """The code of the shared set that equals the scratch set: a known one, or a new one with no cells yet. O(words)."""
    scratch, size = _set(state, np.int64(SCRATCH)), TIERS * at(state, WORDS)
    mixed, slots = _hash_words(scratch, size), at(state, SET_SLOTS)
    mask = 2 * at(state, SET_CAPACITY) - 1
    slot = np.int64(mixed & _LOW) & mask
    while code_at(slots, slot) != 0:
        number = np.int64(code_at(slots, slot))
        known = _set(state, number)
        if word_at(known, SET_HASH) == mixed and _same_words(known, scratch, size):
            return np.uint32(number | SHARED)
        slot = (slot + 1) & mask
    number = at(state, SET_FREE)
    if number != NONE:
        put(state, SET_FREE, at(_set(state, number), SET_CELLS))
    else:
        number = at(state, SET_TOP)
        put(state, SET_TOP, number + 1)
    made = _set(state, number)
    put_word(made, SET_HASH, mixed)
    put(made, SET_CELLS, np.int64(0))
    tiers = np.int64(0)
    for index in range(size):
        word = word_at(scratch, SET_WORDS + index)
        put_word(made, SET_WORDS + index, word)
        if word != _EMPTY:
            tiers |= np.int64(1) << (index // at(state, WORDS))
    put(made, SET_TIERS, tiers)
    put_code(slots, slot, np.uint32(number))
    put(state, SET_LIVE, at(state, SET_LIVE) + 1)
    return np.uint32(number | SHARED)


@inner
def _forget_set(state, number):  # type: ignore[no-untyped-def]
    """Nobody has this set of holders any more."""
    slots, mask = at(state, SET_SLOTS), 2 * at(state, SET_CAPACITY) - 1
    gap = at(_set(state, number), SET_HASH) & np.int64(0xFFFF_FFFF) & mask
    while np.int64(code_at(slots, gap)) != number:
        gap = (gap + 1) & mask
    slot = (gap + 1) & mask
    while code_at(slots, slot) != 0:
        home = at(_set(state, np.int64(code_at(slots, slot))), SET_HASH) & np.int64(0xFFFF_FFFF) & mask
        if (slot - home) & mask >= (slot - gap) & mask:
            put_code(slots, gap, code_at(slots, slot))
            gap = slot
        slot = (slot + 1) & mask
    put_code(slots, gap, np.uint32(0))
    put(_set(state, number), SET_TIERS, np.int64(0))
    put(_set(state, number), SET_CELLS, at(state, SET_FREE))
    put(state, SET_FREE, number)
    put(state, SET_LIVE, at(state, SET_LIVE) - 1)


@njit(void(I64), nogil=True, cache=True)
def rehash_sets(state):  # type: ignore[no-untyped-def]
    """Fill the slots of the sets, which are empty, after they or the sets were made anew. O(sets)."""
    slots, mask, size = at(state, SET_SLOTS), 2 * at(state, SET_CAPACITY) - 1, TIERS * at(state, WORDS)
    for number in range(1, at(state, SET_TOP)):
        if at(_set(state, number), SET_TIERS) == 0:
            continue
        mixed = _hash_words(_set(state, number), size)
        put_word(_set(state, number), SET_HASH, mixed)
        slot = np.int64(mixed & _LOW) & mask
        while code_at(slots, slot) != 0:
            slot = (slot + 1) & mask
        put_code(slots, slot, np.uint32(number))


@inline
def _to_scratch(state, code):  # type: ignore[no-untyped-def]
    scratch, words = _set(state, np.int64(SCRATCH)), at(state, WORDS)
    shared = code >= np.uint32(SHARED)
    source = _set(state, _number(code)) if shared else scratch
    for index in range(TIERS * words):
        put_word(scratch, SET_WORDS + index, word_at(source, SET_WORDS + index) if shared else _EMPTY)
    if not shared and code != 0:
        target = (np.int64(code) >> 3) - 1
        for tier in range(TIERS):
            bit = np.uint64(np.int64(code) >> tier & 1) << np.uint64(target & 63)
            put_word(scratch, SET_WORDS + tier * words + (target >> 6), bit)


@inner
def _with(state, code, target, tier):  # type: ignore[no-untyped-def]
    """The holders `code` and a target in a tier. There must be room for a set. O(words)."""
    if code == 0 or (code < np.uint32(SHARED) and np.int64(code) >> 3 == target + 1):
        return np.uint32((target + 1) << 3 | np.int64(code) & 7 | np.int64(1) << tier)
    if _tiers_for(state, code, target) >> tier & 1:
        return code
    _to_scratch(state, code)
    place = SET_WORDS + tier * at(state, WORDS) + (target >> 6)
    scratch = _set(state, np.int64(SCRATCH))
    put_word(scratch, place, word_at(scratch, place) | _ONE << np.uint64(target & 63))
    return _intern(state)


@inner
def _only_holder(state, members):  # type: ignore[no-untyped-def]
    """The target of a set that has just one, or NONE. O(words)."""
    words, only = at(state, WORDS), np.int64(NONE)
    for index in range(words):
        union = _EMPTY
        for tier in range(TIERS):
            union |= word_at(members, SET_WORDS + tier * words + index)
        if union != _EMPTY:
            if only != NONE or ones(union) > 1:
                return np.int64(NONE)
            only = 64 * index + lowest(union)
    return only


@inner
def _without(state, code, target, tiers):  # type: ignore[no-untyped-def]
    """The holders `code` without a target in some tiers, given as bits. There must be room for a set. O(words)."""
    if not _tiers_for(state, code, target) & tiers:
        return code
    if code < np.uint32(SHARED):
        left = np.int64(code) & ~tiers
        return np.uint32(left if left & 7 else 0)
    _to_scratch(state, code)
    scratch, words = _set(state, np.int64(SCRATCH)), at(state, WORDS)
    for tier in range(TIERS):
        if tiers >> tier & 1:
            place = SET_WORDS + tier * words + (target >> 6)
            put_word(scratch, place, word_at(scratch, place) & ~(_ONE << np.uint64(target & 63)))
    last = _only_holder(state, scratch)
    if last == NONE:
        return _intern(state)
    return np.uint32((last + 1) << 3 | _bits_of(scratch, words, last))


@inline
def _count_tiers(state, before, after):  # type: ignore[no-untyped-def]
    """A prefix that anybody held in the tiers `before` is held in `after`."""
    for tier in range(TIERS):
        change = (after >> tier & 1) - (before >> tier & 1)
        if change:
            put(state, PREFIXES + tier, at(state, PREFIXES + tier) + change)


@inline
def _recount(state, before, after):  # type: ignore[no-untyped-def]
    """A cell goes from one code to another; returns whether that was the end of a set."""
    _count_tiers(state, _tiers_of(state, before), _tiers_of(state, after))
    if after >= np.uint32(SHARED):
        entered = _set(state, _number(after))
        put(entered, SET_CELLS, at(entered, SET_CELLS) + 1)
    if before >= np.uint32(SHARED):
        left = _set(state, _number(before))
        put(left, SET_CELLS, at(left, SET_CELLS) - 1)
        if at(left, SET_CELLS) == 0:
            _forget_set(state, _number(before))
            return True
    return False


@inline
def _count_held(state, target, tier, change):  # type: ignore[no-untyped-def]
    place = tier * at(state, TARGETS) + target
    put(at(state, HELD), place, at(at(state, HELD), place) + change)
    put(state, BLOCKS + tier, at(state, BLOCKS + tier) + change)


@inline
def _sets_full(state):  # type: ignore[no-untyped-def]
    return at(state, SET_FREE) == NONE and at(state, SET_TOP) == at(state, SET_CAPACITY)


# ---- the write path: each returns whether it came to the end; DONE says how far, and CHANGED how much changed till then


@inline
def _begin(state):  # type: ignore[no-untyped-def]
    """Start or go on after a stop; returns where."""
    start = at(state, DONE)
    if start == 0:
        put(state, CHANGED, np.int64(0))
    return start


@inline
def _end(state, position, count, changed):  # type: ignore[no-untyped-def]
    put(state, CHANGED, at(state, CHANGED) + changed)
    put(state, DONE, np.int64(0) if position == count else position)
    return at(state, CHANGED) if position == count else np.int64(NONE)


@inline
def _seek(slots, keys, shift, mask, key):  # type: ignore[no-untyped-def]
    """The slot that leads to a key's cell, or the empty one where it would; and the cell, or NONE. O(1)."""
    tag = _tag(key)
    slot = np.int64(tag >> shift)
    while True:
        word = word_at(slots, slot)
        if word == _EMPTY:
            return slot, np.int64(NONE)
        if word >> _HALF == tag and word_at(keys, np.int64(word & _LOW) - 1) == key:
            return slot, np.int64(word & _LOW) - 1
        slot = (slot + 1) & mask


@njit(I64(I64, I64, I64, HASHES), nogil=True, cache=True)
def store(state, target, tier, hashes):  # type: ignore[no-untyped-def]
    """A target holds prefixes; returns how many are new to it, or NONE when the caller must see to room and call again. O(n)."""
    count, position, changed = np.int64(len(hashes)), _begin(state), np.int64(0)
    older = at(state, OLDER + SLOTS) != 0
    if older and position < count and migrate(state, MIGRATED_PER_STORED * (count - position)) == 0:
        put(state, ATTENTION, np.int64(0))
    # What every new key needs is kept at hand; the state gets it back at the end.
    slots, keys, codes = at(state, NEWER + SLOTS), at(state, NEWER + KEYS), at(state, NEWER + HOLDERS)
    shift, mask = np.uint64(at(state, NEWER + SHIFT)), _mask(state, NEWER)
    top, free, capacity = at(state, NEWER + TOP), at(state, NEWER + FREE), at(state, NEWER + CAPACITY)
    room, made = at(state, ATTENTION) - at(state, NEWER + LIVE), np.int64(0)
    alone = np.uint32((target + 1) << 3 | np.int64(1) << tier)
    memo_before, memo_after, last = np.uint32(0), alone, np.int64(NONE)
    for index in range(position, min(count, position + AHEAD)):
        fetch(slots, np.int64(_tag(hashes[np.uint64(index)]) >> shift))
    while position < count:
        if room <= 0:
            break
        if position + AHEAD < count:
            fetch(slots, np.int64(_tag(hashes[np.uint64(position + AHEAD)]) >> shift))
        key = hashes[np.uint64(position)]
        slot, cell = _seek(slots, keys, shift, mask, key)
        generation = np.int64(NEWER)
        if cell == NONE and older:
            cell, generation = _find(state, OLDER, key), np.int64(OLDER)
        if cell == NONE:
            if free != NONE:
                cell, free = free, at(keys, free)
            elif top < capacity:
                cell, top = top, top + 1
            else:
                break
            put_word(keys, cell, key)
            put_word(slots, slot, _tag(key) << _HALF | np.uint64(cell + 1))
            put_code(codes, cell, alone)
            room -= 1
            made += 1
            position += 1
            continue
        if _sets_full(state):
            break
        if cell // GROUP != last:
            last = cell // GROUP
            put_mark(at(state, generation + RECENT), last, np.uint8(1))
        before = code_at(at(state, generation + HOLDERS), cell)
        if before != memo_before:
            memo_before, memo_after = before, _with(state, before, target, tier)
        if memo_after != before:
            put_code(at(state, generation + HOLDERS), cell, memo_after)
            changed += 1
            if _recount(state, before, memo_after):
                memo_before, memo_after = np.uint32(0), alone
        position += 1
    put(state, NEWER + TOP, top)
    put(state, NEWER + FREE, free)
    put(state, NEWER + LIVE, at(state, NEWER + LIVE) + made)
    put(state, PREFIXES + tier, at(state, PREFIXES + tier) + made)
    changed += made
    _count_held(state, target, tier, changed)
    put(state, STORED, at(state, STORED) + changed)
    if position == count:
        put(state, STORES, at(state, STORES) + count)
    return _end(state, position, count, changed)


@njit(I64(I64, I64, I64, HASHES), nogil=True, cache=True)
def remove(state, target, tier, hashes):  # type: ignore[no-untyped-def]
    """A target no longer holds prefixes in a tier; returns as `store` does, how many it held. O(n).

    :returns: FINISHED - n instead of n if the caller should look whether the table is too large now.
    """
    count, position, changed = np.int64(len(hashes)), _begin(state), np.int64(0)
    older = at(state, OLDER + SLOTS) != 0
    done_migrating = older and migrate(state, MIGRATED_PER_STORED * (count - position)) == 0
    slots, keys, codes = at(state, NEWER + SLOTS), at(state, NEWER + KEYS), at(state, NEWER + HOLDERS)
    shift, mask = np.uint64(at(state, NEWER + SHIFT)), _mask(state, NEWER)
    free, gone = at(state, NEWER + FREE), np.int64(0)
    alone = np.uint32((target + 1) << 3 | np.int64(1) << tier)
    memo_before, memo_after = np.uint32(0), np.uint32(0)
    for index in range(position, min(count, position + AHEAD)):
        fetch(slots, np.int64(_tag(hashes[np.uint64(index)]) >> shift))
    while position < count:
        if position + AHEAD < count:
            fetch(slots, np.int64(_tag(hashes[np.uint64(position + AHEAD)]) >> shift))
        key = hashes[np.uint64(position)]
        slot, cell = _seek(slots, keys, shift, mask, key)
        if cell != NONE and code_at(codes, cell) == alone:
            put_code(codes, cell, np.uint32(0))
            _close(slots, mask, shift, slot)
            put(keys, cell, free)
            free = cell
            gone += 1
            position += 1
            continue
        generation = np.int64(NEWER)
        if cell == NONE and older:
            cell, generation = _find(state, OLDER, key), np.int64(OLDER)
        if cell == NONE:
            position += 1
            continue
        if _sets_full(state):
            break
        position += 1
        before = code_at(at(state, generation + HOLDERS), cell)
        if before != memo_before:
            memo_before, memo_after = before, _without(state, before, target, np.int64(1) << tier)
        after = memo_after
        if after != before:
            changed += 1
            put_code(at(state, generation + HOLDERS), cell, after)
            if after == 0:  # in the older generation: in the newer one its holder would be the only one
                put(state, OLDER + LIVE, at(state, OLDER + LIVE) - 1)
            if _recount(state, before, after):
                memo_before, memo_after = np.uint32(0), np.uint32(0)
    put(state, NEWER + FREE, free)
    put(state, NEWER + LIVE, at(state, NEWER + LIVE) - gone)
    put(state, PREFIXES + tier, at(state, PREFIXES + tier) - gone)
    changed += gone
    _count_held(state, target, tier, -changed)
    put(state, REMOVED, at(state, REMOVED) + changed)
    if position < count:
        return _end(state, position, count, changed)
    put(state, REMOVALS, at(state, REMOVALS) + count)
    total = _end(state, position, count, changed)
    return np.int64(FINISHED) - total if done_migrating or at(state, NEWER + LIVE) < at(state, SPARSE) else total


@njit(I64(I64, I64), nogil=True, cache=True)
def clear(state, target):  # type: ignore[no-untyped-def]
    """A target holds nothing any more; returns as `store` does, how many blocks it held. O(cells); cells are read in sequence."""
    position, changed = _begin(state), np.int64(0)
    newer_top = at(state, NEWER + TOP)
    count = newer_top + (at(state, OLDER + TOP) if at(state, OLDER + SLOTS) != 0 else 0)
    while position < count:
        if _sets_full(state):
            break
        generation, cell = np.int64(NEWER), position
        if position >= newer_top:
            generation, cell = np.int64(OLDER), position - newer_top
        position += 1
        before = code_at(at(state, generation + HOLDERS), cell)
        tiers = _tiers_for(state, before, target)
        if tiers == 0:
            continue
        after = _without(state, before, target, np.int64(7))
        for tier in range(TIERS):
            if tiers >> tier & 1:
                changed += 1
                _count_held(state, target, np.int64(tier), np.int64(-1))
        if after == 0:
            _drop_cell(state, generation, cell)
        else:
            put_code(at(state, generation + HOLDERS), cell, after)
        _recount(state, before, after)
    return _end(state, position, count, changed)


@inner
def _evict_cell(state, generation, cell):  # type: ignore[no-untyped-def]
    """Forget a prefix and all its holders. O(holders)."""
    code, words = code_at(at(state, generation + HOLDERS), cell), at(state, WORDS)
    for tier in range(TIERS):
        if code < np.uint32(SHARED):
            if np.int64(code) >> tier & 1:
                _count_held(state, (np.int64(code) >> 3) - 1, np.int64(tier), np.int64(-1))
            continue
        for index in range(words):
            word = word_at(_set(state, _number(code)), SET_WORDS + tier * words + index)
            while word != _EMPTY:
                _count_held(state, 64 * index + lowest(word), np.int64(tier), np.int64(-1))
                word &= word - _ONE
    _drop_cell(state, generation, cell)
    _recount(state, code, np.uint32(0))
    put(state, EVICTED, at(state, EVICTED) + 1)


@njit(void(I64, I64), nogil=True, cache=True)
def evict(state, wanted):  # type: ignore[no-untyped-def]
    """Forget about that many prefixes, a group of cells at a time: one not used since the hand came by last. O(groups passed)."""
    generation = np.int64(OLDER if at(state, OLDER + LIVE) > 0 else NEWER)
    top, cell = at(state, generation + TOP), at(state, generation + (NEWER + CURSOR))
    recent, holders = at(state, generation + RECENT), at(state, generation + HOLDERS)
    goal = at(state, EVICTED) + wanted
    passed = np.int64(0)
    while at(state, EVICTED) < goal and at(state, generation + LIVE) > 0 and passed <= 2 * top + 2 * GROUP:
        if cell >= top:
            if generation == OLDER:
                break
            cell = np.int64(0)
        end = min(top, (cell // GROUP + 1) * GROUP)
        passed += end - cell
        if mark_at(recent, cell // GROUP):
            if generation == OLDER:
                migrate(state, end - cell)
            else:
                put_mark(recent, cell // GROUP, np.uint8(0))
        else:
            for one in range(cell, end):
                if code_at(holders, one) != 0:
                    _evict_cell(state, generation, one)
        cell = end
        put(state, generation + CURSOR, cell)


@njit(void(I64, I64, I64), nogil=True, cache=True)
def touch(slots, begin, end):  # type: ignore[no-untyped-def]
    """Have the system provide the memory of empty slots now, rather than when they are first used."""
    for slot in range(begin, end, 512):
        put_word(slots, slot, _EMPTY)


# ---- the read path


@njit(I64(I64, I64, I64, FILLED), nogil=True, cache=True)
def held(state, target, tier, filled):  # type: ignore[no-untyped-def]
    """Write what a target holds in a tier; returns how many. O(cells)."""
    count = 0
    for generation in (np.int64(NEWER), np.int64(OLDER)):
        if at(state, generation + SLOTS) == 0:
            continue
        for cell in range(at(state, generation + TOP)):
            if _tiers_for(state, code_at(at(state, generation + HOLDERS), cell), target) >> tier & 1:
                filled[count] = word_at(at(state, generation + KEYS), cell)
                count += 1
    return count


@njit(U32(I64, U64), nogil=True, cache=True)
def holders(state, key):  # type: ignore[no-untyped-def]
    """The code of a prefix's holders. O(1)."""
    for generation in (np.int64(NEWER), np.int64(OLDER)):
        cell = _find(state, generation, key)
        if cell != NONE:
            return code_at(at(state, generation + HOLDERS), cell)
    return np.uint32(0)


@inline
def _run(keys, holders_, cell, top, code, hashes, position):  # type: ignore[no-untyped-def]
    """How many further blocks the neighbours of a cell hold with the same holders. O(result)."""
    length = np.int64(0)
    limit = min(top - cell, np.int64(len(hashes)) - position)
    given = np.int64(hashes.ctypes.data)
    for step in range(0, min(limit, FETCHED), 16):
        fetch(given, position + step)
        fetch(given, position + step + 8)
        fetch(keys, cell + step)
        fetch(keys, cell + step + 8)
        fetch(holders_, (cell + step) >> 1)
    while length + 8 <= limit:
        differ = _EMPTY
        for step in range(8):
            differ |= word_at(keys, cell + length + step) ^ hashes[np.uint64(position + length + step)]
            differ |= np.uint64(code_at(holders_, cell + length + step) ^ code)
        if differ != _EMPTY:
            break
        length += 8
    while (
        length < limit
        and word_at(keys, cell + length) == hashes[np.uint64(position + length)]
        and code_at(holders_, cell + length) == code
    ):
        length += 1
    return length


@inline
def _mark(recent, cell, length):  # type: ignore[no-untyped-def]
    for group in range(cell // GROUP, (cell + length - 1) // GROUP + 1):
        put_mark(recent, np.int64(group), np.uint8(1))


@inline
def _arrive(state, generation, key):  # type: ignore[no-untyped-def]
    """A key's cell, or NONE, as `_find`; what a walk from there reads comes along while the key is compared."""
    slots, keys = at(state, generation + SLOTS), at(state, generation + KEYS)
    if slots == 0:
        return np.int64(NONE)
    tag, mask = _tag(key), _mask(state, generation)
    slot = np.int64(tag >> np.uint64(at(state, generation + SHIFT)))
    while True:
        word = word_at(slots, slot)
        if word == _EMPTY:
            return np.int64(NONE)
        if word >> _HALF == tag:
            cell = np.int64(word & _LOW) - 1
            fetch(at(state, generation + HOLDERS), cell >> 1)
            fetch(keys, cell + 8)
            if word_at(keys, cell) == key and (
                generation == NEWER or code_at(at(state, generation + HOLDERS), cell) != 0
            ):
                return cell
        slot = (slot + 1) & mask


@inline
def _next(state, generation, cell, key):  # type: ignore[no-untyped-def]
    """A key's generation and cell, given the cell of the block before: mostly the neighbour. NONE: nobody holds it."""
    if cell != NONE:
        keys, holders_ = at(state, generation + KEYS), at(state, generation + HOLDERS)
        if (
            cell + 1 < at(state, generation + TOP)
            and word_at(keys, cell + 1) == key
            and code_at(holders_, cell + 1) != 0
        ):
            return generation, cell + 1
        if cell > 0 and word_at(keys, cell - 1) == key and code_at(holders_, cell - 1) != 0:
            return generation, cell - 1
    found = _arrive(state, np.int64(NEWER), key)
    if found != NONE or at(state, OLDER + SLOTS) == 0:
        return np.int64(NEWER), found
    return np.int64(OLDER), _arrive(state, np.int64(OLDER), key)


@inline
def _union(state, code, index, tiers):  # type: ignore[no-untyped-def]
    """A word of those who hold in any of the first `tiers` tiers."""
    union = _EMPTY
    if code >= np.uint32(SHARED):
        members, words = _set(state, _number(code)), at(state, WORDS)
        if index < words:
            for tier in range(tiers):
                union |= word_at(members, SET_WORDS + tier * words + index)
    elif code != 0:
        target = (np.int64(code) >> 3) - 1
        if target >> 6 == index and np.int64(code) & ((np.int64(1) << tiers) - 1):
            union = _ONE << np.uint64(target & 63)
    return union


@inline
def _keep(alive, place, stays, reach, row, index, targets, position):  # type: ignore[no-untyped-def]
    """Leave only those in a word that stay, and note how far the others came."""
    gone = word_at(alive, place) & ~stays
    put_word(alive, place, stays)
    while gone != _EMPTY:
        target = 64 * index + lowest(gone)
        if target < targets:
            put_count(reach, row * targets + target, np.int32(position))
        gone &= gone - _ONE


@inner
def _narrow(state, code, rows, alive, reach, targets, position):  # type: ignore[no-untyped-def]
    """Leave only those alive that hold a block; returns how many there are in the last row. O(words)."""
    words, left = (targets + 63) >> 6, np.int64(0)
    for row in range(rows):
        for index in range(words):
            place = row * words + index
            was = word_at(alive, place)
            if was != _EMPTY:
                stays = was & _union(state, code, index, row + 1)
                if stays != was:
                    _keep(alive, place, stays, reach, row, index, targets, position)
                if row == rows - 1:
                    left += ones(stays)
    return left


@inline
def _rows_of(tiers, rows):  # type: ignore[no-untyped-def]
    """The rows in which a holder in these tiers counts, as bits: those of its fastest tier and all slower ones."""
    counted = np.int64(0)
    for row in range(rows):
        if tiers & ((np.int64(2) << row) - 1):
            counted |= np.int64(1) << row
    return counted


@inline
def _note(reach, targets, target, rows, position):  # type: ignore[no-untyped-def]
    """A target came this far in some rows, given as bits."""
    for row in range(TIERS):
        if rows >> row & 1:
            put_count(reach, row * targets + target, np.int32(position))


@inner
def _walk_all(state, rows, reach, alive, targets, hashes):  # type: ignore[no-untyped-def]
    """Write the reach of every target, row by row. O(length of the longest) and O(words) wherever the holders change."""
    words, count = (targets + 63) >> 6, np.int64(len(hashes))
    for place in range(rows * words):
        put_word(alive, place, ~_EMPTY)
    generation, cell, position = np.int64(NEWER), np.int64(NONE), np.int64(0)
    code = np.uint32(0)
    while position < count:
        generation, cell = _next(state, generation, cell, hashes[np.uint64(position)])
        if cell == NONE:
            break
        keys, codes = at(state, generation + KEYS), at(state, generation + HOLDERS)
        if code_at(codes, cell) != code:
            code = code_at(codes, cell)
            if _narrow(state, code, rows, alive, reach, targets, position) == 0:
                return np.int64(0)
        length = _run(keys, codes, cell, at(state, generation + TOP), code, hashes, position)
        _mark(at(state, generation + RECENT), cell, length)
        position += length
        cell += length - 1
    for row in range(rows):
        for index in range(words):
            _keep(alive, row * words + index, _EMPTY, reach, row, index, targets, position)
    return np.int64(0)


@inner
def _walk_one(state, rows, reach, targets, hashes):  # type: ignore[no-untyped-def]
    """The same where the first block has one holder: no other target can reach further than 0.

    :returns: the target; NONE: nobody reaches anything; SEVERAL: the block has several holders, and nothing was written.
    """
    count, position = np.int64(len(hashes)), np.int64(0)
    generation, cell = _next(state, np.int64(NEWER), np.int64(NONE), hashes[0])
    if cell == NONE:
        return np.int64(NONE)
    code = code_at(at(state, generation + HOLDERS), cell)
    if code >= np.uint32(SHARED):
        return np.int64(SEVERAL)
    target = (np.int64(code) >> 3) - 1
    if target >= targets:
        return np.int64(NONE)
    alive = _rows_of(np.int64(code) & 7, rows)
    while alive:
        keys, codes = at(state, generation + KEYS), at(state, generation + HOLDERS)
        length = _run(keys, codes, cell, at(state, generation + TOP), code, hashes, position)
        _mark(at(state, generation + RECENT), cell, length)
        position += length
        if position == count:
            break
        generation, cell = _next(state, generation, cell + length - 1, hashes[np.uint64(position)])
        if cell == NONE:
            break
        code = code_at(at(state, generation + HOLDERS), cell)
        going = alive & _rows_of(_tiers_for(state, code, target), rows)
        _note(reach, targets, target, alive & ~going, position)
        alive = going
    _note(reach, targets, target, alive, position)
    return target


@inner
def _join(reach, chasing, targets, position):  # type: ignore[no-untyped-def]
    """Take in the targets whose exact reach ends here; returns where the next one's does. O(targets)."""
    following = np.int64(1) << 31
    for target in range(targets):
        ends = np.int64(count_at(reach, 2 * targets + target))
        if ends == position:
            word = word_at(chasing, target >> 6)
            put_word(chasing, target >> 6, word | _ONE << np.uint64(target & 63))
        elif position < ends < following:
            following = ends
    return following


@inner
def _walk_predicted(exact, predicted, reach, chasing, targets, hashes):  # type: ignore[no-untyped-def]
    """Write how far targets reach when predictions count as well, going on from where the exact reach of each ends."""
    words, count = (targets + 63) >> 6, np.int64(len(hashes))
    for index in range(words):
        put_word(chasing, index, _EMPTY)
    one, one_cell, one_code = np.int64(NEWER), np.int64(NONE), np.uint32(0)
    other, other_cell, other_code = np.int64(NEWER), np.int64(NONE), np.uint32(0)
    position, following, left = np.int64(0), np.int64(0), False
    while position < count:
        if position == following:
            following = _join(reach, chasing, targets, position)
        one, one_cell = _next(predicted, one, one_cell, hashes[np.uint64(position)])
        other, other_cell = _next(exact, other, other_cell, hashes[np.uint64(position)])
        one_code = np.uint32(0) if one_cell == NONE else code_at(at(predicted, one + HOLDERS), one_cell)
        other_code = np.uint32(0) if other_cell == NONE else code_at(at(exact, other + HOLDERS), other_cell)
        left = False
        for index in range(words):
            was = word_at(chasing, index)
            if was != _EMPTY:
                stays = was & (_union(predicted, one_code, index, TIERS) | _union(exact, other_code, index, TIERS))
                _keep(chasing, index, stays, reach, np.int64(3), index, targets, position)
                left |= stays != _EMPTY
        position += 1
        if not left:
            position = min(following, count)
    for index in range(words):
        _keep(chasing, index, _EMPTY, reach, np.int64(3), index, targets, count)


@inline
def _copy_row(reach, targets, source, row):  # type: ignore[no-untyped-def]
    for target in range(targets):
        put_count(reach, row * targets + target, count_at(reach, source * targets + target))


@inline
def _clean(request):  # type: ignore[no-untyped-def]
    """Zero what the call before has written. O(1) as a rule, O(targets) where it met several holders."""
    reach, targets, touched = at(request, REACH), at(request, MATCHED), at(request, TOUCHED)
    if touched == SEVERAL:
        for place in range(4 * targets):
            put_count(reach, place, np.int32(0))
    elif touched != NONE:
        for row in range(4):
            put_count(reach, row * targets + touched, np.int32(0))
    put(request, TOUCHED, np.int64(NONE))


@njit(void(I64, HASHES), nogil=True, cache=True)
def match(request, hashes):  # type: ignore[no-untyped-def]
    """Write the leading blocks of each target: device, then what host, disk and predictions add; int32 (4, targets) at `REACH`.

    :param request: the address of int64: the states of the tables, exact and predicted (or 0), where to write, room for 3 words per
        64 targets, how many targets, and whom the last call has written (`SEVERAL` at first, if what is there is not zero).
    """
    exact, predicted, reach = at(request, EXACT), at(request, PREDICTED), at(request, REACH)
    alive, targets = at(request, ALIVE), at(request, MATCHED)
    _clean(request)
    if len(hashes) == 0 or targets == 0:
        return
    rows = np.int64(1) if at(exact, BLOCKS + 1) == 0 and at(exact, BLOCKS + 2) == 0 else np.int64(TIERS)
    touched = _walk_one(exact, rows, reach, targets, hashes)
    if touched == SEVERAL:
        _walk_all(exact, rows, reach, alive, targets, hashes)
    guessed = predicted != 0 and at(predicted, BLOCKS) > 0
    if rows == 1 and not guessed:
        put(request, TOUCHED, touched)
        return
    put(request, TOUCHED, np.int64(SEVERAL))
    if rows == 1:
        _copy_row(reach, targets, 0, 1)
        _copy_row(reach, targets, 0, 2)
    _copy_row(reach, targets, 2, 3)
    if guessed:
        _walk_predicted(exact, predicted, reach, alive, targets, hashes)
    for row in range(3, 0, -1):
        for target in range(targets):
            place = row * targets + target
            put_count(reach, place, np.int32(count_at(reach, place) - count_at(reach, place - targets)))
