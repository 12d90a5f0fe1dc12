"""Sequence hash → set of targets, in a flat table.

A sequence hash is a node of the prefix tree by itself, so presence needs no parents and no pointers. How the table works is told in
`router.core.holder_kernels`; this is its memory: when it grows, shrinks, and forgets.
"""

from __future__ import annotations

import mmap
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from events.entry import entry
from router.core import holder_kernels as kernels

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

_store, _remove = entry(kernels.store), entry(kernels.remove)
_UINT64, _PACKED = np.dtype(np.uint64), (8,)
_FEWEST_SLOTS_LOG2 = 10
_FEWEST_SETS = 64
_FULL = 0.8
"""Load factor of the slots at which the table grows; it is between half of this and this, unless the table shrinks."""
_PREPARE = 0.7
"""Load factor at which the next generation's memory begins to be prepared, a piece with each store."""
_PIECE_SLOTS = 1 << 13
"""Slots of the next generation that a store prepares: 64 KiB, some microseconds' work of the system."""
_RELEASED_BYTES = 1 << 21
"""Memory of a former generation that a store gives back to the system."""
_HUGE_BYTES = 1 << 23
"""Smaller tables are not worth huge pages (2 MiB, as a rule); nor does one that grows take them: to be given one can take 5 ms."""
_UNBOUNDED = 1 << 31


class TableSize(NamedTuple):
    """How large a table is now, and what it forgot since the start."""

    prefixes: int
    slots: int
    load_factor: float
    shared_sets: int
    """Distinct sets of two and more targets."""
    bytes: int
    """Memory in use; the part of the newest arrays that was never used is not counted, for the system has not provided it."""
    evicted: int


