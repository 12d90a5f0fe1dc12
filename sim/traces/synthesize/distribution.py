"""Distributions as tables of quantiles, so that what is drawn depends on no machine's logarithm."""

from __future__ import annotations

import math
from functools import lru_cache
from statistics import NormalDist
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from sim.traces.draws import Draws

POINTS = 4096


class Distribution:
    """Draws by interpolation between quantiles: the inverse of the distribution function, in `POINTS` steps."""

    def __init__(self, quantiles: NDArray[np.float64]) -> None:
        self._quantiles = quantiles

    def __repr__(self) -> str:
        return f"Distribution({self._quantiles[0]:g} to {self._quantiles[-1]:g}, mean {self._quantiles.mean():g})"

    def draw(self, draws: Draws, count: int) -> NDArray[np.float64]:
        """Independent values, shape (count,). O(count)."""
        place = draws.uniform(count) * (len(self._quantiles) - 1)
        below = place.astype(np.int64)
        lower, upper = self._quantiles[below], self._quantiles[below + 1]
        return lower + (place - below) * (upper - lower)

    def tokens(self, draws: Draws, count: int) -> NDArray[np.int64]:
        """Likewise whole numbers, at least 1."""
        return np.maximum(1, np.rint(self.draw(draws, count))).astype(np.int64)


@lru_cache
def exponential(mean: float) -> Distribution:
    """The time between random events, up to nine means.

    >>> exponential(2.0)
    Distribution(0.000244... to 18.0..., mean 2)
    """
    return _with_mean([-math.log1p(-probability) for probability in _probabilities()], mean)


@lru_cache
def lognormal(mean: float, variation: float) -> Distribution:
    """Lengths of many orders of magnitude; `variation` is the standard deviation by the mean."""
    sigma, normal = math.sqrt(math.log1p(variation * variation)), NormalDist()
    return _with_mean([math.exp(sigma * normal.inv_cdf(probability)) for probability in _probabilities()], mean)


@lru_cache
def uniform(low: float, high: float) -> Distribution:
    """All values alike."""
    return Distribution(np.array([low, high], np.float64))


def _probabilities() -> list[float]:
    return [(point + 0.5) / POINTS for point in range(POINTS)]


def _with_mean(values: list[float], mean: float) -> Distribution:
    """The table with the mean that is wanted: cutting off the tail lowers it. Rounded, since libraries differ in the last bit."""
    total = math.fsum(values) / len(values)
    return Distribution(np.array([float(f"{value * mean / total:.11g}") for value in values]))
