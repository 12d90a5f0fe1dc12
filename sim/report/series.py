"""What changes over time, in windows."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from sim.replay.outcome import Outcome
    from sim.report.bounds import Bounds

WINDOWS = 120


class Windows(NamedTuple):
    """Equal windows of time; columns have the shape (windows,)."""

    seconds: NDArray[np.float64]
    """The middle of each."""
    edges: NDArray[np.float64]
    """Shape (windows + 1,)."""

    @classmethod
    def of(cls, end_seconds: float, count: int = WINDOWS) -> Windows:
        """From 0 to the end."""
        edges = np.linspace(0.0, max(end_seconds, 1e-9), count + 1)
        return cls((edges[1:] + edges[:-1]) / 2, edges)

    def sums(
        self, seconds: NDArray[np.float64], values: NDArray[np.float64] | NDArray[np.int64]
    ) -> NDArray[np.float64]:
        """The sum of the values in each window."""
        known = np.isfinite(seconds)
        return np.histogram(seconds[known], self.edges, weights=values[known])[0]

    def means(self, seconds: NDArray[np.float64], rows: NDArray[np.float64] | NDArray[np.int64]) -> NDArray[np.float64]:
        """Mean of the rows (samples, …) in each window, shape (windows, …); where there are none, of the row before."""
        place = np.clip(np.searchsorted(self.edges, seconds, side="right") - 1, 0, len(self.seconds) - 1)
        total, count = np.zeros((len(self.seconds), *rows.shape[1:])), np.zeros(len(self.seconds))
        np.add.at(total, place, rows)
        np.add.at(count, place, 1)
        latest = np.maximum.accumulate(np.where(count > 0, np.arange(len(count)), 0))
        count = np.maximum(count, 1).reshape(-1, *[1] * (rows.ndim - 1))
        return np.asarray((total / count)[latest])


class HitRatios(NamedTuple):
    """Of the prompt tokens sent in each window; NaN where there are none."""

    cached: NDArray[np.float64]
    pooled: NDArray[np.float64]
    infinite: NDArray[np.float64]
    regret: NDArray[np.float64]

    @classmethod
    def of(cls, outcome: Outcome, bounds: Bounds, windows: Windows) -> HitRatios:
        """Smoothed over some windows, so that single long prompts do not hide the course."""
        done, sent = outcome.done, outcome.arrival_seconds
        missed = np.maximum(outcome.best_cached_tokens - outcome.cached_tokens, 0)
        columns = (outcome.cached_tokens, bounds.pooled_tokens, bounds.infinite_tokens, missed)
        tokens = _smooth(windows.sums(sent[done], outcome.input_tokens[done]))
        with np.errstate(invalid="ignore", divide="ignore"):
            ratios = [_smooth(windows.sums(sent[done], column[done])) / tokens for column in columns]
        return cls(*(np.where(tokens > 0, ratio, np.nan) for ratio in ratios))


def _smooth(values: NDArray[np.float64], width: int = 7) -> NDArray[np.float64]:
    """Sums over neighbouring windows."""
    return np.convolve(values, np.ones(width), mode="same")
