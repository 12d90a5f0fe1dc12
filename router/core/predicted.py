"""Who should hold which prefix, because requests were sent there.

A prediction bridges the time until a worker's event arrives, and is all there is for a worker without events. It is written when a
request is booked, refreshed when a later one reuses it, and ends in one of five ways, all counted:

- promoted: the event arrived, the exact index knows now;
- retracted: the request failed, and nobody else counted on it;
- expired: nothing refreshed it for the target's time to live;
- evicted: the target's capacity is full, and this was used longest ago;
- cleared: the target's cache was, or the target left.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from events.entry import entry
from router.core import pair_kernels as kernels
from router.core.pair_kernels import ANYONE, BLOCKS, ENTRY, NEWEST, NOBODY, OLDEST
from router.core.pairs import PairTable, resized
from router.core.presence import PresenceTable

if TYPE_CHECKING:
    from numpy.typing import NDArray

_EXPECTED_PREFIXES = 1 << 15
"""Room from the start: predictions come and go in bursts, and a table that shrank after each would have to grow again."""


_predict, _drop_expired = entry(kernels.predict), entry(kernels.drop_expired)
_drop_oldest, _drop_given = entry(kernels.drop_oldest), entry(kernels.drop_given)


class PredictedStatistics(NamedTuple):
    """Blocks predicted now, and counts since the start: `made` is the sum of all others."""

    blocks: int
    made: int
    promoted: int
    retracted: int
    expired: int
    evicted: int
    cleared: int


@dataclass(slots=True, frozen=True)
class _Limits:
    ttl_seconds: float
    capacity_blocks: int


class PredictedPresence:
    """Predictions per target, bounded in time and size: 44 to 56 bytes a block, and its bit in `table`.

    Prompts are given as chains of sequence hashes, shortest prefix first (uint64, shape (n,)); `now` must not go backwards.
    """

    def __init__(self) -> None:
        self.table = PresenceTable(expected_prefixes=_EXPECTED_PREFIXES)
        """For `PrefixIndex.match`; call `expire` first."""
        self._limits: dict[int, _Limits] = {}
        self._pairs = PairTable()
        self._entries: NDArray[np.void] = np.zeros(self._pairs.nodes, ENTRY)
        """Per node; a target's are linked, least recently used first. Of a prompt the deepest block counts as used first, so a
        prefix outlives its extensions; and since a target has one time to live, this is also the order in which entries expire."""
        self._lists: NDArray[np.int64] = np.zeros((0, 3), np.int64)
        """Per target: the ends of its list, and how long it is."""
        self._show()
        self._due = math.inf
        """No entry expires before."""
        self._made = self._promoted = self._retracted = self._expired = self._evicted = self._cleared = 0

    def add_target(self, target: int, ttl_seconds: float, capacity_blocks: int, expected_blocks: int = 0) -> None:
        """Make room for a target's predictions; for `expected_blocks` of them now, so that no decision has to wait for more.

        :raises ValueError: the target is there already.
        """
        if target in self._limits:
            raise ValueError(f"target {target} has predictions already")
        if target >= len(self._lists):
            empty = np.tile(np.array([NOBODY, NOBODY, 0]), (max(8, target + 1), 1))
            self._lists = np.concatenate([self._lists, empty])
            self._show()
        self._limits[target] = _Limits(ttl_seconds, capacity_blocks)
        self._reserve(expected_blocks)

    def remove_target(self, target: int) -> None:
        """Forget a target; its number can be given to another. O(its predictions).

        :raises KeyError: there is no such target.
        """
        self.clear(target)
        del self._limits[target]

    def set_ttl(self, target: int, ttl_seconds: float) -> None:
        """How long the target's predictions last from now on; a shorter time drops those made for a longer one. O(n).

        :raises KeyError: there is no such target.
        """
        limits = self._limits[target]
        if ttl_seconds < limits.ttl_seconds:
            self.clear(target)
        self._limits[target] = _Limits(ttl_seconds, limits.capacity_blocks)

    def predict(self, target: int, hashes: NDArray[np.uint64], now: float, author: int) -> int:
        """The target will hold this chain, as far as its capacity goes; returns how many blocks were not predicted before. O(n)."""
        limits = self._limits[target]
        if self._due <= now:
            self._expired += self._drop_expired(target, now)
        chain = hashes[: limits.capacity_blocks]
        if not len(chain):
            return 0
        self._reserve(len(chain))
        made, expires_at = np.empty(len(chain), np.uint64), now + limits.ttl_seconds
        new: int = _predict(*self._arrays, target, chain, expires_at, author, made)
        self._due = min(self._due, expires_at)
        self._made += new
        if new:
            self.table.add(target, made[:new])
            self._evicted += self._drop_oldest(target, limits.capacity_blocks)
        return new

    def promote(self, target: int, hashes: NDArray[np.uint64]) -> int:
        """The target's own event says that it holds these: drop the predictions; returns how many there were. O(n)."""
        dropped = self._drop_given(target, hashes, ANYONE)
        self._promoted += dropped
        return dropped

    def retract(self, target: int, hashes: NDArray[np.uint64], author: int) -> int:
        """The booking failed: drop those that it alone predicted; returns how many there were. O(n)."""
        dropped = self._drop_given(target, hashes, author)
        self._retracted += dropped
        return dropped

    def expire(self, now: float) -> int:
        """Drop what is past its time; returns how many there were. O(1), and O(targets + expired) when there are any."""
        dropped = 0
        if self._due <= now:
            while (target := kernels.due(self._entries, self._lists, now)) != NOBODY:
                dropped += self._drop_expired(target, now)
            self._due = kernels.next_due(self._entries, self._lists)
        self._expired += dropped
        return dropped

    def clear(self, target: int) -> int:
        """Drop all predictions of a target; returns how many there were. O(n)."""
        dropped = self._drop_oldest(target, 0)
        self._cleared += dropped
        return dropped

    def held(self, target: int) -> NDArray[np.uint64]:
        """All that is predicted of a target, uint64, least recently used first. O(n)."""
        prefixes = np.empty(self.held_blocks(target), np.uint64)
        kernels.listed(self._pairs.keys, self._entries, self._lists[target, OLDEST], prefixes)
        return prefixes

    def held_blocks(self, target: int) -> int:
        """How many blocks are predicted of a target. O(1)."""
        return int(self._lists[target, BLOCKS])

    def statistics(self) -> PredictedStatistics:
        """Size and counts. O(1)."""
        return PredictedStatistics(
            blocks=len(self._pairs),
            made=self._made,
            promoted=self._promoted,
            retracted=self._retracted,
            expired=self._expired,
            evicted=self._evicted,
            cleared=self._cleared,
        )

    def _reserve(self, blocks: int) -> None:
        if self._pairs.reserve(blocks):
            self._entries = resized(self._entries, self._pairs.nodes)
            self._show()

    def _show(self) -> None:
        """Gather what every kernel that writes takes first: anew, when one of the arrays has grown."""
        pairs = self._pairs
        self._arrays = (pairs.slots, pairs.keys, pairs.counts, self._entries, self._lists)

    def _drop_expired(self, target: int, now: float) -> int:
        dropped = np.empty(self.held_blocks(target), np.uint64)
        return self._discard(target, dropped, _drop_expired(*self._arrays, target, now, dropped))

    def _drop_oldest(self, target: int, capacity: int) -> int:
        excess = self.held_blocks(target) - capacity
        if excess <= 0:
            return 0
        dropped = np.empty(excess, np.uint64)
        return self._discard(target, dropped, _drop_oldest(*self._arrays, target, capacity, dropped))

    def _drop_given(self, target: int, hashes: NDArray[np.uint64], author: int) -> int:
        if not self.held_blocks(target):
            return 0
        dropped = np.empty(len(hashes), np.uint64)
        return self._discard(target, dropped, _drop_given(*self._arrays, target, hashes, author, dropped))

    def _discard(self, target: int, dropped: NDArray[np.uint64], count: int) -> int:
        if count:
            self.table.discard(target, dropped[:count])
        return count

    def _check(self) -> None:
        self._pairs._check()  # noqa: SLF001 - a structure checks its parts
        self.table._check({target: self.held(target).tolist() for target in self._limits})  # noqa: SLF001
        assert len(self._pairs) == self._lists[:, BLOCKS].sum()
        assert len(self._entries) == self._pairs.nodes
        for target in range(len(self._lists)):
            self._check_list(target)
        counts = self.statistics()
        assert counts.made == sum(counts) - counts.made, counts

    def _check_list(self, target: int) -> None:
        nodes, node = [NOBODY], int(self._lists[target, OLDEST])
        while node != NOBODY:
            assert self._entries[node]["older"] == nodes[-1]
            assert self._pairs.keys[node]["target"] == target
            nodes.append(node)
            node = int(self._entries[node]["newer"])
        assert nodes[-1] == self._lists[target, NEWEST]
        assert len(nodes) - 1 == self.held_blocks(target)
        expiries = self._entries["expires_at"][nodes[1:]].tolist()
        assert expiries == sorted(expiries)
        assert not expiries or (expiries[0] >= self._due and len(expiries) <= self._limits[target].capacity_blocks)

    def __repr__(self) -> str:
        return f"PredictedPresence({len(self._pairs)} blocks of {len(self._limits)} targets)"
