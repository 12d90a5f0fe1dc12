"""A prefix tree grown like another one, compiled."""

from __future__ import annotations

import numpy as np
from numba import int64, njit, uint64

NOBODY = -1
REACH = 128
"""How many requests before and after the wanted one are looked at."""
LONGEST = 1 << 31
"""More blocks than any request has."""


@njit(
    int64(int64, int64, int64, int64, int64[::1], uint64[::1], int64[::1]),
    cache=True,
    nogil=True,
)
def _parent(request, middle, wanted, length, first_block, blocks, owner):  # type: ignore[no-untyped-def] # numba's signature says it
    """The best earlier request to share blocks with, or `NOBODY`: it has as many, used them last, is as long. O(`REACH`)."""
    best, best_rank = NOBODY, np.iinfo(np.int64).max
    for step in range(2 * REACH):
        candidate = middle + (step + 1) // 2 * (1 if step % 2 else -1)
        if candidate < 0 or candidate >= request:
            continue
        count = first_block[candidate + 1] - first_block[candidate]
        usable = min(count, wanted)
        is_last = usable and owner[blocks[first_block[candidate] + usable - 1]] == candidate
        rank = ((wanted - usable) * 2 + (not is_last)) * LONGEST + min(abs(count - length), LONGEST - 1)
        if usable and rank < best_rank:
            best, best_rank = candidate, rank
    return best


@njit(uint64[::1](int64[::1], int64[::1], int64[::1], int64[::1], int64[::1], int64[::1]), cache=True, nogil=True)
def grow(first_block, middle, shared, length, parents, owner):  # type: ignore[no-untyped-def]
    """Ids of all requests; the parents that they share their first blocks with are written, and how many those are.

    Request i shares `shared[i]` blocks with a request near number `middle[i]` that has about `length[i]` blocks; `owner` has room
    for the request that used each id last. O(m + n · `REACH`).
    """
    blocks = np.empty(first_block[-1], np.uint64)
    fresh = 0
    for request in range(len(shared)):
        start, end = first_block[request], first_block[request + 1]
        parent = NOBODY
        if shared[request]:
            parent = _parent(request, middle[request], shared[request], length[request], first_block, blocks, owner)
        parents[request] = parent
        before = first_block[parent] if parent != NOBODY else 0
        most = first_block[parent + 1] - before if parent != NOBODY else 0
        shared[request] = min(shared[request], most)
        for place in range(end - start):
            if place < shared[request]:
                blocks[start + place] = blocks[before + place]
            else:
                blocks[start + place] = fresh
                fresh += 1
            owner[blocks[start + place]] = request
    return blocks
