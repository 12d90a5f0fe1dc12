"""Random numbers that are the same on every machine and with every version of numpy."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

_STEP = np.uint64(0x9E3779B97F4A7C15)
_FIRST, _SECOND = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)


class Draws:
    """SplitMix64 by the array: only integer arithmetic and one exact division.

    Source: Steele, Lea and Flood, Fast splittable pseudorandom number generators, OOPSLA 2014.

    >>> draws = Draws(seed=1)
    >>> draws.uniform(2).tolist() == Draws(seed=1).uniform(2).tolist()
    True
    """

    def __init__(self, seed: int) -> None:
        self._state = np.uint64(seed & 0xFFFF_FFFF_FFFF_FFFF)

    def uniform(self, count: int) -> NDArray[np.float64]:
        """Numbers in [0, 1) of 53 bits, shape (count,). O(count)."""
        with np.errstate(over="ignore"):
            words = self._state + np.arange(1, count + 1, dtype=np.uint64) * _STEP
            self._state = self._state + np.uint64(count) * _STEP
        words = (words ^ (words >> np.uint64(30))) * _FIRST
        words = (words ^ (words >> np.uint64(27))) * _SECOND
        words ^= words >> np.uint64(31)
        return (words >> np.uint64(11)).astype(np.float64) * 2.0**-53

    def below(self, limit: int, count: int) -> NDArray[np.int64]:
        """Whole numbers from 0 to `limit - 1`, shape (count,)."""
        return (self.uniform(count) * limit).astype(np.int64)
