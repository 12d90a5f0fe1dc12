"""Loops over a table keyed by (sequence hash, target), compiled.

The table is open addressing with linear probing. A slot is one word: the upper half of the pair's mixed key above its node number
plus 1, and 0 when empty; so growing, and closing the gap that a deletion leaves, read slots alone. A node number is a row in every
column kept of the pair.

A chain's pairs lie all over the table, so walks over one begin with `_touch`: cache misses that nothing waits for overlap.

All of it is one file, since numba's cache of a kernel does not notice a change in another file.
"""

from __future__ import annotations

import numpy as np
from numba import float64, from_dtype, int32, int64, njit, types, uint64, void

KEY = np.dtype([("prefix", np.uint64), ("target", np.int32), ("free", np.int32)])
"""A node's pair. `free` is no part of it: the first rows of this column are a stack of the nodes that are not in use."""
ENTRY = np.dtype([("expires_at", np.float64), ("author", np.int64), ("older", np.int32), ("newer", np.int32)])
"""What is known of one prediction. Rows of a target are linked from its least to its most recently used."""

NOBODY = -1
"""No such node."""
SEVERAL = np.iinfo(np.int64).min
"""The author of what more than one booking counts on."""
ANYONE = SEVERAL + 1
"""Stands for every author."""

SIZE, FREE, SEEN = range(3)
"""The table's counts: pairs, and nodes on the stack; nodes from their sum on were never used. The third is what `_touch` has read:
of no meaning, but kept, so that the compiler does not leave the reading out."""
OLDEST, NEWEST, BLOCKS = range(3)
"""A target's row in the lists of entries: both ends (or `NOBODY`), and the length."""

_HASHES = types.Array(uint64, 1, "A", readonly=True, aligned=False)
"""What comes from outside: a view of a message's bytes is as good as any."""
_SLOTS, _MADE, _COUNTS = uint64[::1], uint64[::1], int64[::1]
_KEYS, _ENTRIES, _LISTS = from_dtype(KEY)[::1], from_dtype(ENTRY)[::1], int64[:, ::1]

_HALF = np.uint64(32)
_LOWER = np.uint64(0xFFFFFFFF)
_ONE = np.uint64(1)
_EMPTY = np.uint64(0)
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX = np.uint64(0xD6E8FEB86659FD93)


# ---- the table


@njit(uint64(uint64, int64), cache=True, nogil=True)
def _mixed(prefix, target):  # type: ignore[no-untyped-def] # numba's signature says it; so below
    """32 bits that depend on all bits of a pair."""
    mixed = prefix + np.uint64(target) * _GOLDEN
    return ((mixed ^ (mixed >> _HALF)) * _MIX) >> _HALF


@njit(uint64(_SLOTS, _KEYS, _HASHES, int64), cache=True, nogil=True)
def _touch(slots, keys, hashes, target):  # type: ignore[no-untyped-def]
    """Read where each pair would be, and the key that is most likely its own."""
    mask = np.uint64(len(slots) - 1)
    seen = _EMPTY
    for prefix in hashes:
        word = slots[_mixed(prefix, target) & mask]
        seen |= keys[max(np.int64(word & _LOWER) - 1, 0)].prefix
    return seen


@njit(int64(_SLOTS, _KEYS, uint64, int64), cache=True, nogil=True)
def find(slots, keys, prefix, target):  # type: ignore[no-untyped-def]
    """A pair's node, or `NOBODY`. O(1)."""
    mask = np.uint64(len(slots) - 1)
    mixed = _mixed(prefix, target)
    place = mixed & mask
    while slots[place] != _EMPTY:
        if slots[place] >> _HALF == mixed:
            node = np.int64(slots[place] & _LOWER) - 1
            if keys[node].prefix == prefix and keys[node].target == target:
                return node
        place = (place + _ONE) & mask
    return NOBODY


@njit(void(_SLOTS, uint64), cache=True, nogil=True)
def _occupy(slots, word):  # type: ignore[no-untyped-def]
    mask = np.uint64(len(slots) - 1)
    place = word >> _HALF & mask
    while slots[place] != _EMPTY:
        place = (place + _ONE) & mask
    slots[place] = word


@njit(void(_SLOTS, uint64), cache=True, nogil=True)
def _close_gap(slots, gap):  # type: ignore[no-untyped-def]
    """Move up what was pushed past a slot that is now empty, so that no probe ends too early."""
    mask = np.uint64(len(slots) - 1)
    place = (gap + _ONE) & mask
    while slots[place] != _EMPTY:
        home = slots[place] >> _HALF
        if (place - home) & mask >= (place - gap) & mask:
            slots[gap] = slots[place]
            gap = place
        place = (place + _ONE) & mask
    slots[gap] = _EMPTY


