"""A trace with other rates and lengths."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from sim.traces.draws import Draws
from sim.traces.errors import TraceError

if TYPE_CHECKING:
    from sim.traces.trace import Trace


def rate(trace: Trace, factor: float) -> Trace:
    """`factor` times as many requests per second; the delays within sessions shrink alike. O(n)."""
    return trace.with_columns(
        arrival_seconds=trace.arrival_seconds / factor, delay_seconds=trace.delay_seconds / factor
    )


def to_rate(trace: Trace, per_second: float) -> Trace:
    """So many requests per second, as the arrivals tell it. O(n).

    :raises TraceError: all requests arrive at once, so that there is no rate to change.
    """
    if not trace.span_seconds:
        raise TraceError("all requests arrive at once: there is no rate to scale", path=trace.name)
    return rate(trace, per_second * trace.span_seconds / len(trace))


def input_tokens(trace: Trace, factor: float) -> Trace:
    """Prompts `factor` times as long, and the blocks that their ids name alike, so that the same share of them is shared. O(n).

    A block has a whole number of tokens; so with ids, the factor is the nearest that it allows (steps of 1/512 for Mooncake's).
    """
    block_tokens = max(1, round(trace.block_tokens * factor)) if len(trace.blocks) else trace.block_tokens
    exact = block_tokens / trace.block_tokens if len(trace.blocks) else factor
    return trace.with_columns(
        input_tokens=np.ceil(trace.input_tokens * exact).astype(np.int64), block_tokens=block_tokens
    )


def output_tokens(trace: Trace, factor: float) -> Trace:
    """Outputs `factor` times as long. What later turns hold of them stays as it is. O(n)."""
    return trace.with_columns(output_tokens=np.ceil(trace.output_tokens * factor).astype(np.int64))


def smooth_arrivals(trace: Trace, seed: int = 0) -> Trace:
    """Requests that arrive at the same time, spread at random over the time until the next ones arrive.

    Recorders round: Mooncake's conversation trace has ten arrivals every 3 seconds, which meet as a burst that never was. The order
    stays; the last burst is spread over the mean time between two. O(n log n).
    """
    times, burst = np.unique(trace.arrival_seconds, return_inverse=True)
    if len(times) < 2:
        return trace
    gaps = np.diff(times, append=times[-1] + (times[-1] - times[0]) / (len(times) - 1))
    spread = times[burst] + Draws(seed).uniform(len(trace)) * gaps[burst]
    return trace.with_columns(arrival_seconds=np.sort(spread))
