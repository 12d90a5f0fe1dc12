"""A workload like a given one.

The trace is cut into windows of requests; windows drawn at random, one after another, are the new trace's arrivals and lengths (a
moving-block bootstrap: Künsch, The jackknife and the bootstrap for general stationary observations, 1989). So bursts, lengths, and
what goes with what stay as they are within a window. Each request then shares as many leading blocks as its model did, with an
earlier request that lies as far back as the one its model shared them with, and is as long. So hits and reuse distances stay alike,
and the prefix tree is a new one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from sim.traces.draws import Draws
from sim.traces.reuse import Reuse
from sim.traces.synthesize.fit_kernels import NOBODY, grow
from sim.traces.trace import ALONE, Trace, offsets, slices

if TYPE_CHECKING:
    from numpy.typing import NDArray

WINDOWS = 64
"""The trace has as many requests as so many windows."""


NEAR = 1 / 16
"""How far from its own place a window is drawn, in parts of the trace."""


class Fit(NamedTuple):
    """A made-up trace, and what could not be had as in the model."""

    trace: Trace
    unshared_blocks: int
    """Blocks that should have been shared, but no earlier request near the wanted time had them."""


def fit(model: Trace, requests: int, seed: int) -> Fit:
    """A trace of so many requests like `model`, at its rate. O(n + m).

    A request that followed another one in the model does so here, if it shared most with that one.
    """
    rows, arrival = _windows(model, requests, Draws(seed))
    reuse = Reuse.of(model)
    counts, shared = model.block_counts[rows], reuse.hit_blocks()[rows]
    deepest = np.maximum(reuse.first_block[rows] + shared - 1, 0)
    parent = np.where(shared > 0, reuse.latest_use[deepest] if len(reuse.latest_use) else NOBODY, NOBODY)
    wanted = arrival - (model.arrival_seconds[rows] - model.arrival_seconds[parent])
    first_block, parents, found = offsets(counts), np.empty(requests, np.int64), shared.copy()
    middle, length = np.searchsorted(arrival, wanted), model.block_counts[parent]
    blocks = grow(first_block, middle, found, length, parents, np.empty(first_block[-1], np.int64))
    follows = (model.previous[rows] == parent) & (parent != NOBODY) & (parents != NOBODY)
    made = Trace(
        name=f"like-{model.name}",
        arrival_seconds=arrival,
        input_tokens=model.input_tokens[rows],
        output_tokens=model.output_tokens[rows],
        block_tokens=model.block_tokens,
        blocks=blocks,
        first_block=first_block,
        previous=np.where(follows, parents, ALONE),
        delay_seconds=np.where(follows, model.delay_seconds[rows], 0.0),
    )
    return Fit(made, int((shared - found).sum()))


def _windows(model: Trace, requests: int, draws: Draws) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Rows of the model, and when each arrives in the new trace: a window ends when the next request of the model comes."""
    size = -(-len(model) // WINDOWS)
    windows = -(-requests // size)
    first = (_begins(windows, draws) * (len(model) - size + 1)).astype(np.int64)
    rows = slices(first, np.full(windows, size))[:requests]
    mean_gap = model.span_seconds / max(len(model) - 1, 1)
    arrival = np.append(model.arrival_seconds, model.arrival_seconds[-1] + mean_gap)
    began = offsets(np.rint((arrival[first + size] - arrival[first]) * 1e6).astype(np.int64)) / 1e6
    window = np.arange(requests) // size
    return rows, np.round(began[window] + arrival[rows] - arrival[first][window], 6)


def _begins(windows: int, draws: Draws) -> NDArray[np.float64]:
    """Where the windows begin in the model, in parts of it: near their own place, then anywhere in its second half.

    So caches are as cold at the beginning as in the model, and the rest is as its second half, however long it is made.
    """
    own = np.arange(windows) / WINDOWS
    near = np.clip(own - NEAR, 0.0, 1.0 - 2 * NEAR)
    return np.where(own < 1, near + draws.uniform(windows) * 2 * NEAR, 0.5 + draws.uniform(windows) / 2)
