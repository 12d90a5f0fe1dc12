"""Loops over the requests of sessions, compiled."""

from __future__ import annotations

import numpy as np
from numba import float64, int64, njit


@njit(int64(int64[::1], float64[::1], float64[::1]), cache=True, nogil=True)
def fill_times(previous, seconds, delay):  # type: ignore[no-untyped-def] # numba's signature says it
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
