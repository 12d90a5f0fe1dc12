"""Loops over the requests of sessions, compiled. `previous` is as in `Trace`: an earlier row, or negative."""

from __future__ import annotations

import numpy as np
from numba import boolean, float64, int64, njit, uint64

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX = np.uint64(0xBF58476D1CE4E5B9)


@njit(int64(int64[::1], float64[::1], float64[::1]), cache=True, nogil=True)
def fill_times(previous, seconds, delay):  # type: ignore[no-untyped-def] # numba's signature says it; so below
    """Fill in what is NaN, arrivals from the delays after the predecessor and delays from the arrivals.

    Returns the first request that has neither an arrival nor a predecessor, or is before its predecessor; else -1. O(n).
    """
    for request in range(len(previous)):
        before = previous[request]
        if before < 0:
            if np.isnan(seconds[request]):
                return request
            delay[request] = 0.0
            continue
        if np.isnan(seconds[request]):
            seconds[request] = seconds[before] + (0.0 if np.isnan(delay[request]) else delay[request])
        if seconds[request] < seconds[before]:
            return request
        if np.isnan(delay[request]):
            delay[request] = seconds[request] - seconds[before]
    return -1


@njit(int64[::1](int64[::1]), cache=True, nogil=True)
def session_roots(previous):  # type: ignore[no-untyped-def]
    """The first request of each request's session. O(n)."""
    roots = np.arange(len(previous))
    for request in range(len(previous)):
        if previous[request] >= 0:
            roots[request] = roots[previous[request]]
    return roots


@njit(int64[::1](int64[::1], int64[::1], int64[::1]), cache=True, nogil=True)
def stream_tokens(previous, added, output):  # type: ignore[no-untyped-def]
    """Tokens of a session's text before each request's own: what earlier turns added, and their outputs. O(n)."""
    tokens = np.zeros(len(previous), np.int64)
    for request in range(len(previous)):
        before = previous[request]
        if before >= 0:
            tokens[request] = tokens[before] + added[before] + output[before]
    return tokens


@njit(
    uint64[::1](int64[::1], boolean[::1], int64[::1], uint64[::1], int64[::1], int64[::1], int64),
    cache=True,
    nogil=True,
)
def stream_blocks(  # type: ignore[no-untyped-def]
    previous, is_turn, added, ids, first_id, first_block, block_tokens
):
    """Ids of whole texts, from those of what turns add: see `sim.traces.delta`. O(their number)."""
    blocks = np.empty(first_block[-1], np.uint64)
    for request in range(len(previous)):
        start, count = first_block[request], first_block[request + 1] - first_block[request]
        before = previous[request]
        kept = 0
        if before >= 0:
            kept = first_block[before + 1] - first_block[before]
            for place in range(kept):
                blocks[start + place] = blocks[first_block[before] + place]
        else:
            whole = added[request] // block_tokens if is_turn[request] else count
            kept = min(whole, first_id[request + 1] - first_id[request])
            for place in range(kept):
                blocks[start + place] = ids[first_id[request] + place]
        for place in range(kept, count):
            own = (np.uint64(request + 1) * _GOLDEN + np.uint64(place)) * _MIX
            blocks[start + place] = own ^ (own >> np.uint64(31))
    return blocks
