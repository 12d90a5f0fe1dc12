"""Several traces as one."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from sim.traces.errors import TraceError
from sim.traces.reuse_kernels import prefix_nodes
from sim.traces.trace import ALONE, Trace, offsets, slices

if TYPE_CHECKING:
    from collections.abc import Sequence


def merge(name: str, traces: Sequence[Trace]) -> Trace:
    """All requests by arrival; nothing is shared between traces, and ids are numbered anew. O(n log n + m).

    :raises TraceError: the traces' blocks differ in size.
    """
    sizes = {trace.block_tokens for trace in traces}
    if len(sizes) > 1:
        raise TraceError(f"traces of {sorted(sizes)} tokens a block cannot be merged", field="block_tokens")
    before = offsets(np.array([len(trace) for trace in traces]))
    arrival = np.concatenate([trace.arrival_seconds for trace in traces])
    order = np.argsort(arrival, kind="stable")
    place = np.empty(len(order) + 1, np.int64)
    place[order], place[ALONE] = np.arange(len(order)), ALONE
    previous = [
        np.where(trace.previous == ALONE, ALONE, trace.previous + first)
        for trace, first in zip(traces, before, strict=False)
    ]
    counts = np.concatenate([trace.block_counts for trace in traces])
    starts = offsets(counts)[:-1][order]
    return Trace(
        name=name,
        arrival_seconds=arrival[order],
        input_tokens=np.concatenate([trace.input_tokens for trace in traces])[order],
        output_tokens=np.concatenate([trace.output_tokens for trace in traces])[order],
        block_tokens=sizes.pop(),
        blocks=_apart(traces)[slices(starts, counts[order])],
        first_block=offsets(counts[order]),
        previous=place[np.concatenate(previous)[order]],
        delay_seconds=np.concatenate([trace.delay_seconds for trace in traces])[order],
    )


def _apart(traces: Sequence[Trace]) -> np.ndarray[tuple[int], np.dtype[np.uint64]]:
    """The ids of all traces, of which no two share any."""
    numbered, first = [], 0
    for trace in traces:
        nodes = prefix_nodes(trace.blocks, trace.first_block) + first
        first = int(nodes.max(initial=first - 1)) + 1
        numbered.append(nodes.astype(np.uint64))
    return np.concatenate(numbered)
