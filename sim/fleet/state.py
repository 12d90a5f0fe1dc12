"""The kernels' memory: rows of engines, sequences, tree nodes, and of what is to be told."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

ENGINE = np.dtype(
    [
        # the configuration
        ("page_size", np.int64),
        ("capacity_tokens", np.int64),
        ("chunk_tokens", np.int64),
        ("input_tokens", np.int64),
        ("running_limit", np.int64),
        ("log_interval", np.int64),
        ("load_interval", np.int64),
        ("prefill_interval", np.int64),
        ("knows_lengths", np.int64),
        ("notices_at_once", np.int64),
        ("overlaps", np.int64),
        ("timing", np.int64),
        # memory
        ("free_tokens", np.int64),
        ("evictable_tokens", np.int64),
        ("protected_tokens", np.int64),
        ("root", np.int64),
        ("oldest", np.int64),
        ("newest", np.int64),
        ("nodes", np.int64),
        ("tick", np.int64),
        ("numbers", np.int64),
        # requests
        ("coming", np.int64),
        ("coming_last", np.int64),
        ("waiting", np.int64),
        ("waiting_last", np.int64),
        ("doomed", np.int64),
        ("doomed_last", np.int64),
        ("chunked", np.int64),
        ("running", np.int64),
        ("waiting_requests", np.int64),
        ("waiting_tokens", np.int64),
        ("waiting_uncached_tokens", np.int64),
        ("full", np.int64),
        ("left", np.int64),
        ("passes", np.int64),
        ("asleep", np.int64),
        ("flight", np.int64),
        ("steady", np.int64),
        # time
        ("begin", np.float64),
        ("ratio", np.float64),
        ("decodes_since_prefill", np.int64),
        ("decodes_since_report", np.int64),
        # what is still to be told
        ("pending", np.int64),
        ("pending_last", np.int64),
        ("published", np.int64),
        ("published_last", np.int64),
        ("loads", np.int64),
        ("loads_last", np.int64),
        ("publications", np.int64),
        ("lost_publications", np.int64),
        # totals
        ("prefill_steps", np.int64),
        ("decode_steps", np.int64),
        ("prefill_tokens", np.int64),
        ("cached_tokens", np.int64),
        ("generated_tokens", np.int64),
        ("evicted_tokens", np.int64),
        ("retractions", np.int64),
        ("prefill_seconds", np.float64),
        ("decode_seconds", np.float64),
    ]
)
SEQUENCE = np.dtype(
    [
        ("request", np.int32),
        ("engine", np.int32),
        ("prompt_tokens", np.int32),
        ("max_new_tokens", np.int32),
        ("output_tokens", np.int32),
        ("node", np.int32),
        ("cached", np.int32),
        ("computed", np.int32),
        ("held", np.int32),
        ("extend", np.int32),
        ("first_match", np.int32),
        ("last_match", np.int32),
        ("retractions", np.int32),
        ("before", np.int32),
        ("after", np.int32),
        ("next_doomed", np.int32),
        ("place", np.int8),
        ("aborted", np.int8),
        ("built", np.int8),
        ("flies", np.int8),
        ("submitted_at", np.float64),
        ("queue_seconds", np.float64),
        ("first_token_seconds", np.float64),
        ("last_token_seconds", np.float64),
        ("finish_seconds", np.float64),
    ],
    align=True,
)
"""A request in an engine. It holds KV memory for `held` tokens, of which the first `cached` are the cache's. A `built` one comes
with its prompt's KV and first token from another engine, and leaves nothing in the cache."""
STEP = np.dtype(
    [
        ("kind", np.int64),
        ("size", np.int64),
        ("unfinished", np.int64),
        ("load", np.int64),
        ("seconds", np.float64),
    ]
)
"""A step that is launched: its memory is taken, its tokens are not there yet. Each engine has two rows: one may be in flight while
the next is planned."""
NODE = np.dtype(
    [
        ("key", np.uint64),
        ("last_access", np.int64),
        ("number", np.int64),
        ("parent", np.int32),
        ("owner", np.int32),
        ("start", np.int32),
        ("end", np.int32),
        ("children", np.int32),
        ("locks", np.int32),
        ("older", np.int32),
        ("newer", np.int32),
        ("engine", np.int32),
        ("listed", np.int32),
    ],
    align=True,
)
CHANGE = np.dtype(
    [
        ("time", np.float64),
        ("next", np.int64),
        ("kind", np.int32),
        ("owner", np.int32),
        ("start", np.int32),
        ("end", np.int32),
    ],
    align=True,
)
"""The cache holds (`STORED`) or no longer holds (`REMOVED`) these tokens of the owner."""
LOAD = np.dtype(
    [
        ("time", np.float64),
        ("next", np.int64),
        ("running_requests", np.int64),
        ("waiting_requests", np.int64),
        ("used_tokens", np.int64),
        ("waiting_uncached_tokens", np.int64),
        ("total_tokens", np.int64),
        ("prefill_tokens", np.int64),
        ("prefill_seconds", np.float64),
    ]
)
NOTICE = np.dtype(
    [("time", np.float64), ("sequence", np.int32), ("kind", np.int32), ("cached_tokens", np.int64)], align=True
)


class State(NamedTuple):
    """All that the kernels work on."""

    engines: Any
    """`ENGINE`, one row each."""
    sequences: Any
    """`SEQUENCE`, one row per request and leg."""
    nodes: Any
    """`NODE`; the first rows are the engines' roots."""
    slots: Any
    """The table of children, uint64, a power of two, at least twice as many as nodes."""
    changes: Any
    """`CHANGE`, in chains."""
    loads: Any
    """`LOAD`, in chains."""
    notices: Any
    """`NOTICE`, those of one engine in order of time."""
    running: Any
    """int32 (engines, most running requests): sequences that decode, in the order in which they joined."""
    steps: Any
    """`STEP`, two rows per engine."""
    flying: Any
    """int32 (2 · engines, most running requests + 1): the sequences of each step."""
    parameters: Any
    """float64 (engines, most parameters): the timing models' numbers."""
    counts: Any
    """int64 (COUNTS,), see there."""
    gaps: Any
    """int64 (GAP_BINS,): token gaps by length."""
    numbers: Any
    """float64 (NUMBERS,), see there."""
    blocks: Any
    first_block: Any
    """The trace's ids, see `sim.traces.Trace`."""
    named: Any
    """int64 (requests,): leading tokens of each request that ids name."""
    block_tokens: Any
    """int64 (1,)"""
