"""The prefix tree of a trace, and how long ago each of its nodes was used, compiled."""

from __future__ import annotations

import numpy as np
from numba import int64, njit, uint64, void

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX = np.uint64(0xD6E8FEB86659FD93)
_HALF = np.uint64(32)
_ROOT = np.int64(-1)

NEVER = -1
"""Of a node that was not used before."""


@njit(uint64(int64, uint64), cache=True, nogil=True)
def _mixed(parent, block):  # type: ignore[no-untyped-def] # numba's signature says it; so below
    """64 bits that depend on all bits of both."""
    mixed = (block ^ (block >> _HALF)) * _MIX + np.uint64(parent + 1) * _GOLDEN
    mixed = (mixed ^ (mixed >> _HALF)) * _MIX
    return mixed ^ (mixed >> _HALF)


@njit(int64[::1](uint64[::1], int64[::1]), cache=True, nogil=True)
def prefix_nodes(blocks, first_block):  # type: ignore[no-untyped-def]
    """Number the prefixes of all requests in order of appearance: equal numbers are equal leading ids. O(m).

    The table of (parent, id) is open addressing with linear probing, at most half full.
    """
    size = 16
    while size < 2 * len(blocks):
        size *= 2
    mask = np.uint64(size - 1)
    table = np.full(size, -1, np.int32)
    parents = np.empty(len(blocks), np.int32)
    names = np.empty(len(blocks), np.uint64)
    nodes = np.empty(len(blocks), np.int64)
    count = 0
    for request in range(len(first_block) - 1):
        parent = _ROOT
        for place in range(first_block[request], first_block[request + 1]):
            block = blocks[place]
            slot = _mixed(parent, block) & mask
            while table[slot] >= 0 and not (parents[table[slot]] == parent and names[table[slot]] == block):
                slot = (slot + np.uint64(1)) & mask
            if table[slot] < 0:
                table[slot], parents[count], names[count] = count, parent, block
                count += 1
            parent = np.int64(table[slot])
            nodes[place] = parent
    return nodes


@njit(int64(int64[::1], int64), cache=True, nogil=True)
def _sum_to(tree, end):  # type: ignore[no-untyped-def]
    """The sum of the first `end` entries of a Fenwick tree. O(log n)."""
    total = 0
    while end > 0:
        total += tree[end]
        end -= end & -end
    return total


@njit(void(int64[::1], int64, int64), cache=True, nogil=True)
def _add_at(tree, entry, value):  # type: ignore[no-untyped-def]
    """Add to an entry of a Fenwick tree. O(log n)."""
    place = entry + 1
    while place < len(tree):
        tree[place] += value
        place += place & -place


@njit(int64(int64[::1], int64[::1], int64, int64), cache=True, nogil=True)
def _same_owner(nodes, owner, place, end):  # type: ignore[no-untyped-def]
    """Where the run of nodes with the same owner ends."""
    run = place
    while run < end and owner[nodes[run]] == owner[nodes[place]]:
        run += 1
    return run


@njit(void(int64[::1], int64[::1], int64[::1]), cache=True, nogil=True)
def known_tokens(nodes, tokens, known):  # type: ignore[no-untyped-def]
    """Write the most tokens that each node named before: of its last block, a text may name fewer than a longer one. O(m)."""
    most = np.zeros(len(nodes), np.int64)
    for place in range(len(nodes)):
        known[place] = most[nodes[place]]
        most[nodes[place]] = max(most[nodes[place]], tokens[place])


@njit(void(int64[::1], int64[::1], int64[::1], int64[::1]), cache=True, nogil=True)
def reuse(nodes, first_block, distance, latest_use):  # type: ignore[no-untyped-def]
    """Write how many other nodes were used since each node's latest use, and which request that was; `NEVER` if none.

    A request uses its prefix from the end to the beginning, so that a parent is always used after its children; a request is the
    latest user (the owner) of the end of its prefix, and later ones of its beginning. So one count per request is enough, in a
    Fenwick tree: O(m + runs of nodes with one owner · log n). Source of the idea: Mattson et al., Evaluation techniques for storage
    hierarchies, 1970 (LRU stack distances).
    """
    owner = np.full(len(nodes), NEVER)
    owned = np.zeros(len(first_block) - 1, np.int64)
    tree = np.zeros(len(first_block), np.int64)
    for request in range(len(owned)):
        start, end = first_block[request], first_block[request + 1]
        place = start
        while place < end:
            run, last = _same_owner(nodes, owner, place, end), owner[nodes[place]]
            if last == NEVER:
                distance[place:run] = latest_use[place:run] = NEVER
            else:
                since = _sum_to(tree, request) - _sum_to(tree, last + 1)
                taken = first_block[last + 1] - first_block[last] - owned[last]
                for one in range(place, run):
                    distance[one], latest_use[one] = since + one - start - taken, last
            place = run
        place = start
        while place < end:
            run, last = _same_owner(nodes, owner, place, end), owner[nodes[place]]
            if last != NEVER:
                owned[last] -= run - place
                _add_at(tree, last, place - run)
            place = run
        owner[nodes[start:end]] = request
        owned[request] = end - start
        _add_at(tree, request, end - start)
