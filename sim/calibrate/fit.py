"""Relative least squares with coefficients of at least 0."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from events.command import UsageError

if TYPE_CHECKING:
    from numpy.typing import NDArray


class Quality(NamedTuple):
    """How well predictions fit, in percent of what was measured."""

    rows: int
    mape_percent: float
    """Mean absolute error."""
    p95_percent: float
    """Absolute error that 5 % of the rows exceed."""
    bias_percent: float
    """Of the sum."""

    def __str__(self) -> str:
        errors = f"mean error {self.mape_percent:.2f} %, p95 {self.p95_percent:.2f} %, bias {self.bias_percent:+.2f} %"
        return f"{self.rows} rows, {errors}"


def quality(measured: NDArray[np.float64], predicted: NDArray[np.float64]) -> Quality:
    """Compare, shape (n,) each, n >= 1. O(n log n)."""
    errors = np.abs(predicted / measured - 1) * 100
    bias = (predicted.sum() / measured.sum() - 1) * 100
    return Quality(len(measured), *(round(float(x), 2) for x in (errors.mean(), np.percentile(errors, 95), bias)))


def non_negative(features: NDArray[np.float64], seconds: NDArray[np.float64], what: str) -> NDArray[np.float64]:
    """Coefficients c >= 0 that minimise Σ (features · c / seconds - 1)².

    The optimum is the plain least squares solution on those features whose coefficients are positive in it, so every subset is
    tried: O(2^k n) for k features, which are few.

    :param features: shape (n, k).
    :param seconds: shape (n,), positive.
    :raises UsageError: there are fewer rows than features; `what` says of what.
    """
    rows, count = features.shape
    if rows < count:
        raise UsageError(f"{rows} {what} are too few to fit {count} numbers to")
    relative = features / seconds[:, None]
    scale = np.abs(relative).max(axis=0)
    scale[scale == 0] = 1.0
    relative = relative / scale
    best, least = np.zeros(count), float(rows)
    for size in range(1, count + 1):
        for chosen in itertools.combinations(range(count), size):
            part = relative[:, chosen]
            solution = np.linalg.lstsq(part, np.ones(rows), rcond=None)[0]
            error = float(((part @ solution - 1) ** 2).sum())
            if error < least and (solution >= 0).all():
                best, least = np.zeros(count), error
                best[list(chosen)] = solution
    coefficients: NDArray[np.float64] = best / scale
    return coefficients