class _Generation:
    """The arrays of one size of the table: slots, and cells enough to fill them."""

    def __init__(self, slots_log2: int, *, huge: bool = False) -> None:
        """`huge`: have memory in huge pages, so that a lookup waits for memory alone, and not for the page table as well."""
        slots = 1 << slots_log2
        self.capacity = int(_FULL * slots)
        self.slots_log2 = slots_log2
        groups = self.capacity // kernels.GROUP + 1
        # Straight from the system, which provides a page when it is first used: an allocator might zero all of it at once.
        size = 8 * (slots + self.capacity) + 4 * self.capacity + groups
        self.memory = memory = mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        if huge and size >= _HUGE_BYTES and hasattr(mmap, "MADV_HUGEPAGE"):
            memory.madvise(mmap.MADV_HUGEPAGE)
        self.slots = np.frombuffer(memory, np.uint64, slots)
        self.keys = np.frombuffer(memory, np.uint64, self.capacity, 8 * slots)
        self.holders = np.frombuffer(memory, np.uint32, self.capacity, 8 * (slots + self.capacity))
        self.recent = np.frombuffer(memory, np.uint8, groups, 8 * slots + 12 * self.capacity)
        self._prepared = self._released = 0

    def provide(self) -> None:
        """Have all of the memory provided now."""
        kernels.touch(self.slots.ctypes.data, 0, len(self.memory) // 8)

    def prepare(self) -> bool:
        """Have another piece of the slots' memory provided; returns whether that was the last."""
        end = min(len(self.slots), self._prepared + _PIECE_SLOTS)
        kernels.touch(self.slots.ctypes.data, self._prepared, end)
        self._prepared = end
        return end == len(self.slots)

    def release(self) -> bool:
        """Give another piece of the memory back to the system; returns whether that was the last. Nothing may be read any more."""
        size, begin = len(self.memory), self._released
        self._released = min(size, begin + _RELEASED_BYTES)
        if hasattr(mmap, "MADV_DONTNEED"):
            self.memory.madvise(mmap.MADV_DONTNEED, begin, self._released - begin)
        return self._released == size

    def fields(self) -> list[int]:
        """Its part of the state, while it is empty."""
        arrays = (self.slots, self.keys, self.holders, self.recent)
        return [*(array.ctypes.data for array in arrays), 32 - self.slots_log2, self.capacity, 0, -1, 0, 0]

    def bytes(self, cells: int) -> int:
        """Memory in use when that many cells have ever been used."""
        return self.slots.nbytes + cells * (self.keys.itemsize + self.holders.itemsize) + len(self.recent)


class PresenceTable:
    """Who holds each prefix, in up to three tiers.

    Memory: 12 bytes per prefix and 8 per slot, so 22 to 32 bytes per prefix at load factors of 0.8 to 0.4; distinct sets of several
    targets are kept once each. It grows and shrinks a few cells with each call.

    :param max_prefixes: how many prefixes to know at most. Beyond that those used long ago are forgotten, and counted.
    :param expected_prefixes: have room for that many from the start, its memory provided, and never less.
    :raises ValueError: `max_prefixes` is below 1.

    >>> table = PresenceTable()
    >>> table.add(0, [11, 12])
    2
    >>> table.add(3, [11])
    1
    >>> table.holders(11) == {0, 3}
    True
    """

    def __init__(self, max_prefixes: int = _UNBOUNDED, expected_prefixes: int = 0) -> None:
        if max_prefixes < 1:
            raise ValueError(f"max_prefixes must be at least 1, not {max_prefixes}")
        self._max_prefixes = max_prefixes
        self.fields = np.zeros(kernels.STATE_SIZE, np.int64)
        self.state = self.fields.ctypes.data
        """The address that kernels take; it stays the same."""
        self._fewest_log2 = max(_FEWEST_SLOTS_LOG2, int(expected_prefixes / _PREPARE).bit_length())
        self._generation = _Generation(self._fewest_log2, huge=True)
        if expected_prefixes:
            self._generation.provide()
        self._older: _Generation | None = None
        self._next: _Generation | None = None
        self._former: _Generation | None = None
        self.fields[: kernels.OLDER] = self._generation.fields()
        self._sets = np.zeros((0, 0), np.uint64)
        self._make_sets(_FEWEST_SETS, 1)
        self._held = np.zeros((kernels.TIERS, 64), np.int64)
        self._show_targets()
        self._watch()

    def __len__(self) -> int:
        """Distinct prefixes. O(1)."""
        return int(self.fields[kernels.LIVE] + self.fields[kernels.OLDER + kernels.LIVE])

    def add(self, target: int, hashes: NDArray[np.uint64] | Iterable[int], tier: int = 0) -> int:
        """The target holds these prefixes (uint64, shape (n,)); returns how many it did not hold before. O(n)."""
        if target >= self._width:
            self.reserve_targets(target + 1)
        if type(hashes) is not np.ndarray or hashes.dtype is not _UINT64 or hashes.strides != _PACKED:
            hashes = as_hashes(hashes)
        changed: int = _store(self.state, target, tier, hashes)
        while changed < 0:
            self._make_room(len(hashes) - int(self.fields[kernels.DONE]))
            changed = _store(self.state, target, tier, hashes)
        return changed

    def discard(self, target: int, hashes: NDArray[np.uint64] | Iterable[int], tier: int = 0) -> int:
        """The target no longer holds these prefixes in this tier; returns how many it did hold. O(n)."""
        if target >= self._width:
            self.reserve_targets(target + 1)
        if type(hashes) is not np.ndarray or hashes.dtype is not _UINT64 or hashes.strides != _PACKED:
            hashes = as_hashes(hashes)
        changed: int = _remove(self.state, target, tier, hashes)
        while changed == kernels.NONE:
            self._more_sets()
            changed = _remove(self.state, target, tier, hashes)
        if changed < 0:
            changed = kernels.FINISHED - changed
            self._shrink()
        return changed

    def clear(self, target: int) -> int:
        """The target holds nothing any more, in any tier; returns how many blocks it held. O(1) if none, else O(prefixes)."""
        if target >= self._width or not self._held[:, target].any():
            return 0
        changed: int = kernels.clear(self.state, target)
        while changed < 0:
            self._more_sets()
            changed = kernels.clear(self.state, target)
        self._shrink()
        return changed

    def held(self, target: int, tier: int = 0) -> NDArray[np.uint64]:
        """All that a target holds in a tier, uint64, in no particular order. O(prefixes in the table)."""
        filled = np.empty(self.held_blocks(target, tier), np.uint64)
        if len(filled):
            kernels.held(self.state, target, tier, filled)
        return filled

    def held_blocks(self, target: int, tier: int = 0) -> int:
        """How many blocks a target holds in a tier. O(1)."""
        return int(self._held[tier, target]) if target < self._width else 0

    def holders(self, prefix: int, tier: int = 0) -> set[int]:
        """The targets that hold a prefix in a tier. O(targets)."""
        code = int(kernels.holders(self.state, prefix))
        if code < kernels.SHARED:
            return {(code >> 3) - 1} if code >> tier & 1 else set()
        words = int(self.fields[kernels.WORDS])
        row = self._sets[code - kernels.SHARED][kernels.SET_WORDS + tier * words :][:words]
        return set(np.flatnonzero(np.unpackbits(row.view(np.uint8), bitorder="little")).tolist())

    def holds(self, target: int, prefix: int) -> bool:
        """Whether a target holds a prefix in any tier. O(1)."""
        if target >= self._width:
            return False
        code = int(kernels.holders(self.state, prefix))
        if code < kernels.SHARED:
            return code > 0 and (code >> 3) - 1 == target
        words = int(self.fields[kernels.WORDS])
        bits = self._sets[code - kernels.SHARED][kernels.SET_WORDS + target // 64 :: words][: kernels.TIERS]
        return any(int(word) >> (target % 64) & 1 for word in bits)

    def prefixes(self, tier: int = 0) -> int:
        """Distinct prefixes that anybody holds in a tier. O(1)."""
        return int(self.fields[kernels.PREFIXES + tier])

    def blocks(self, tier: int = 0) -> int:
        """Blocks in a tier, each counted once per target that holds it. O(1)."""
        return int(self.fields[kernels.BLOCKS + tier])

    def size(self) -> TableSize:
        """How large the table is now. O(1)."""
        fields, slots = self.fields, len(self._generation.slots)
        used = (
            self._generation.bytes(int(fields[kernels.TOP]))
            + self._sets.nbytes
            + self._set_slots.nbytes
            + self._held.nbytes
        )
        if self._older is not None:
            used += self._older.bytes(int(fields[kernels.OLDER + kernels.TOP]))
        if self._next is not None:
            used += self._next.slots.nbytes
        live, sets = len(self), int(fields[kernels.SET_LIVE])
        return TableSize(live, slots, int(fields[kernels.LIVE]) / slots, sets, used, int(fields[kernels.EVICTED]))

    def reserve_targets(self, targets: int) -> None:
        """Have room for the targets 0 … targets - 1. O(1), and O(shared sets) when it grows."""
        if targets <= self._width:
            return
        width = 1 << (targets - 1).bit_length()
        held = np.zeros((len(self._held), width), np.int64)
        held[:, : self._width] = self._held
        self._held = held
        self._make_sets(len(self._sets), width // 64)
        self._show_targets()

    # ---- room

    def _make_room(self, wanted: int) -> None:
        """See to what stopped a store: a bound reached, sets or cells used up, or a next generation to prepare."""
        fields = self.fields
        if fields[kernels.SET_FREE] == kernels.NONE and fields[kernels.SET_TOP] == fields[kernels.SET_CAPACITY]:
            self._more_sets()
        if self._older is not None:
            self._migrate(max(1024, kernels.MIGRATED_PER_STORED * wanted))
        if self._former is not None and self._former.release():
            self._former = None
        if len(self) >= self._max_prefixes:
            kernels.evict(self.state, min(wanted, max(1, self._max_prefixes // 16)))
        live = int(fields[kernels.LIVE])
        if self._older is None and live >= int(_PREPARE * len(self._generation.slots)) and self._may_grow():
            self._prepare_growth(live)
        self._watch(wanted)

    def _may_grow(self) -> bool:
        return self._generation.capacity < self._max_prefixes

    def _prepare_growth(self, live: int) -> None:
        if self._next is None:
            self._next = _Generation(self._generation.slots_log2 + 1)
        if self._next.prepare() or live >= self._generation.capacity:
            self._start(self._next)

    def _start(self, following: _Generation) -> None:
        """New prefixes go to another generation from now on, and the present one's follow."""
        older, fields = kernels.OLDER, self.fields
        fields[older : 2 * older] = fields[:older]
        fields[older + kernels.CURSOR] = 0
        fields[:older] = following.fields()
        self._older, self._generation, self._next = self._generation, following, None
        self._migrate(0)

    def _migrate(self, budget: int) -> None:
        if kernels.migrate(self.state, budget) == 0:
            older = kernels.OLDER
            self.fields[older : 2 * older] = 0
            self._former, self._older = self._older, None

    def _shrink(self) -> None:
        """Begin a smaller generation if this one is mostly empty; end a migration that is done."""
        if self._older is not None:
            self._migrate(0)
        elif len(self) < self.fields[kernels.SPARSE]:
            self._next = None
            self._start(_Generation(max(self._fewest_log2, self._generation.slots_log2 - 2)))
        self._watch()

    def _watch(self, wanted: int = 1) -> None:
        """Say at how many prefixes a store has to stop and ask for room, and below how few a removal has to say so.

        :param wanted: prefixes that the present call has still to store, without a stop if possible.
        """
        fields, generation = self.fields, self._generation
        live, elsewhere = int(fields[kernels.LIVE]), int(fields[kernels.OLDER + kernels.LIVE])
        busy = self._next is not None or self._former is not None
        full = min(generation.capacity, live + wanted) if busy else generation.capacity
        if not busy and self._older is None and self._may_grow():
            full = max(min(generation.capacity, live + wanted), int(_PREPARE * len(generation.slots)))
        if self._older is not None:
            full = min(full, live + max(wanted, elsewhere))
        shrinks = self._older is None and generation.slots_log2 > self._fewest_log2
        fields[kernels.SPARSE] = generation.capacity // 8 if shrinks else 0
        fields[kernels.ATTENTION] = min(full, self._max_prefixes - elsewhere)

    # ---- shared sets

    def _more_sets(self) -> None:
        if self.fields[kernels.SET_FREE] == kernels.NONE:
            self._make_sets(2 * len(self._sets), int(self.fields[kernels.WORDS]))

    def _make_sets(self, capacity: int, words: int) -> None:
        """Room for that many sets of so many words per tier; those that are there move in."""
        fields = self.fields
        sets = np.zeros((capacity, kernels.SET_WORDS + kernels.TIERS * words), np.uint64)
        before = int(fields[kernels.WORDS])
        if before:
            old = self._sets
            sets[: len(old), : kernels.SET_WORDS] = old[:, : kernels.SET_WORDS]
            old_words = old[:, kernels.SET_WORDS :].reshape(len(old), kernels.TIERS, before)
            sets[:, kernels.SET_WORDS :].reshape(capacity, kernels.TIERS, words)[: len(old), :, :before] = old_words
        else:
            fields[kernels.SET_TOP], fields[kernels.SET_FREE] = 1, kernels.NONE
        self._sets = sets
        self._set_slots = np.zeros(2 * capacity, np.uint32)
        fields[kernels.SETS], fields[kernels.SET_SLOTS] = sets.ctypes.data, self._set_slots.ctypes.data
        fields[kernels.SET_CAPACITY], fields[kernels.WORDS] = capacity, words
        kernels.rehash_sets(self.state)

    def _show_targets(self) -> None:
        self._width = self._held.shape[1]
        self.fields[kernels.HELD], self.fields[kernels.TARGETS] = self._held.ctypes.data, self._width

    # ---- checks

    def _codes(self) -> dict[int, int]:
        """Every prefix with the code of its holders."""
        codes = dict[int, int]()
        for generation, base in ((self._generation, kernels.NEWER), (self._older, kernels.OLDER)):
            if generation is not None:
                top = int(self.fields[base + kernels.TOP])
                live = np.flatnonzero(generation.holders[:top])
                assert len(live) == self.fields[base + kernels.LIVE]
                known = dict(zip(generation.keys[live].tolist(), generation.holders[live].tolist(), strict=True))
                assert not codes.keys() & known.keys()
                codes |= known
        return codes

    def _check(self, held: dict[int, Iterable[int]] | None = None) -> None:
        """Assert that the table is sound, and says what `held` does if given: target → its prefixes in tier 0."""
        codes = self._codes()
        assert len(codes) == len(self) <= self._max_prefixes
        assert all(kernels.holders(self.state, prefix) == code for prefix, code in codes.items())
        assert np.count_nonzero(self._generation.slots) == self.fields[kernels.LIVE]
        assert np.count_nonzero(self._generation.holders[int(self.fields[kernels.TOP]) :]) == 0
        self._check_sets(list(codes.values()))
        for tier in range(kernels.TIERS):
            holders = [self.holders(prefix, tier) for prefix in codes]
            counts = np.zeros(self._width, np.int64)
            for one in holders:
                counts[list(one)] += 1
            assert np.array_equal(counts, self._held[tier])
            assert self.blocks(tier) == counts.sum()
            assert self.prefixes(tier) == sum(map(bool, holders))
        if held is not None:
            expected = {(target, prefix) for target, prefixes in held.items() for prefix in prefixes}
            assert {(target, prefix) for prefix in codes for target in self.holders(prefix)} == expected

    def _check_sets(self, codes: list[int]) -> None:
        """Every shared set has two targets or more, is there once, and counts its cells."""
        shared = [code - kernels.SHARED for code in codes if code >= kernels.SHARED]
        numbers = set(shared)
        assert len(numbers) == self.fields[kernels.SET_LIVE]
        assert {self._sets[number, kernels.SET_WORDS :].tobytes() for number in numbers}.__len__() == len(numbers)
        assert sorted(self._set_slots[self._set_slots != 0].tolist()) == sorted(numbers)
        for number in numbers:
            assert self._sets[number, kernels.SET_CELLS] == shared.count(number)
            words = self._sets[number, kernels.SET_WORDS :].reshape(kernels.TIERS, -1)
            assert np.bitwise_count(np.bitwise_or.reduce(words)).sum() >= 2

    def __repr__(self) -> str:
        size = self.size()
        return f"PresenceTable({size.prefixes} prefixes, load factor {size.load_factor:.2f}, {size.bytes} bytes)"


def as_hashes(hashes: NDArray[np.uint64] | Iterable[int]) -> NDArray[np.uint64]:
    """Sequence hashes as a contiguous uint64 array of one dimension. O(n) if they are not already.

    :raises ValueError: they have several dimensions.

    >>> as_hashes([2, 3])
    array([2, 3], dtype=uint64)
    """
    if isinstance(hashes, np.ndarray):
        if hashes.dtype is _UINT64 and hashes.strides == _PACKED:
            return hashes
        if hashes.ndim != 1:
            raise ValueError(f"hashes must have one dimension, not {hashes.ndim}")
        return np.ascontiguousarray(hashes, np.uint64)
    return np.fromiter(hashes, np.uint64)
