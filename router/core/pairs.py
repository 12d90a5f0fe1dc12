"""(sequence hash, target) → node: the table below predictions and bookings."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import numpy as np

from router.core import pair_kernels as kernels
from router.core.pair_kernels import FREE, KEY, SIZE

if TYPE_CHECKING:
    from numpy.typing import NDArray

_FEWEST_SLOTS = 1024

_Scalar = TypeVar("_Scalar", bound=np.generic)


class PairTable:
    """Numbers the pairs in it, so that its owner can keep columns of them; the kernels work on its arrays.

    Memory: 16 bytes per node, and 8 per slot at a load factor of 1/4 to 1/2 (less after pairs were deleted).
    """

    __slots__ = ("counts", "keys", "slots")

    def __init__(self) -> None:
        self.slots: NDArray[np.uint64] = np.zeros(_FEWEST_SLOTS, np.uint64)
        self.keys: NDArray[np.void] = np.zeros(_FEWEST_SLOTS // 2, KEY)
        self.counts = np.zeros(3, np.int64)

    def __len__(self) -> int:
        """Pairs."""
        return int(self.counts[SIZE])

    @property
    def nodes(self) -> int:
        """How many rows the owner's columns need."""
        return len(self.keys)

    def reserve(self, pairs: int) -> bool:
        """Have room for that many more; returns whether `nodes` has grown. Amortised O(1) per pair."""
        needed: int = self.counts.item(SIZE) + pairs
        if needed <= len(self.keys):
            return False
        slots = 1 << (2 * needed - 1).bit_length()
        larger = np.full(
            slots, 0, np.uint64
        )  # written, so that its memory is provided now and not page by page in decisions
        kernels.rehash(self.slots, larger)
        self.slots = larger
        self.keys = resized(self.keys, slots // 2)
        return True

    def _check(self) -> None:
        """Assert that every pair is found, and no node is lost."""
        words = self.slots[self.slots != 0]
        nodes = (words & np.uint64(0xFFFFFFFF)).astype(np.int64) - 1
        assert len(set(nodes.tolist())) == len(nodes) == len(self)
        for node in nodes.tolist():
            assert kernels.find(self.slots, self.keys, self.keys[node]["prefix"], self.keys[node]["target"]) == node
        free = self.keys["free"][: self.counts[FREE]].tolist()
        assert sorted([*free, *nodes.tolist()]) == list(range(int(self.counts[SIZE] + self.counts[FREE])))
        assert len(self.slots) == 2 * len(self.keys)

    def __repr__(self) -> str:
        return f"PairTable({len(self)} pairs in {len(self.slots)} slots)"


def resized(column: NDArray[_Scalar], rows: int) -> NDArray[_Scalar]:
    """A copy of a column with more rows, which are zero. O(rows)."""
    larger = np.zeros(rows, column.dtype)
    larger[: len(column)] = column
    return larger