@njit(int64(_SLOTS, _KEYS, _COUNTS, uint64, int64), cache=True, nogil=True)
def insert(slots, keys, counts, prefix, target):  # type: ignore[no-untyped-def]
    """Give a pair a node. It must have none, and there must be room. O(1)."""
    if counts[FREE]:
        counts[FREE] -= 1
        node = np.int64(keys[counts[FREE]].free)
    else:
        node = counts[SIZE]
    keys[node].prefix, keys[node].target = prefix, target
    mixed = _mixed(prefix, target)
    _occupy(slots, mixed << _HALF | np.uint64(node + 1))
    counts[SIZE] += 1
    return node


@njit(void(_SLOTS, _KEYS, _COUNTS, int64), cache=True, nogil=True)
def delete(slots, keys, counts, node):  # type: ignore[no-untyped-def]
    """Take a pair's node back. O(1)."""
    mask = np.uint64(len(slots) - 1)
    place = _mixed(keys[node].prefix, keys[node].target) & mask
    while slots[place] & _LOWER != np.uint64(node + 1):
        place = (place + _ONE) & mask
    _close_gap(slots, place)
    keys[counts[FREE]].free = node
    counts[FREE] += 1
    counts[SIZE] -= 1


@njit(void(_SLOTS, _SLOTS), cache=True, nogil=True)
def rehash(slots, larger):  # type: ignore[no-untyped-def]
    """Put all words of a table into a larger, empty one. O(slots)."""
    for word in slots:
        if word != _EMPTY:
            _occupy(larger, word)


# ---- predictions: entries in a list per target, least recently used first


@njit(void(_ENTRIES, _LISTS, int64, int64), cache=True, nogil=True)
def _append(entries, lists, target, node):  # type: ignore[no-untyped-def]
    newest = lists[target, NEWEST]
    entries[node].older, entries[node].newer = newest, NOBODY
    if newest == NOBODY:
        lists[target, OLDEST] = node
    else:
        entries[newest].newer = node
    lists[target, NEWEST] = node
    lists[target, BLOCKS] += 1


@njit(void(_ENTRIES, _LISTS, int64, int64), cache=True, nogil=True)
def _unlink(entries, lists, target, node):  # type: ignore[no-untyped-def]
    older, newer = entries[node].older, entries[node].newer
    if older == NOBODY:
        lists[target, OLDEST] = newer
    else:
        entries[older].newer = newer
    if newer == NOBODY:
        lists[target, NEWEST] = older
    else:
        entries[newer].older = older
    lists[target, BLOCKS] -= 1


@njit(uint64(_SLOTS, _KEYS, _COUNTS, _ENTRIES, _LISTS, int64, int64), cache=True, nogil=True)
def _drop(slots, keys, counts, entries, lists, target, node):  # type: ignore[no-untyped-def]
    """Forget an entry; returns what prefix it was."""
    prefix = keys[node].prefix
    _unlink(entries, lists, target, node)
    delete(slots, keys, counts, node)
    return prefix


@njit(int64(_SLOTS, _KEYS, _COUNTS, _ENTRIES, _LISTS, int64, _HASHES, float64, int64, _MADE), cache=True, nogil=True)
def predict(slots, keys, counts, entries, lists, target, chain, expires_at, author, made):  # type: ignore[no-untyped-def]
    """Make the chain the most recently used, the deepest prefix first; writes what is new to `made`, returns how many. O(n)."""
    new = 0
    counts[SEEN] = _touch(slots, keys, chain, target)
    for prefix in chain[::-1]:
        node = find(slots, keys, prefix, target)
        if node == NOBODY:
            node = insert(slots, keys, counts, prefix, target)
            entries[node].author = author
            made[new] = prefix
            new += 1
        else:
            _unlink(entries, lists, target, node)
            if entries[node].author != author:
                entries[node].author = SEVERAL
        entries[node].expires_at = expires_at
        _append(entries, lists, target, node)
    return new


@njit(int64(_SLOTS, _KEYS, _COUNTS, _ENTRIES, _LISTS, int64, float64, _MADE), cache=True, nogil=True)
def drop_expired(slots, keys, counts, entries, lists, target, now, dropped):  # type: ignore[no-untyped-def]
    """Drop entries whose time has come; writes their prefixes to `dropped`, returns how many. O(dropped)."""
    count = 0
    while lists[target, OLDEST] != NOBODY and entries[lists[target, OLDEST]].expires_at <= now:
        dropped[count] = _drop(slots, keys, counts, entries, lists, target, lists[target, OLDEST])
        count += 1
    return count


