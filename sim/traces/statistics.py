"""A trace in figures."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from sim.traces.reuse import Reuse
from sim.traces.session_kernels import session_roots
from sim.traces.trace import ALONE

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from sim.traces.trace import Trace

DEFAULT_CAPACITY_TOKENS = 8 * 1024 * 1024
"""Eight caches of a million tokens, as one."""


class Lengths(NamedTuple):
    """A distribution. Percentiles are values that occur."""

    mean: float
    p50: float
    p90: float
    p99: float
    max: float

    @classmethod
    def of(cls, values: NDArray[np.float64] | NDArray[np.int64]) -> Lengths:
        """Of these values; of none: zeros. O(n log n)."""
        if not len(values):
            return cls(0.0, 0.0, 0.0, 0.0, 0.0)
        p50, p90, p99 = np.percentile(values, [50, 90, 99], method="higher")
        return cls(float(np.mean(values)), float(p50), float(p90), float(p99), float(values.max()))


class Arrivals(NamedTuple):
    """When requests come, as the trace tells it (in closed loop, later turns come when their predecessors end)."""

    per_second: float
    distinct_times: int
    most_at_once: int
    gap_variation: float
    """Standard deviation of the gaps by their mean: 0 is a clock, 1 is random (Poisson), more is bursts."""
    dispersion_1s: float
    """Variance of the arrivals in each second by their mean: 1 is random."""
    dispersion_60s: float
    """The same by the minute: slow changes of the rate."""

    @classmethod
    def of(cls, seconds: NDArray[np.float64]) -> Arrivals:
        """Of ascending times, at least one. O(n)."""
        span = float(seconds[-1] - seconds[0])
        gaps = np.diff(seconds)
        at_once = np.unique(seconds, return_counts=True)[1]
        return cls(
            per_second=(len(seconds) / span) if span else 0.0,
            distinct_times=len(at_once),
            most_at_once=int(at_once.max()),
            gap_variation=float(gaps.std() / gaps.mean()) if span else 0.0,
            dispersion_1s=_dispersion(seconds, 1.0),
            dispersion_60s=_dispersion(seconds, 60.0),
        )


class Sessions(NamedTuple):
    """Requests that wait for the end of another."""

    sessions: int
    """With more than one request."""
    turns: Lengths
    """Requests of such a session."""
    delay_seconds: Lengths

    @classmethod
    def of(cls, trace: Trace) -> Sessions:
        """Of a trace. O(n log n)."""
        turns = np.bincount(session_roots(trace.previous), minlength=1)
        turns = turns[turns > 1]
        return cls(len(turns), Lengths.of(turns), Lengths.of(trace.delay_seconds[trace.previous != ALONE]))


class Sharing(NamedTuple):
    """What caches can keep of the prompts; by blocks where not said otherwise."""

    blocks: int
    unique_blocks: int
    infinite_hit_ratio: float
    """Of all blocks of prompts, those that a cache without limit has."""
    pooled_hit_ratio: float
    """The same of one least-recently-used cache of `pooled_capacity_tokens`."""
    pooled_capacity_tokens: int
    infinite_hit_token_ratio: float
    """Of all prompt tokens, those that a cache without limit has: never a prompt's last."""
    pooled_hit_token_ratio: float
    requests_without_hit: float
    """Ratio of requests of which no block was seen before."""
    most_common_first_block: float
    """Ratio of requests that begin alike."""
    reuse_distance_tokens: Lengths
    """Of the blocks that are used again: how much else was used in between."""
    reuse_seconds: Lengths
    """Likewise: how long ago."""

    @classmethod
    def of(cls, trace: Trace, capacity_tokens: int = DEFAULT_CAPACITY_TOKENS) -> Sharing:
        """Of a trace. O(m log m)."""
        reuse = Reuse.of(trace)
        again = reuse.hits()
        owner = np.repeat(np.arange(len(trace)), np.diff(reuse.first_block))
        seconds = trace.arrival_seconds[owner[again]] - trace.arrival_seconds[reuse.latest_use[again]]
        prompt_tokens = trace.input_tokens.sum()
        firsts = trace.blocks[trace.first_block[:-1][trace.block_counts > 0]]
        commonest = int(np.unique(firsts, return_counts=True)[1].max()) if len(firsts) else 0
        return cls(
            blocks=len(again),
            unique_blocks=reuse.unique_blocks,
            infinite_hit_ratio=_mean(again),
            pooled_hit_ratio=_mean(reuse.hits(capacity_tokens)),
            pooled_capacity_tokens=capacity_tokens,
            infinite_hit_token_ratio=float(reuse.hit_tokens().sum() / prompt_tokens),
            pooled_hit_token_ratio=float(reuse.hit_tokens(capacity_tokens).sum() / prompt_tokens),
            requests_without_hit=_mean(reuse.hit_blocks() == 0),
            most_common_first_block=commonest / len(trace),
            reuse_distance_tokens=Lengths.of(reuse.distance[again] * reuse.block_tokens),
            reuse_seconds=Lengths.of(seconds),
        )


class TraceStatistics(NamedTuple):
    """A trace in figures."""

    name: str
    requests: int
    span_seconds: float
    block_tokens: int
    arrivals: Arrivals
    input_tokens: Lengths
    output_tokens: Lengths
    sessions: Sessions
    sharing: Sharing

    @classmethod
    def of(cls, trace: Trace, capacity_tokens: int = DEFAULT_CAPACITY_TOKENS) -> TraceStatistics:
        """Of a trace of at least one request; `capacity_tokens` of cache in the whole fleet. O(n log n + m log m)."""
        return cls(
            name=trace.name,
            requests=len(trace),
            span_seconds=trace.span_seconds,
            block_tokens=trace.block_tokens,
            arrivals=Arrivals.of(trace.arrival_seconds),
            input_tokens=Lengths.of(trace.input_tokens),
            output_tokens=Lengths.of(trace.output_tokens),
            sessions=Sessions.of(trace),
            sharing=Sharing.of(trace, capacity_tokens),
        )


def _dispersion(seconds: NDArray[np.float64], width: float) -> float:
    """Variance by mean of the arrivals in windows of that width; the last, partial window is left out."""
    windows = int((seconds[-1] - seconds[0]) // width)
    if windows < 2:
        return 0.0
    counts = np.bincount(((seconds - seconds[0]) // width).astype(np.int64))[:windows]
    return float(counts.var() / counts.mean())


def _mean(values: NDArray[np.bool_]) -> float:
    return float(values.mean()) if len(values) else 0.0
