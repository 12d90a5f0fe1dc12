"""From scores to one target."""

from __future__ import annotations

from itertools import accumulate
from typing import TYPE_CHECKING

import numpy as np

from events.entry import entry
from router.core import decision_kernels as kernels

if TYPE_CHECKING:
    from random import Random

    from numpy.typing import NDArray


_lowest = entry(kernels.lowest)
_SCORES = np.dtype(np.float64)


def lowest(scores: NDArray[np.float64], eligible: NDArray[np.bool_], chance: Random, tolerance: float = 0.0) -> int:
    """The slot with the lowest score among the eligible ones; ties are broken by chance, all alike.

    Scores up to `tolerance` (a fraction) above the lowest count as ties. At least one slot must be eligible. O(slots).

    :raises ValueError: scores are no float64, or not as many as slots.
    """
    if scores.dtype != _SCORES or scores.shape != eligible.shape:
        raise ValueError(f"scores must be float64, one for each of {len(eligible)} targets, not {scores!r}")
    ties = np.empty(len(scores), np.int64)
    count = _lowest(scores, eligible, tolerance, ties)
    return ties.item(int(count * chance.random()) if count > 1 else 0)


def softmax(scores: NDArray[np.float64], eligible: NDArray[np.bool_], chance: Random, temperature: float) -> int:
    """A slot by chance, lower scores more likely: p ∝ exp(-(score - min) / ((max - min) · temperature)).

    Scores are normalised by their range, so the temperature has no unit; at 0 the lowest score wins. Infinite scores are never
    chosen while there are finite ones. At least one slot must be eligible. O(slots).
    """
    if temperature == 0:
        return lowest(scores, eligible, chance)
    slots = np.flatnonzero(eligible & np.isfinite(scores))
    if not len(slots):
        return lowest(scores, eligible, chance)
    costs = scores[slots] / 2 - scores[slots].min() / 2  # halves: a difference of floats always fits
    spread = costs.max()
    with np.errstate(over="ignore", under="ignore"):  # far off is as good as never
        weights = np.exp(-(costs / spread) / temperature) if spread > 0 else np.ones(len(slots))
    return int(slots[_drawn(weights, chance)])


def _drawn(weights: NDArray[np.float64], chance: Random) -> int:
    """An index, each as likely as its weight."""
    edges = list(accumulate(weights.tolist()))
    point = chance.random() * edges[-1]
    return next(index for index, edge in enumerate(edges) if point < edge or edge == edges[-1])