@njit(int64(_SLOTS, _KEYS, _COUNTS, _ENTRIES, _LISTS, int64, int64, _MADE), cache=True, nogil=True)
def drop_oldest(slots, keys, counts, entries, lists, target, capacity, dropped):  # type: ignore[no-untyped-def]
    """Drop the least recently used above a capacity; writes their prefixes to `dropped`, returns how many. O(dropped)."""
    count = 0
    while lists[target, BLOCKS] > capacity:
        dropped[count] = _drop(slots, keys, counts, entries, lists, target, lists[target, OLDEST])
        count += 1
    return count


@njit(int64(_SLOTS, _KEYS, _COUNTS, _ENTRIES, _LISTS, int64, _HASHES, int64, _MADE), cache=True, nogil=True)
def drop_given(slots, keys, counts, entries, lists, target, hashes, author, dropped):  # type: ignore[no-untyped-def]
    """Drop those of the given prefixes that are by this author alone; writes them to `dropped`, returns how many. O(n)."""
    count = 0
    if lists[target, BLOCKS] == 0:
        return count
    counts[SEEN] = _touch(slots, keys, hashes, target)
    for prefix in hashes:
        node = find(slots, keys, prefix, target)
        if node != NOBODY and (author == ANYONE or entries[node].author == author):
            dropped[count] = _drop(slots, keys, counts, entries, lists, target, node)
            count += 1
    return count


@njit(int64(_ENTRIES, _LISTS, float64), cache=True, nogil=True)
def due(entries, lists, now):  # type: ignore[no-untyped-def]
    """A target with an entry whose time has come, or `NOBODY`. O(targets)."""
    for target in range(len(lists)):
        oldest = lists[target, OLDEST]
        if oldest != NOBODY and entries[oldest].expires_at <= now:
            return target
    return NOBODY


@njit(float64(_ENTRIES, _LISTS), cache=True, nogil=True)
def next_due(entries, lists):  # type: ignore[no-untyped-def]
    """When the time of the first entry comes; infinite without entries. O(targets)."""
    soonest = np.inf
    for target in range(len(lists)):
        oldest = lists[target, OLDEST]
        if oldest != NOBODY:
            soonest = min(soonest, entries[oldest].expires_at)
    return soonest


@njit(void(_KEYS, _ENTRIES, int64, _MADE), cache=True, nogil=True)
def listed(keys, entries, node, held):  # type: ignore[no-untyped-def]
    """Write the prefixes of a list that begins at a node. O(n)."""
    count = 0
    while node != NOBODY:
        held[count] = keys[node].prefix
        count += 1
        node = np.int64(entries[node].newer)


# ---- references: how many requests in flight have a prefix in their prompt


@njit(int64(_SLOTS, _KEYS, _COUNTS, int32[::1], int64, _HASHES, int32[::1]), cache=True, nogil=True)
def reference(slots, keys, counts, references, target, hashes, nodes):  # type: ignore[no-untyped-def]
    """One more request has these; writes their nodes to `nodes`, and returns how many no other one had. O(n)."""
    new = 0
    counts[SEEN] = _touch(slots, keys, hashes, target)
    for index in range(len(hashes)):
        node = find(slots, keys, hashes[index], target)
        if node == NOBODY:
            node = insert(slots, keys, counts, hashes[index], target)
            references[node] = 0
            new += 1
        references[node] += 1
        nodes[index] = node
    return new


@njit(int64(_SLOTS, _KEYS, _COUNTS, int32[::1], int32[::1]), cache=True, nogil=True)
def release(slots, keys, counts, references, nodes):  # type: ignore[no-untyped-def]
    """One request less has these nodes; returns how many nobody has any more. O(n)."""
    gone = 0
    for node in nodes:
        references[node] -= 1
        if references[node] == 0:
            delete(slots, keys, counts, node)
            gone += 1
    return gone


@njit(void(_SLOTS, _KEYS, _HASHES, int32[::1]), cache=True, nogil=True)
def leading(slots, keys, hashes, depths):  # type: ignore[no-untyped-def]
    """How many leading prefixes each target has, written to `depths`. O(targets · log n): what is in flight are whole prompts, so
    a prefix comes with all before it.
    """
    for target in range(len(depths)):
        held, missing = 0, len(hashes) + 1
        reach = 1
        while held + 1 < missing:
            middle = min(reach, held + (missing - held) // 2)
            if find(slots, keys, hashes[middle - 1], target) != NOBODY:
                held = middle
                reach = 4 * middle
            else:
                missing = middle
        depths[target] = held
