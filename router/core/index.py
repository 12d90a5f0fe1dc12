"""Who holds which prefix, by what the workers' events say."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from events.entry import entry
from events.messages import Tier
from router.core import holder_kernels as kernels
from router.core.overlap import Overlap
from router.core.presence import PresenceTable, as_hashes

if TYPE_CHECKING:
    from numpy.typing import NDArray

DEFAULT_MAX_BLOCKS = 1 << 26
"""Prefixes that an index knows at most: 2 GiB at 32 bytes each."""
_match = entry(kernels.match)
_DEVICE = Tier.DEVICE
_TIERS = tuple(map(int, Tier))
"""Kernels take plain integers, and any."""


class IndexStatistics(NamedTuple):
    """Sizes now, and counts since the start."""

    prefixes: tuple[int, int, int]
    """Distinct prefixes per tier: device, host, disk."""
    blocks: tuple[int, int, int]
    """Blocks per tier, each counted once per target that holds it."""
    stored: int
    already_held: int
    """Stores of what the target held already; ignored."""
    removed: int
    unknown_removals: int
    """Removals of what the target did not hold; ignored."""
    clears: int
    evicted: int
    """Prefixes forgotten because the index was full; their workers may still hold them."""
    bytes: int
    load_factor: float


class Matcher:
    """Matches prompts into arrays of its own: what it returns is overwritten by the next call.

    :param targets: match the targets 0 … targets - 1.
    :param predicted: predictions to count as a fourth kind after the tiers.
    """

    __slots__ = ("_address", "_alive", "_kernel", "_request", "_tables", "overlap", "reach")

    def __init__(self, exact: PresenceTable, targets: int, predicted: PresenceTable | None = None) -> None:
        self._kernel = _match
        self._tables = (exact, predicted)
        self._alive = np.zeros(3 * (targets // 64 + 1), np.uint64)
        self.reach = np.zeros((4, targets), np.int32)
        """int32 (4, targets): the fields of `overlap` as rows."""
        self.overlap = Overlap(*self.reach)
        guessed = 0 if predicted is None else predicted.state
        places = (self.reach.ctypes.data, self._alive.ctypes.data)
        self._request = np.array([exact.state, guessed, *places, targets, kernels.NONE], np.int64)
        self._address = self._request.ctypes.data

    def __call__(self, hashes: NDArray[np.uint64]) -> Overlap:
        """Leading blocks of a prompt, given as a contiguous uint64 array (n,). O(depth), depth being the longest match."""
        self._kernel(self._address, hashes)
        return self.overlap


class PrefixIndex:
    """Exact presence: sequence hash → set of targets, per tier.

    Targets are small integers; a cleared target's number can be given to another. A target's set need not be closed under prefixes:
    a hole ends a match, and a later store mends it.

    :param max_blocks: prefixes to know at most; beyond that those used long ago are forgotten, and counted.
    :param expected_blocks: prefixes to have room for from the start.

    >>> index = PrefixIndex()
    >>> prompt = np.array([11, 12, 13], np.uint64)
    >>> index.store(1, prompt[:2])
    2
    >>> index.match(prompt, targets=2).device_blocks
    array([0, 2], dtype=int32)
    """

    def __init__(self, max_blocks: int = DEFAULT_MAX_BLOCKS, expected_blocks: int = 0) -> None:
        self._table = PresenceTable(max_blocks, expected_blocks)
        self._clears = 0

    def store(self, target: int, hashes: NDArray[np.uint64], tier: Tier = Tier.DEVICE) -> int:
        """The target now holds these prefixes (uint64, shape (n,)); returns how many it did not hold before. O(n)."""
        return self._table.add(target, hashes, 0 if tier is _DEVICE else _TIERS[tier])

    def remove(self, target: int, hashes: NDArray[np.uint64], tier: Tier = Tier.DEVICE) -> int:
        """The target no longer holds these prefixes in this tier; returns how many it did hold. O(n)."""
        return self._table.discard(target, hashes, 0 if tier is _DEVICE else _TIERS[tier])

    def clear(self, target: int) -> int:
        """The target holds nothing any more, in any tier; returns how many blocks it held. O(prefixes in the index)."""
        self._clears += 1
        return self._table.clear(target)

    def holds(self, target: int, prefix: int) -> bool:
        """Whether a target holds a prefix in any tier. O(1)."""
        return self._table.holds(target, prefix)

    def held(self, target: int, tier: Tier = Tier.DEVICE) -> NDArray[np.uint64]:
        """All that a target holds in a tier, uint64, in no particular order. O(prefixes in the index)."""
        return self._table.held(target, _TIERS[tier])

    def held_blocks(self, target: int, tier: Tier = Tier.DEVICE) -> int:
        """How many blocks a target holds in a tier. O(1)."""
        return self._table.held_blocks(target, _TIERS[tier])

    def match(self, hashes: NDArray[np.uint64], targets: int, predicted: PresenceTable | None = None) -> Overlap:
        """Leading blocks of a prompt that the targets 0 … targets - 1 hold, with `predicted` as a fourth kind after the tiers.

        O(depth + targets), depth being the longest match. Where it is called often, `matcher` saves making arrays.
        """
        return self.matcher(targets, predicted)(as_hashes(hashes))

    def matcher(self, targets: int, predicted: PresenceTable | None = None) -> Matcher:
        """What `match` does with arrays made once, good as long as the index and `predicted` are."""
        return Matcher(self._table, targets, predicted)

    @property
    def evicted(self) -> int:
        """Prefixes that went because the bound was reached. O(1)."""
        return int(self._table.fields[kernels.EVICTED])

    def statistics(self) -> IndexStatistics:
        """Sizes and counts. O(1)."""
        size, fields = self._table.size(), self._table.fields
        stores, stored, removals, removed = fields[kernels.STORES : kernels.REMOVED + 1].tolist()
        return IndexStatistics(
            prefixes=(self._table.prefixes(0), self._table.prefixes(1), self._table.prefixes(2)),
            blocks=(self._table.blocks(0), self._table.blocks(1), self._table.blocks(2)),
            stored=stored,
            already_held=stores - stored,
            removed=removed,
            unknown_removals=removals - removed,
            clears=self._clears,
            evicted=size.evicted,
            bytes=size.bytes,
            load_factor=size.load_factor,
        )

    def _check(self) -> None:
        self._table._check()  # noqa: SLF001 - a structure checks its parts

    def __repr__(self) -> str:
        device, host, disk = self.statistics().blocks
        return f"PrefixIndex({device} device, {host} host, {disk} disk blocks)"
