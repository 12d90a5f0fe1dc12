"""One policy's outcome in figures."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from sim.replay.outcome import Outcome
    from sim.report.bounds import Bounds
    from sim.report.slo import Slo


class Times(NamedTuple):
    """A distribution of seconds; percentiles are interpolated. NaN: of nothing."""

    mean: float
    p50: float
    p90: float
    p99: float

    @classmethod
    def of(cls, seconds: NDArray[np.float64]) -> Times:
        """Of these. O(n)."""
        if not len(seconds):
            return cls(math.nan, math.nan, math.nan, math.nan)
        return cls(float(seconds.mean()), *(float(value) for value in np.percentile(seconds, [50, 90, 99])))


class Gaps(NamedTuple):
    """Between the tokens of all answered requests: the inter-token latency."""

    mean: float
    p99: float


class Goodput(NamedTuple):
    """Requests that keep the promise."""

    ratio: float
    """Of all requests, the failed ones included."""
    requests_per_second: float


class Calibration(NamedTuple):
    """How well the router predicted times to first token, where it did."""

    requests: int
    bias: float
    """Median of real by predicted: 1 is right, above 1 is too hopeful."""
    within_factor_2: float
    """Ratio of predictions that are off by less than twice."""


class Figures(NamedTuple):
    """The figures of the report. Times are those of answered requests."""

    policy: str
    seed: int
    requests: int
    failed: int
    duration_seconds: float
    """From the first request to the last end."""
    ttft_seconds: Times
    itl_seconds: Gaps
    e2e_seconds: Times
    queue_seconds: Times
    """From the arrival at the engine to the first prefill step."""
    cached_token_ratio: float
    """Of all prompt tokens of answered requests, those that came from a cache."""
    pooled_bound_ratio: float
    """The same if the caches of the whole fleet were one."""
    infinite_bound_ratio: float
    """The same if that cache had no limit."""
    regret_token_ratio: float
    """Of all prompt tokens, those that another worker had in its cache when this one, which had not, was chosen."""
    expected_cached_ratio: float
    """Of all prompt tokens, those that the router expected to be cached."""
    imbalance: float
    """Requests at the fullest worker by the mean of all workers, both over the whole time: 1 is even."""
    busy_prefill_ratio: float
    """Of the workers' time, what they spent in prefill."""
    busy_decode_ratio: float
    retractions: int
    goodput: Goodput
    calibration: Calibration
    cpu_seconds: float

    @classmethod
    def of(cls, outcome: Outcome, bounds: Bounds, slo: Slo) -> Figures:
        """Of an outcome. O(n log n)."""
        done = outcome.done
        prompt_tokens = max(int(outcome.input_tokens[done].sum()), 1)
        duration = duration_seconds(outcome)
        workers = len(outcome.busy_prefill_seconds)
        missed = np.maximum(outcome.best_cached_tokens - outcome.cached_tokens, 0)
        return cls(
            policy=outcome.policy,
            seed=outcome.seed,
            requests=len(outcome.worker),
            failed=int((~done).sum()),
            duration_seconds=duration,
            ttft_seconds=Times.of(ttft_seconds(outcome)[done]),
            itl_seconds=Gaps(outcome.mean_gap_seconds, gap_quantile(outcome, 0.99)),
            e2e_seconds=Times.of((outcome.finish_seconds - outcome.arrival_seconds)[done]),
            queue_seconds=Times.of(outcome.queue_seconds[done]),
            cached_token_ratio=float(outcome.cached_tokens[done].sum() / prompt_tokens),
            pooled_bound_ratio=float(bounds.pooled_tokens[done].sum() / prompt_tokens),
            infinite_bound_ratio=float(bounds.infinite_tokens[done].sum() / prompt_tokens),
            regret_token_ratio=float(missed[done].sum() / prompt_tokens),
            expected_cached_ratio=float(outcome.expected_cached_tokens[done].sum() / prompt_tokens),
            imbalance=_imbalance(outcome.samples.running + outcome.samples.waiting),
            busy_prefill_ratio=float(outcome.busy_prefill_seconds.sum()) / (workers * duration) if duration else 0.0,
            busy_decode_ratio=float(outcome.busy_decode_seconds.sum()) / (workers * duration) if duration else 0.0,
            retractions=int(outcome.retractions.sum()),
            goodput=_goodput(outcome, slo, duration),
            calibration=_calibration(outcome),
            cpu_seconds=outcome.cpu_seconds,
        )


def ttft_seconds(outcome: Outcome) -> NDArray[np.float64]:
    """From sending to the first token, shape (n,); NaN where none came."""
    return outcome.first_token_seconds - outcome.arrival_seconds


def request_itl_seconds(outcome: Outcome) -> NDArray[np.float64]:
    """Each request's mean gap between tokens, shape (n,); 0 with one token, NaN where none came."""
    gaps = np.maximum(outcome.output_tokens - 1, 1)
    return (outcome.finish_seconds - outcome.first_token_seconds) / gaps


def duration_seconds(outcome: Outcome) -> float:
    """From the first request to the last end."""
    if not outcome.done.any():
        return 0.0
    return float(np.nanmax(outcome.finish_seconds) - np.nanmin(outcome.arrival_seconds))


def gap_quantile(outcome: Outcome, quantile: float) -> float:
    """A quantile of all token gaps, interpolated within the bin of the histogram that it is in; NaN without any."""
    total = np.concatenate([[0], np.cumsum(outcome.gap_counts)])
    if not total[-1]:
        return math.nan
    return float(np.interp(quantile * total[-1], total, outcome.gap_edges_seconds))


def keeps(outcome: Outcome, slo: Slo) -> NDArray[np.bool_]:
    """Which requests keep the promise, shape (n,)."""
    in_time = (ttft_seconds(outcome) <= slo.ttft_seconds) & (request_itl_seconds(outcome) <= slo.itl_seconds)
    return outcome.done & in_time


def _goodput(outcome: Outcome, slo: Slo, duration: float) -> Goodput:
    kept = int(keeps(outcome, slo).sum())
    return Goodput(kept / max(len(outcome.worker), 1), kept / duration if duration else 0.0)


def _calibration(outcome: Outcome) -> Calibration:
    predicted = outcome.predicted_ttft_seconds
    known = outcome.done & (predicted > 0)
    if not known.any():
        return Calibration(0, math.nan, math.nan)
    by_predicted = ttft_seconds(outcome)[known] / predicted[known]
    near = (by_predicted > 0.5) & (by_predicted < 2.0)
    return Calibration(int(known.sum()), float(np.median(by_predicted)), float(near.mean()))


def _imbalance(load: NDArray[np.int64]) -> float:
    """Of requests at workers, shape (samples, workers)."""
    mean = float(load.mean(axis=1).sum()) if load.size else 0.0
    return float(load.max(axis=1).sum()) / mean if mean else 1.0
