"""Many engines at once, compiled: what `sim.engine` does step by step, on arrays and without tokens.

A cached run of tokens is (owner, start, end): the tokens that one request has there. What two requests have in common is told by
the trace's ids, so nothing is ever copied. Engines, requests, tree nodes and changes are rows of record arrays and refer to each
other by row; `NONE` is no row. All engines' nodes share one table of children, open addressing with linear probing: a slot is one
word, the upper half of the mixed (parent, key of the first page) above the node's row plus 1, and 0 when empty.

All of it is one file, since numba's cache of a kernel does not notice a change in another file (it does notice one in the types of
`state`). The names of the reference's parts are kept: `sim.engine.cache` (match, insert, lock, evict), `admission`, `scheduler`.
tests/sim/fleet holds both to be equal.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import float64, from_dtype, int64, njit, typeof, types, uint64, void

from sim.engine.timing.kernels import decode_seconds, prefill_seconds
from sim.fleet.state import CHANGE, ENGINE, LOAD, NODE, NOTICE, SEQUENCE, STEP, State

NONE = -1
NOWHERE, COMING, WAITING, RUNNING, ENDED = range(5)
"""Places of a sequence; between two chunks it is `RUNNING`."""
NOTHING, PREFILL, DECODE = range(3)
"""What a step does."""
STORED, REMOVED = 0, 1
FIRST_TOKEN, FINISH, ABORT = range(3)
"""What a notice tells."""
(
    NODES,
    FREE_NODE,
    NODE_TOP,
    FREE_CHANGE,
    CHANGES,
    FREE_LOAD,
    LOADS,
    NOTICES,
    LOSS_SEED,
    COUNTS,
) = range(10)
"""What `State.counts` counts: live nodes, the first of the free ones, rows never used; the same for changes and loads; notices."""
LOSS, REACHED, NUMBERS = range(3)
"""What `State.numbers` holds: the share of publications that are lost, and until when the last `advance` went."""
DONE, MORE_NODES, MORE_CHANGES, MORE_LOADS, MORE_NOTICES = range(5)
"""Why `advance` returned: done, or an array has to grow first."""

START_RATIO = 0.7
FLOOR_RATIO = 0.14 * START_RATIO
RATIO_STEP = (START_RATIO - FLOOR_RATIO) / 600
LOOKAHEAD_STEPS = 20
MOST_RESERVED_TOKENS = 4096
"""These five: `sim.engine.admission`."""
MOST_SORTED = 128
REFRESH_INTERVAL = 32
"""These two: `sim.engine.queue`."""
GAP_BINS = 26 << 4
"""Token gaps are counted in 16 bins per octave, from 2^-20 s (about a microsecond) to 64 s; what is beyond, at the ends."""
_GAP_BITS = 48
"""Bits of a float64 below its exponent and the four after that."""
_SHORTEST_GAP = (1023 - 20) << 4

_HALF = np.uint64(32)
_LOWER = np.uint64(0xFFFFFFFF)
_ONE = np.uint64(1)
_EMPTY = np.uint64(0)
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_A = np.uint64(0xBF58476D1CE4E5B9)
_MIX_B = np.uint64(0x94D049BB133111EB)
_OWN = np.uint64(0xD6E8FEB86659FD93)


_UNCOUNTED: Any = {"_nrt": False}
"""Nothing is allocated here, so the arrays' references need no counting: atomic operations that cost more than the rest."""
inner: Any = njit(**_UNCOUNTED)


def entry(signature: Any) -> Any:
    """Compile what Python calls."""
    return njit(signature, cache=True, nogil=True, **_UNCOUNTED)


# ---- content


@inner
def _mixed(word):  # type: ignore[no-untyped-def] # numba's signature says it; so below
    """Steele, Lea and Flood's SplitMix64 finalizer."""
    word = (word ^ (word >> np.uint64(30))) * _MIX_A
    word = (word ^ (word >> np.uint64(27))) * _MIX_B
    return word ^ (word >> np.uint64(31))


@inner
def _page_key(state, request, position, page_size):  # type: ignore[no-untyped-def]
    """Tells a page from others that could follow the same prefix: by its ids, or as the request's own."""
    if position + page_size > state.named[request]:
        return _mixed(np.uint64(request) * _GOLDEN + np.uint64(position)) ^ _OWN
    size = state.block_tokens[0]
    first = state.first_block[request]
    key = _GOLDEN
    for block in range(position // size, (position + page_size - 1) // size + 1):
        key = _mixed((key ^ state.blocks[first + block]) + _GOLDEN)
    return key


@inner
def _common_end(state, one, other, position, end, page_size):  # type: ignore[no-untyped-def]
    """How far two requests agree, in whole pages, given that they do up to `position`; at most `end`."""
    if one == other:
        return end
    size = state.block_tokens[0]
    end = min(end, state.named[one], state.named[other])
    first, second = state.first_block[one], state.first_block[other]
    block = position // size
    while block * size < end and state.blocks[first + block] == state.blocks[second + block]:
        block += 1
    return max(position, min(end, block * size) // page_size * page_size)


# ---- the table of children


@inner
def _mixed_child(parent, key):  # type: ignore[no-untyped-def]
    return _mixed(key + np.uint64(parent) * _GOLDEN) >> _HALF


@inner
def _child(state, parent, key):  # type: ignore[no-untyped-def]
    """The child of a node whose first page has that key, or `NONE`."""
    mask = np.uint64(len(state.slots) - 1)
    mixed = _mixed_child(parent, key)
    place = mixed & mask
    while state.slots[place] != _EMPTY:
        if state.slots[place] >> _HALF == mixed:
            row = np.int64(state.slots[place] & _LOWER) - 1
            if state.nodes[row].key == key and state.nodes[row].parent == parent:
                return row
        place = (place + _ONE) & mask
    return NONE


@inner
def _enter_child(state, row):  # type: ignore[no-untyped-def]
    slots, mask = state.slots, np.uint64(len(state.slots) - 1)
    mixed = _mixed_child(state.nodes[row].parent, state.nodes[row].key)
    place = mixed & mask
    while slots[place] != _EMPTY:
        place = (place + _ONE) & mask
    slots[place] = mixed << _HALF | np.uint64(row + 1)


@inner
def _drop_child(state, row):  # type: ignore[no-untyped-def]
    slots, mask = state.slots, np.uint64(len(state.slots) - 1)
    gap = _mixed_child(state.nodes[row].parent, state.nodes[row].key) & mask
    while slots[gap] & _LOWER != np.uint64(row + 1):
        gap = (gap + _ONE) & mask
    place = (gap + _ONE) & mask
    while slots[place] != _EMPTY:  # move up what was pushed past the slot that is empty now
        if (place - (slots[place] >> _HALF)) & mask >= (place - gap) & mask:
            slots[gap] = slots[place]
            gap = place
        place = (place + _ONE) & mask
    slots[gap] = _EMPTY


# ---- the radix tree: sim.engine.cache


@inner
def _new_node(state, number, parent, owner, start, end, key):  # type: ignore[no-untyped-def]
    counts = state.counts
    row = counts[FREE_NODE]
    if row == NONE:
        row = counts[NODE_TOP]
        counts[NODE_TOP] += 1
    else:
        counts[FREE_NODE] = state.nodes[row].older
    counts[NODES] += 1
    engine, node = state.engines[number], state.nodes[row]
    engine.nodes += 1
    engine.numbers += 1
    node.key, node.parent, node.owner, node.start, node.end = key, parent, owner, start, end
    node.number, node.engine, node.children, node.locks, node.listed = engine.numbers, number, 0, 0, 0
    return row


@inner
def _free_node(state, row):  # type: ignore[no-untyped-def]
    state.engines[state.nodes[row].engine].nodes -= 1
    state.nodes[row].engine = NONE
    state.nodes[row].older = state.counts[FREE_NODE]
    state.counts[FREE_NODE] = row
    state.counts[NODES] -= 1


@inner
def _goes_after(node, other):  # type: ignore[no-untyped-def]
    """Whether a node is evicted after another."""
    return node.last_access > other.last_access or (
        node.last_access == other.last_access and node.number > other.number
    )


@inner
def _list(state, engine, row, from_oldest):  # type: ignore[no-untyped-def]
    """Enter a node into the eviction order if it may be evicted. Its place is close to one end: the caller knows which."""
    nodes, node = state.nodes, state.nodes[row]
    if node.parent == NONE or node.children or node.locks:
        return
    if from_oldest:
        newer = engine.oldest
        while newer != NONE and _goes_after(node, nodes[newer]):
            newer = nodes[newer].newer
        older = engine.newest if newer == NONE else nodes[newer].older
    else:
        older = engine.newest
        while older != NONE and not _goes_after(node, nodes[older]):
            older = nodes[older].older
        newer = engine.oldest if older == NONE else nodes[older].newer
    node.older, node.newer, node.listed = older, newer, 1
    if older == NONE:
        engine.oldest = row
    else:
        nodes[older].newer = row
    if newer == NONE:
        engine.newest = row
    else:
        nodes[newer].older = row


@inner
def _unlist(state, engine, row):  # type: ignore[no-untyped-def]
    nodes, node = state.nodes, state.nodes[row]
    if not node.listed:
        return False
    if node.older == NONE:
        engine.oldest = node.newer
    else:
        nodes[node.older].newer = node.newer
    if node.newer == NONE:
        engine.newest = node.older
    else:
        nodes[node.newer].older = node.older
    node.listed = 0
    return True


@inner
def _split(state, number, row, end):  # type: ignore[no-untyped-def]
    """Cut a node; returns the new upper half. Nothing is published: the pages stay."""
    nodes = state.nodes
    _drop_child(state, row)
    node = nodes[row]
    upper = _new_node(state, number, node.parent, node.owner, node.start, end, node.key)
    nodes[upper].locks, nodes[upper].last_access, nodes[upper].children = node.locks, node.last_access, 1
    node.parent, node.start = upper, end
    node.key = _page_key(state, node.owner, end, state.engines[number].page_size)
    _enter_child(state, upper)
    _enter_child(state, row)
    return upper


@inner
def _descend(state, number, request, length):  # type: ignore[no-untyped-def]
    """Walk down as far as a request's first `length` tokens agree, touching each node; returns the last one and its end."""
    engine, nodes = state.engines[number], state.nodes
    page_size = engine.page_size
    row, position = engine.root, 0
    while position < length:
        child = _child(state, row, _page_key(state, request, position, page_size))
        if child == NONE:
            break
        listed = _unlist(state, engine, child)
        nodes[child].last_access = engine.tick  # of the whole node: what a split cuts off counts as used too
        if listed:
            _list(state, engine, child, False)
        end = min(np.int64(nodes[child].end), length)
        end = _common_end(state, request, nodes[child].owner, position, end, page_size)
        if end < nodes[child].end:
            child = _split(state, number, child, end)
        row, position = child, end
    return row, position


@inner
def _match(state, number, request, length):  # type: ignore[no-untyped-def]
    engine = state.engines[number]
    engine.tick += 1
    return _descend(state, number, request, length // engine.page_size * engine.page_size)


@inner
def _insert(state, number, request, length):  # type: ignore[no-untyped-def]
    """Cache a request's first `length` tokens, whole pages; returns the last node and how many were not cached before."""
    engine = state.engines[number]
    engine.tick += 1
    row, position = _descend(state, number, request, length)
    if position == length:
        return row, 0
    key = _page_key(state, request, position, engine.page_size)
    leaf = _new_node(state, number, row, request, position, length, key)
    state.nodes[leaf].last_access = engine.tick
    _unlist(state, engine, row)
    state.nodes[row].children += 1
    _enter_child(state, leaf)
    engine.evictable_tokens += length - position
    _list(state, engine, leaf, False)
    _change(state, engine, STORED, request, position, length)
    return leaf, length - position


@inner
def _lock(state, engine, row):  # type: ignore[no-untyped-def]
    nodes = state.nodes
    while nodes[row].parent != NONE:
        node = nodes[row]
        if node.locks == 0:
            _unlist(state, engine, row)
            engine.evictable_tokens -= node.end - node.start
            engine.protected_tokens += node.end - node.start
        node.locks += 1
        row = node.parent


@inner
def _unlock(state, engine, row):  # type: ignore[no-untyped-def]
    nodes = state.nodes
    while nodes[row].parent != NONE:
        node = nodes[row]
        node.locks -= 1
        if node.locks == 0:
            engine.evictable_tokens += node.end - node.start
            engine.protected_tokens -= node.end - node.start
            _list(state, engine, row, False)
        row = node.parent


@inner
def _evict(state, number, tokens):  # type: ignore[no-untyped-def]
    """Drop least recently used leaves, whole, until so many tokens are free or none is left."""
    engine, nodes = state.engines[number], state.nodes
    freed = 0
    while freed < tokens and engine.oldest != NONE:
        row = engine.oldest
        node = nodes[row]
        _unlist(state, engine, row)
        _drop_child(state, row)
        freed += node.end - node.start
        _change(state, engine, REMOVED, node.owner, node.start, node.end)
        parent = node.parent
        nodes[parent].children -= 1
        _free_node(state, row)
        _list(state, engine, parent, True)
    engine.evictable_tokens -= freed
    engine.free_tokens += freed
    engine.evicted_tokens += freed


# ---- what is to be told


@inner
def _change(state, engine, kind, owner, start, end):  # type: ignore[no-untyped-def]
    row = state.counts[FREE_CHANGE]
    state.counts[FREE_CHANGE] = state.changes[row].next
    state.counts[CHANGES] += 1
    change = state.changes[row]
    change.kind, change.owner, change.start, change.end, change.next = kind, owner, start, end, NONE
    if engine.pending == NONE:
        engine.pending = row
    else:
        state.changes[engine.pending_last].next = row
    engine.pending_last = row


@inner
def _free_change(state, row):  # type: ignore[no-untyped-def]
    state.changes[row].next = state.counts[FREE_CHANGE]
    state.counts[FREE_CHANGE] = row
    state.counts[CHANGES] -= 1


@inner
def _free_load(state, row):  # type: ignore[no-untyped-def]
    state.loads[row].next = state.counts[FREE_LOAD]
    state.counts[FREE_LOAD] = row
    state.counts[LOADS] -= 1


@inner
def _is_lost(state, number, publication):  # type: ignore[no-untyped-def]
    if state.numbers[LOSS] <= 0.0:
        return False
    word = _mixed(np.uint64(state.counts[LOSS_SEED]) + _GOLDEN * np.uint64(number + 1))
    word = _mixed(word + _GOLDEN * np.uint64(publication))
    return np.float64(word >> np.uint64(11)) * 2.0**-53 < state.numbers[LOSS]


@inner
def _publish(state, number, time):  # type: ignore[no-untyped-def]
    """Publish what changed. What is lost comes with the next publication: a gap is noticed there, and mended by a snapshot."""
    engine = state.engines[number]
    if engine.pending == NONE:
        return
    engine.publications += 1
    if _is_lost(state, number, engine.publications):
        engine.lost_publications += 1
        return
    row = engine.pending
    while row != NONE:
        state.changes[row].time = time
        row = state.changes[row].next
    if engine.published == NONE:
        engine.published = engine.pending
    else:
        state.changes[engine.published_last].next = engine.pending
    engine.published_last = engine.pending_last
    engine.pending = NONE


@inner
def _load(state, number):  # type: ignore[no-untyped-def]
    """Take down the load; returns the row."""
    engine = state.engines[number]
    engine.decodes_since_report = 0
    row = state.counts[FREE_LOAD]
    state.counts[FREE_LOAD] = state.loads[row].next
    state.counts[LOADS] += 1
    load = state.loads[row]
    pending = 0
    if engine.chunked != NONE:
        chunked = state.sequences[engine.chunked]
        pending = chunked.prompt_tokens + chunked.output_tokens - chunked.cached
    used = engine.capacity_tokens - engine.free_tokens - engine.evictable_tokens
    load.next = NONE
    load.running_requests, load.waiting_requests = engine.running, engine.waiting_requests
    load.used_tokens, load.total_tokens = used, used + engine.waiting_tokens
    load.waiting_uncached_tokens = pending + engine.waiting_uncached_tokens
    load.prefill_tokens, load.prefill_seconds = engine.prefill_tokens, engine.prefill_seconds
    return row


@inner
def _report(state, number, row, time):  # type: ignore[no-untyped-def]
    """Report a load."""
    engine = state.engines[number]
    state.loads[row].time = time
    if engine.loads == NONE:
        engine.loads = row
    else:
        state.loads[engine.loads_last].next = row
    engine.loads_last = row


@inner
def _notify(state, row, kind):  # type: ignore[no-untyped-def]
    """Its time is the step's end, set when that is known."""
    notice = state.notices[state.counts[NOTICES]]
    notice.sequence, notice.kind, notice.cached_tokens = row, kind, state.sequences[row].first_match
    state.counts[NOTICES] += 1


@inner
def _stamp(state, begin, time):  # type: ignore[no-untyped-def]
    """The step ends: set the time of what it brought."""
    for index in range(begin, state.counts[NOTICES]):
        notice = state.notices[index]
        notice.time = time
        if notice.kind != FIRST_TOKEN:
            state.sequences[notice.sequence].finish_seconds = time


@inner
def _token_at(state, row, time):  # type: ignore[no-untyped-def]
    """A token comes out: note the gap since the one before it."""
    sequence = state.sequences[row]
    if np.isnan(sequence.first_token_seconds):
        sequence.first_token_seconds = time
    else:
        state.gaps[_gap_bin(time - sequence.last_token_seconds)] += 1
    sequence.last_token_seconds = time


@inner
def _gap_bin(seconds):  # type: ignore[no-untyped-def]
    """Sixteen bins per octave, straight from the number's exponent and the first bits after it."""
    return max(0, min(GAP_BINS - 1, (np.float64(seconds).view(np.int64) >> _GAP_BITS) - _SHORTEST_GAP))


# ---- memory: sim.engine.scheduler


@inner
def _paged(tokens, page_size):  # type: ignore[no-untyped-def]
    return (tokens + page_size - 1) // page_size * page_size


@inner
def _make_room(state, number, tokens, margin_tokens):  # type: ignore[no-untyped-def]
    """Evict until `tokens` (and, if there is enough to evict, the margin too) are free."""
    engine = state.engines[number]
    short = tokens + margin_tokens - engine.free_tokens
    if tokens and short > 0:
        _evict(state, number, short)
    return engine.free_tokens >= tokens


@inner
def _hand_over(state, number, row, tokens):  # type: ignore[no-untyped-def]
    """Move the full pages of a sequence's first `tokens` into the cache; pages that the cache had already are freed."""
    engine, sequence = state.engines[number], state.sequences[row]
    full = tokens // engine.page_size * engine.page_size
    if full == sequence.cached:
        return
    leaf, new = _insert(state, number, sequence.request, full)
    engine.free_tokens += full - sequence.cached - new
    _lock(state, engine, leaf)
    _unlock(state, engine, sequence.node)
    sequence.node, sequence.cached = leaf, full


@inner
def _give_back(state, engine, sequence):  # type: ignore[no-untyped-def]
    engine.free_tokens += sequence.held - sequence.cached
    _unlock(state, engine, sequence.node)
    sequence.node, sequence.cached, sequence.computed, sequence.held = NONE, 0, 0, 0
    engine.left, engine.steady = 1, 0


@inner
def _release(state, number, row):  # type: ignore[no-untyped-def]
    """A request leaves: its full pages stay in the cache, as far as its text is known."""
    sequence = state.sequences[row]
    if sequence.node != NONE:
        if not sequence.built:
            known = np.int64(sequence.prompt_tokens + sequence.output_tokens) - (sequence.output_tokens > 0)
            _hand_over(state, number, row, min(np.int64(sequence.computed), known))
        _give_back(state, state.engines[number], sequence)
    sequence.place = ENDED


# ---- the queue


@inner
def _wait(state, engine, row):  # type: ignore[no-untyped-def]
    """To the end of the queue."""
    sequence = state.sequences[row]
    sequence.before, sequence.after, sequence.place = engine.waiting_last, NONE, WAITING
    if engine.waiting_last == NONE:
        engine.waiting = row
    else:
        state.sequences[engine.waiting_last].after = row
    engine.waiting_last = row
    length = sequence.prompt_tokens + sequence.output_tokens
    if sequence.built:
        sequence.last_match = length
    engine.waiting_requests += 1
    engine.waiting_tokens += length
    engine.waiting_uncached_tokens += length - sequence.last_match


@inner
def _leave_queue(state, engine, row):  # type: ignore[no-untyped-def]
    sequence = state.sequences[row]
    if sequence.before == NONE:
        engine.waiting = sequence.after
    else:
        state.sequences[sequence.before].after = sequence.after
    if sequence.after == NONE:
        engine.waiting_last = sequence.before
    else:
        state.sequences[sequence.after].before = sequence.before
    length = sequence.prompt_tokens + sequence.output_tokens
    engine.waiting_requests -= 1
    engine.waiting_tokens -= length
    engine.waiting_uncached_tokens -= length - sequence.last_match


@inner
def _arrive(state, engine):  # type: ignore[no-untyped-def]
    """Queue what has come by now."""
    while engine.coming != NONE and state.sequences[engine.coming].submitted_at <= engine.begin:
        row = engine.coming
        engine.coming = state.sequences[row].after
        if engine.coming == NONE:
            engine.coming_last = NONE
        else:
            state.sequences[engine.coming].before = NONE
        _wait(state, engine, row)


@inner
def _reap(state, number, tells):  # type: ignore[no-untyped-def]
    """End the aborted requests, and say so if asked to."""
    engine, sequences = state.engines[number], state.sequences
    if engine.doomed == NONE:
        return
    row = engine.doomed
    while row != NONE:
        if sequences[row].place == WAITING:
            _leave_queue(state, engine, row)
        _release(state, number, row)
        if engine.chunked == row:
            engine.chunked = NONE
        if tells:
            _notify(state, row, ABORT)
        row = sequences[row].next_doomed
    kept = 0
    for index in range(engine.running):
        row = state.running[number, index]
        if sequences[row].place == RUNNING:
            state.running[number, kept] = row
            kept += 1
    engine.running, engine.doomed, engine.doomed_last, engine.left, engine.steady = kept, NONE, NONE, 1, 0


# ---- admission: sim.engine.admission


@inner
def _reserved(sequence):  # type: ignore[no-untyped-def]
    """Future tokens to reserve for one request."""
    return min(max(sequence.max_new_tokens - sequence.output_tokens, 0), MOST_RESERVED_TOKENS)


@inner
def _reserved_for_running(state, number):  # type: ignore[no-untyped-def]
    """What the running requests may still produce: all of it where their lengths are known, else a share."""
    engine, tokens = state.engines[number], 0.0
    share = 1.0 if engine.knows_lengths else engine.ratio
    for index in range(engine.running):
        tokens += _reserved(state.sequences[state.running[number, index]]) * share
    return tokens


@inner
def _memory_tokens(engine, reserved):  # type: ignore[no-untyped-def]
    return engine.free_tokens + engine.evictable_tokens - reserved


@inner
def _refresh(state, number):  # type: ignore[no-untyped-def]
    """An admission pass: each `REFRESH_INTERVAL` passes, use what is waited for, head last."""
    engine, sequences = state.engines[number], state.sequences
    engine.passes += 1
    if (engine.passes - 1) % REFRESH_INTERVAL:
        return
    row = engine.waiting
    for _ in range(min(engine.waiting_requests, MOST_SORTED) - 1):
        row = np.int64(sequences[row].after)
    while row != NONE:
        sequence = sequences[row]
        _match(state, number, sequence.request, np.int64(sequence.prompt_tokens + sequence.output_tokens))
        row = np.int64(sequence.before)


@inner
def _first_chunk(engine, start, extend, budget):  # type: ignore[no-untyped-def]
    """How many of a new request's `extend` tokens after its cached `start` join; a cut falls on a page."""
    page, chunk_tokens = engine.page_size, budget[2]
    if _paged(extend, page) <= chunk_tokens:
        return extend
    return max(0, (start + chunk_tokens // page * page) // page * page - start)


@inner
def _next_chunk(engine, sequence, budget):  # type: ignore[no-untyped-def]
    """How many of the tokens left of a begun prompt join; some always do, for it holds memory."""
    extend = np.int64(sequence.prompt_tokens + sequence.output_tokens - sequence.computed)
    memory = int(_memory_tokens(engine, budget[0]))
    return min(extend, min(budget[2], memory) if memory > 0 else budget[2])


@inner
def _extend(state, number, row, tokens, budget):  # type: ignore[no-untyped-def]
    """Let this prefill compute so many tokens of a prompt; returns the budget that is left."""
    engine, sequence = state.engines[number], state.sequences[row]
    reserved, input_tokens, chunk_tokens = budget
    sequence.extend = tokens
    last = tokens == sequence.prompt_tokens + sequence.output_tokens - sequence.computed
    engine.chunked = NONE if last else row
    if tokens:
        paged = _paged(tokens, engine.page_size)
        output = min(np.int64(sequence.max_new_tokens), MOST_RESERVED_TOKENS) if last else 0
        reserved += paged + engine.page_size + output
        input_tokens -= paged
        chunk_tokens -= paged
    return reserved, input_tokens, chunk_tokens


@inner
def _admit(state, number, size, budget, flying):  # type: ignore[no-untyped-def]
    """Move requests from the head of the queue into the batch while they fit."""
    engine, sequences = state.engines[number], state.sequences
    while engine.waiting != NONE and engine.chunked == NONE and not engine.full and budget[1] > 0 and budget[2] > 0:
        if engine.running + size >= engine.running_limit:
            engine.full = engine.running > 0
            return size
        row = engine.waiting
        sequence = sequences[row]
        if sequence.built:
            return size
        length = np.int64(sequence.prompt_tokens + sequence.output_tokens)
        # At least one token is computed, for something must be computed to sample from.
        node, cached = _match(state, number, sequence.request, length - 1)
        engine.waiting_uncached_tokens -= cached - sequence.last_match
        sequence.last_match = cached
        _lock(state, engine, node)
        alone = size == 0 and engine.running == 0  # an empty engine takes whatever passed validation
        needed = length - cached + _reserved(sequence) + engine.page_size
        if not alone and not needed < _memory_tokens(engine, budget[0]):
            _unlock(state, engine, node)
            engine.full = engine.running > 0
            return size
        sequence.node, sequence.cached, sequence.computed, sequence.held = node, cached, cached, cached
        budget = _extend(state, number, row, _first_chunk(engine, cached, length - cached, budget), budget)
        if sequence.extend == 0:  # not a page of this batch's chunk is left
            engine.chunked = NONE
            _unlock(state, engine, node)
            sequence.node, sequence.cached, sequence.computed, sequence.held = NONE, 0, 0, 0
            return size
        _leave_queue(state, engine, row)
        sequence.place = RUNNING
        flying[size] = row
        size += 1
        if sequence.first_match == NONE:
            sequence.first_match = cached
            sequence.queue_seconds = engine.begin - sequence.submitted_at
            engine.cached_tokens += cached
        if _memory_tokens(engine, budget[0]) <= 0:
            engine.full = engine.running > 0
            return size
    return size


@inner
def _take_pages(state, number, size, flying):  # type: ignore[no-untyped-def]
    engine, sequences = state.engines[number], state.sequences
    needed = 0
    for index in range(size):
        sequence = sequences[flying[index]]
        needed += max(0, _paged(np.int64(sequence.computed + sequence.extend), engine.page_size) - sequence.held)
    _make_room(state, number, needed, size * engine.page_size)
    engine.free_tokens -= needed
    for index in range(size):
        sequence = sequences[flying[index]]
        paged = _paged(np.int64(sequence.computed + sequence.extend), engine.page_size)
        sequence.held = max(np.int64(sequence.held), paged)


@inner
def _next_prefill(state, number, flying):  # type: ignore[no-untyped-def]
    """Fill `flying` with the next prefill, with memory taken for each; returns its size."""
    engine, sequences = state.engines[number], state.sequences
    if engine.chunked != NONE:
        _hand_over(state, number, engine.chunked, np.int64(sequences[engine.chunked].computed))
    if engine.chunked != NONE or engine.running == 0 or (engine.left and engine.notices_at_once):
        engine.full = 0
    if engine.running and engine.decodes_since_prefill < engine.prefill_interval:
        return 0
    if engine.chunked == NONE and (engine.full or engine.waiting == NONE):
        return 0
    if engine.chunked == NONE and engine.running >= engine.running_limit:
        engine.full = 1
        return 0
    if engine.waiting != NONE and sequences[engine.waiting].built:
        return 0
    if engine.knows_lengths and engine.waiting != NONE:
        _refresh(state, number)
    budget = (_reserved_for_running(state, number), engine.input_tokens, engine.chunk_tokens)
    size = 0
    if engine.chunked != NONE:
        row = engine.chunked
        budget = _extend(state, number, row, _next_chunk(engine, sequences[row], budget), budget)
        if sequences[row].extend:
            flying[0] = row
            size = 1
    size = _admit(state, number, size, budget, flying)
    _take_pages(state, number, size, flying)
    return size


@inner
def _join(state, number):  # type: ignore[no-untyped-def]
    """Let the requests at the head of the queue whose KV was built elsewhere decode, while they fit."""
    engine, sequences = state.engines[number], state.sequences
    while engine.waiting != NONE and sequences[engine.waiting].built and engine.running < engine.running_limit:
        row = engine.waiting
        sequence = sequences[row]
        length = np.int64(sequence.prompt_tokens + sequence.output_tokens)
        paged = _paged(length - 1, engine.page_size)
        memory = _memory_tokens(engine, _reserved_for_running(state, number))
        if engine.running and not paged + _reserved(sequence) + engine.page_size < memory:
            return
        _leave_queue(state, engine, row)
        _make_room(state, number, paged, engine.page_size)
        engine.free_tokens -= paged
        sequence.place, sequence.node, sequence.held, sequence.computed = RUNNING, engine.root, paged, length - 1
        noticed = state.counts[NOTICES]
        if sequence.first_match == NONE:
            sequence.first_match = 0
            sequence.queue_seconds = engine.begin - sequence.submitted_at
            _token_at(state, row, engine.begin)
            _notify(state, row, FIRST_TOKEN)
        if sequence.output_tokens < sequence.max_new_tokens:
            state.running[number, engine.running] = row
            engine.running += 1
            engine.steady = 0
        else:
            _release(state, number, row)
            _notify(state, row, FINISH)
        _stamp(state, noticed, engine.begin)


# ---- steps


@inner
def _least_done(state, number):  # type: ignore[no-untyped-def]
    """Index of the running request to be retracted first; among equals, of the one that joined last."""
    found = NONE
    output_tokens = prompt_tokens = np.int32(0)
    for index in range(state.engines[number].running):
        row = state.running[number, index]
        if row == NONE:
            continue
        sequence = state.sequences[row]
        if (
            found == NONE
            or sequence.output_tokens < output_tokens
            or (sequence.output_tokens == output_tokens and sequence.prompt_tokens >= prompt_tokens)
        ):
            found, output_tokens, prompt_tokens = index, sequence.output_tokens, sequence.prompt_tokens
    return found


@inner
def _tokens_missing(state, number, rows, size):  # type: ignore[no-untyped-def]
    """Memory that these requests need for one more token each; those that were retracted (`NONE`) need none."""
    engine, missing = state.engines[number], 0
    for index in range(size):
        row = rows[index]
        if row != NONE and state.sequences[row].computed == state.sequences[row].held:
            missing += engine.page_size
    return missing


@inner
def _retract_for_room(state, number):  # type: ignore[no-untyped-def]
    """Evict, then retract (least output first, longest prompt first), until the rest can decode one more token."""
    engine, running = state.engines[number], state.running[number]
    if _make_room(state, number, _tokens_missing(state, number, running, engine.running), 0):
        engine.ratio = max(FLOOR_RATIO, engine.ratio - RATIO_STEP)
        return
    while not _make_room(state, number, _tokens_missing(state, number, running, engine.running), 0):
        index = _least_done(state, number)
        row = running[index]
        running[index] = NONE
        _give_back(state, engine, state.sequences[row])
        state.sequences[row].retractions += 1
        engine.retractions += 1
        _wait(state, engine, row)
    kept = decoded = allowed = 0
    for index in range(engine.running):
        row = state.running[number, index]
        if row != NONE:
            state.running[number, kept] = row
            kept += 1
            decoded += state.sequences[row].output_tokens
            allowed += state.sequences[row].max_new_tokens
    engine.running = kept
    engine.ratio = min(1.0, max(FLOOR_RATIO, (decoded + LOOKAHEAD_STEPS * kept) / (allowed + 1)))


@inner
def _sample(state, number, row, end):  # type: ignore[no-untyped-def]
    """The next token; ends the request, and says so, if it is its last."""
    sequence = state.sequences[row]
    sequence.output_tokens += 1
    state.engines[number].generated_tokens += 1
    _token_at(state, row, end)
    if sequence.output_tokens == 1:
        _notify(state, row, FIRST_TOKEN)
    if sequence.output_tokens < sequence.max_new_tokens:
        return False
    _release(state, number, row)
    _notify(state, row, FINISH)
    return True


@inner
def _count_decode(state, number, begin, end, seconds):  # type: ignore[no-untyped-def]
    """A decode step is done: publish and report if it is time."""
    engine = state.engines[number]
    engine.decode_steps += 1
    engine.decode_seconds += seconds
    engine.decodes_since_report += 1
    if engine.pending != NONE and engine.decode_steps % engine.log_interval == 0:
        _publish(state, number, end)
    if engine.decodes_since_report == engine.load_interval:
        _report(state, number, _load(state, number), begin)


@inner
def _decodable(state, number, flight, flying):  # type: ignore[no-untyped-def]
    """Fill `flying` with the running requests, without those whose last token is in flight; returns how many they are."""
    engine, sequences = state.engines[number], state.sequences
    if flight != NONE and engine.knows_lengths:
        for index in range(state.steps[2 * number + flight].size):
            sequences[state.flying[2 * number + flight, index]].flies = 1
    size = 0
    for index in range(engine.running):
        row = state.running[number, index]
        if not (sequences[row].flies and sequences[row].output_tokens + 1 >= sequences[row].max_new_tokens):
            flying[size] = row
            size += 1
    if flight != NONE and engine.knows_lengths:
        for index in range(state.steps[2 * number + flight].size):
            sequences[state.flying[2 * number + flight, index]].flies = 0
    return size


@inner
def _next_decode(state, number, flight, flying):  # type: ignore[no-untyped-def]
    """Fill `flying` with the running requests that decode next; some may be retracted for it. Returns how many they are."""
    engine = state.engines[number]
    if engine.left:
        engine.full = engine.left = 0
    size = _decodable(state, number, flight, flying)
    if size == 0:
        return 0
    if size < engine.running:
        if _make_room(state, number, _tokens_missing(state, number, flying, size), 0):
            engine.ratio = max(FLOOR_RATIO, engine.ratio - RATIO_STEP)
            return size
        engine.full = 0  # those about to end will leave room: wait for them
        return 0
    _retract_for_room(state, number)
    for index in range(engine.running):
        flying[index] = state.running[number, index]
    return engine.running


@inner
def _launch_prefill(state, number, size, flying):  # type: ignore[no-untyped-def]
    """Returns how long it takes."""
    engine, sequences = state.engines[number], state.sequences
    new = context = 0
    pairs = 0.0
    for index in range(size):
        row = flying[index]
        sequence = sequences[row]
        new += sequence.extend
        context += sequence.computed + sequence.extend
        pairs += sequence.extend * (sequence.computed + sequence.extend / 2)
        sequence.computed += sequence.extend
        sequence.extend = 0
        if row != engine.chunked:
            state.running[number, engine.running] = row
            engine.running += 1
    engine.decodes_since_prefill, engine.steady = 0, 0
    seconds = prefill_seconds(engine.timing, state.parameters[number], new, pairs, context, size)
    engine.prefill_steps += 1
    engine.prefill_tokens += new
    engine.prefill_seconds += seconds
    return seconds


@inner
def _launch_decode(state, number, size, flying):  # type: ignore[no-untyped-def]
    """Take memory for one more token each; returns how long the step takes."""
    engine, kv_tokens = state.engines[number], 0
    for index in range(size):
        sequence = state.sequences[flying[index]]
        sequence.computed += 1
        kv_tokens += sequence.computed
        if sequence.computed > sequence.held:
            sequence.held += engine.page_size
            engine.free_tokens -= engine.page_size
    engine.decodes_since_prefill += 1
    return decode_seconds(engine.timing, state.parameters[number], size, kv_tokens, engine.capacity_tokens)


@inner
def _launch(state, number, slot, flight):  # type: ignore[no-untyped-def]
    """Plan the next step in `slot` and take its memory, while another may be in flight; returns whether there is anything to do."""
    engine, step, flying = state.engines[number], state.steps[2 * number + slot], state.flying[2 * number + slot]
    step.load = NONE
    size = _next_prefill(state, number, flying)
    if size:
        step.kind, step.size, step.load = PREFILL, size, _load(state, number)
        step.seconds = _launch_prefill(state, number, size, flying)
        step.unfinished = engine.chunked
        return True
    size = _next_decode(state, number, flight, flying)
    if size:
        step.kind, step.size, step.unfinished = DECODE, size, NONE
        step.seconds = _launch_decode(state, number, size, flying)
        engine.steady = size == engine.running
    return size > 0


@inner
def _process(state, number, flight, end):  # type: ignore[no-untyped-def]
    """What a launched step brings."""
    engine, sequences, step = state.engines[number], state.sequences, state.steps[2 * number + flight]
    for index in range(step.size):
        row = state.flying[2 * number + flight, index]
        sequence = sequences[row]
        # Ended or retracted since the launch: what was computed for it is void.
        if row == step.unfinished or sequence.node == NONE:
            continue
        if not _sample(state, number, row, end) and step.kind == PREFILL:
            _hand_over(state, number, row, np.int64(sequence.prompt_tokens + sequence.output_tokens - 1))
    kept = 0
    for index in range(engine.running):
        row = state.running[number, index]
        if sequences[row].node != NONE:
            state.running[number, kept] = row
            kept += 1
    engine.running = kept
    if step.kind == PREFILL:
        _report(state, number, step.load, engine.begin)
        _publish(state, number, end)
    else:
        _count_decode(state, number, engine.begin, end, step.seconds)


@inner
def _step(state, number):  # type: ignore[no-untyped-def]
    """Do the next thing: a prefill if one is admitted, else one token for each running request, else nothing."""
    engine = state.engines[number]
    engine.asleep = 0
    _arrive(state, engine)
    _join(state, number)
    noticed = state.counts[NOTICES]
    _reap(state, number, True)
    if engine.flight == NONE and _launch(state, number, 0, NONE):
        engine.flight = 0
    if engine.flight == NONE:
        _stamp(state, noticed, engine.begin)
        engine.ratio = START_RATIO
        _publish(state, number, engine.begin)
        _report(state, number, _load(state, number), engine.begin)
        if engine.waiting == NONE and engine.chunked == NONE:
            engine.asleep = 1
            engine.begin = np.inf if engine.coming == NONE else state.sequences[engine.coming].submitted_at
        return
    flight = engine.flight
    engine.flight = NONE
    if engine.overlaps and _launch(state, number, 1 - flight, flight):
        engine.flight = 1 - flight
    end = engine.begin + state.steps[2 * number + flight].seconds
    _process(state, number, flight, end)
    _stamp(state, noticed, end)
    engine.begin = end


@inner
def _quiet_steps(state, number):  # type: ignore[no-untyped-def]
    """How many decode steps follow in which no request joins, ends or needs a page."""
    engine, sequences = state.engines[number], state.sequences
    if engine.running == 0 or engine.chunked != NONE or engine.doomed != NONE or engine.left:
        return 0
    if engine.waiting != NONE and (not engine.full or sequences[engine.waiting].built):
        return 0
    if engine.overlaps and not (engine.steady and engine.flight != NONE):
        return 0
    steps = 2**30
    for index in range(engine.running):
        sequence = sequences[state.running[number, index]]
        left = min(sequence.max_new_tokens - sequence.output_tokens - 1, sequence.held - sequence.computed)
        steps = min(steps, left)
    return steps


@inner
def _decode_quietly(state, number, most, until):  # type: ignore[no-untyped-def]
    """Up to `most` decode steps that begin before `until`: `_step` without what cannot happen in them."""
    engine, sequences = state.engines[number], state.sequences
    size, kv_tokens = engine.running, 0
    for index in range(size):
        kv_tokens += sequences[state.running[number, index]].computed
    if engine.coming != NONE:
        until = min(until, state.sequences[engine.coming].submitted_at)
    flown = state.steps[2 * number + max(0, engine.flight)].seconds
    steps, end, known_gap, bin_ = 0, engine.begin, -1.0, 0
    while steps < most and engine.begin < until and state.counts[LOADS] < len(state.loads):
        kv_tokens += size
        seconds = decode_seconds(engine.timing, state.parameters[number], size, kv_tokens, engine.capacity_tokens)
        if engine.overlaps:  # the step that is launched now is not the one that ends now
            seconds, flown = flown, seconds
        begin, end = engine.begin, engine.begin + seconds
        if steps == 0:
            for index in range(size):
                gap = end - sequences[state.running[number, index]].last_token_seconds
                state.gaps[_gap_bin(gap)] += 1
        else:
            gap = end - begin
            if gap != known_gap:
                known_gap, bin_ = gap, _gap_bin(gap)
            state.gaps[bin_] += size
        engine.ratio = max(FLOOR_RATIO, engine.ratio - RATIO_STEP)
        _count_decode(state, number, begin, end, seconds)
        engine.begin = end
        steps += 1
    if steps:
        for index in range(size):
            sequence = sequences[state.running[number, index]]
            sequence.computed += steps
            sequence.output_tokens += steps
            sequence.last_token_seconds = end
        engine.generated_tokens += size * steps
        engine.decodes_since_prefill += steps
        if engine.overlaps:
            state.steps[2 * number + engine.flight].seconds = flown


@inner
def _lacks(state, number):  # type: ignore[no-untyped-def]
    """Which array a step could find too small, or `DONE`."""
    engine, counts = state.engines[number], state.counts
    members = 2 * (engine.running + min(engine.waiting_requests + _coming(state, engine), engine.running_limit) + 2)
    if counts[NODES] + 3 * members + min(engine.waiting_requests, MOST_SORTED) > len(state.nodes):
        return MORE_NODES
    if counts[CHANGES] + engine.nodes + 5 * members > len(state.changes):
        return MORE_CHANGES
    if counts[LOADS] + 4 > len(state.loads):
        return MORE_LOADS
    doomed = engine.running + engine.waiting_requests if engine.doomed != NONE else 0
    if counts[NOTICES] + 2 * members + doomed > len(state.notices):
        return MORE_NOTICES
    return DONE


@inner
def _coming(state, engine):  # type: ignore[no-untyped-def]
    """Requests that this step will find queued besides those that are."""
    row, count = engine.coming, 0
    while row != NONE and state.sequences[row].submitted_at <= engine.begin:
        count += 1
        row = state.sequences[row].after
    return count


# ---- called from Python

_HASHES = types.Array(uint64, 1, "C", readonly=True)
_FIRST = types.Array(int64, 1, "C", readonly=True)
_STATE: Any = typeof(  # type: ignore[no-untyped-call]
    State(
        engines=np.zeros(1, ENGINE),
        sequences=np.zeros(1, SEQUENCE),
        nodes=np.zeros(1, NODE),
        slots=np.zeros(1, np.uint64),
        changes=np.zeros(1, CHANGE),
        loads=np.zeros(1, LOAD),
        notices=np.zeros(1, NOTICE),
        running=np.zeros((1, 1), np.int32),
        steps=np.zeros(1, STEP),
        flying=np.zeros((1, 1), np.int32),
        parameters=np.zeros((1, 1)),
        counts=np.zeros(1, np.int64),
        gaps=np.zeros(1, np.int64),
        numbers=np.zeros(1),
        blocks=np.zeros(1, np.uint64),
        first_block=np.zeros(1, np.int64),
        named=np.zeros(1, np.int64),
        block_tokens=np.zeros(1, np.int64),
    )
)


@entry(int64(_STATE, int64, int64, float64, float64))
def advance(state, first, last, until, lookahead):  # type: ignore[no-untyped-def]
    """Run every step of the engines `first` to `last` - 1 that begins before `until`, or less: until something is to be noticed.

    Returns `DONE`, having set `REACHED`; or which array has to grow before this goes on.

    `lookahead`: what is noticed matters to the other engines so many seconds later. Infinite: not at all, so all is run. At 0 steps
    are taken in the order in which they begin.
    """
    engines = state.engines
    while True:
        horizon = until
        if lookahead < np.inf:
            soonest = np.inf
            for number in range(first, last):
                soonest = min(soonest, engines[number].begin)
            horizon = min(until, max(soonest + lookahead, np.nextafter(soonest, np.inf)))
        noticed = state.counts[NOTICES]
        for number in range(first, last):
            engine = engines[number]
            while engine.begin < horizon:
                lack = _lacks(state, number)
                if lack:
                    return lack
                _step(state, number)
                if engine.begin < horizon:
                    most = _quiet_steps(state, number)
                    if most > 0:
                        _decode_quietly(state, number, most, horizon)
        state.numbers[REACHED] = horizon
        if horizon == until or state.counts[NOTICES] > noticed:
            return DONE


@entry(void(_STATE, int64, int64, float64, int64, int64, int64))
def submit(state, row, number, time, prompt_tokens, max_new_tokens, built):  # type: ignore[no-untyped-def]
    """A request comes to an engine at a time that is not before the steps it has begun. O(1) where they come in order."""
    engine, sequences = state.engines[number], state.sequences
    sequence = sequences[row]
    sequence.engine, sequence.place, sequence.submitted_at = number, COMING, time
    sequence.prompt_tokens, sequence.max_new_tokens, sequence.output_tokens = prompt_tokens, max_new_tokens, built
    sequence.built = built
    sequence.cached, sequence.computed, sequence.held, sequence.extend = 0, 0, 0, 0
    sequence.node, sequence.first_match, sequence.last_match, sequence.aborted = NONE, NONE, 0, 0
    before = engine.coming_last
    while before != NONE and sequences[before].submitted_at > time:
        before = sequences[before].before
    after = engine.coming if before == NONE else sequences[before].after
    sequence.before, sequence.after = before, after
    if before == NONE:
        engine.coming = row
    else:
        sequences[before].after = row
    if after == NONE:
        engine.coming_last = row
    else:
        sequences[after].before = row
    if engine.asleep:
        engine.begin = min(engine.begin, time)


@entry(void(_STATE, int64, int64))
def abort(state, row, number):  # type: ignore[no-untyped-def]
    """End a request at the engine's next step. It must be in the engine. O(1)."""
    engine, sequence = state.engines[number], state.sequences[row]
    if sequence.aborted or sequence.place == ENDED:
        return
    sequence.aborted, sequence.next_doomed = 1, NONE
    if engine.doomed == NONE:
        engine.doomed = row
    else:
        state.sequences[engine.doomed_last].next_doomed = row
    engine.doomed_last = row


@entry(void(_STATE, int64))
def withdraw(state, row):  # type: ignore[no-untyped-def]
    """Take a request out of its engine at once, if it is in one; nothing is told. No other may be doomed there."""
    sequence = state.sequences[row]
    if sequence.place == COMING:
        engine = state.engines[sequence.engine]
        if sequence.before == NONE:
            engine.coming = sequence.after
        else:
            state.sequences[sequence.before].after = sequence.after
        if sequence.after == NONE:
            engine.coming_last = sequence.before
        else:
            state.sequences[sequence.after].before = sequence.before
    elif sequence.place == WAITING or sequence.place == RUNNING:
        engine = state.engines[sequence.engine]
        engine.doomed, engine.doomed_last, sequence.next_doomed = row, row, NONE
        _reap(state, sequence.engine, False)
    sequence.place = NOWHERE
    kept = 0
    for index in range(state.counts[NOTICES]):
        if state.notices[index].sequence != row:
            state.notices[kept] = state.notices[index]
            kept += 1
    state.counts[NOTICES] = kept


@entry(void(_STATE, int64))
def clear(state, number):  # type: ignore[no-untyped-def]
    """An engine's process is gone: nothing is cached, nothing inside, and nothing will be told. O(nodes)."""
    engine, nodes = state.engines[number], state.nodes
    for row in range(len(state.engines), state.counts[NODE_TOP]):
        if nodes[row].engine == number:
            _drop_child(state, row)
            _free_node(state, row)
    nodes[engine.root].children = 0
    for head in (engine.pending, engine.published):
        row = head
        while row != NONE:
            following = state.changes[row].next
            _free_change(state, row)
            row = following
    row = engine.loads
    while row != NONE:
        following = state.loads[row].next
        _free_load(state, row)
        row = following
    for row in range(len(state.sequences)):
        if state.sequences[row].engine == number and state.sequences[row].place != ENDED:
            state.sequences[row].place = NOWHERE
    kept = 0
    for index in range(state.counts[NOTICES]):  # what its last step ended is still told
        sequence = state.sequences[state.notices[index].sequence]
        if sequence.engine != number or sequence.place == ENDED:
            state.notices[kept] = state.notices[index]
            kept += 1
    state.counts[NOTICES] = kept
    engine.free_tokens, engine.evictable_tokens, engine.protected_tokens = engine.capacity_tokens, 0, 0
    engine.oldest = engine.newest = engine.coming = engine.coming_last = engine.waiting = engine.waiting_last = NONE
    engine.doomed = engine.doomed_last = engine.chunked = NONE
    engine.pending = engine.published = engine.loads = NONE
    engine.running = engine.waiting_requests = engine.waiting_tokens = engine.waiting_uncached_tokens = 0
    for slot in range(2):
        if engine.flight == slot and state.steps[2 * number + slot].load != NONE:
            _free_load(state, state.steps[2 * number + slot].load)
    engine.flight = NONE
    engine.full = engine.left = engine.passes = engine.steady = 0
    engine.asleep, engine.begin, engine.ratio = 1, np.inf, START_RATIO
    engine.decodes_since_prefill = engine.decodes_since_report = engine.prefill_tokens = 0
    engine.prefill_seconds = 0.0


@entry(int64(_STATE, float64, from_dtype(NOTICE)[::1]))
def take_notices(state, until, taken):  # type: ignore[no-untyped-def]
    """Move what was there to be noticed at `until` into `taken`, in order of time; returns how many. `taken` has room for all."""
    kept = count = 0
    for index in range(state.counts[NOTICES]):
        notice = state.notices[index]
        if notice.time > until:
            state.notices[kept] = notice
            kept += 1
            continue
        place = count
        while place and taken[place - 1].time > notice.time:
            taken[place] = taken[place - 1]
            place -= 1
        taken[place] = notice
        count += 1
    state.counts[NOTICES] = kept
    return count


@entry(int64(_STATE, float64, int64, _HASHES, _FIRST, uint64[::1], int64[:, ::1]))
def take_changes(state, until, block_size, hashes, first_hash, taken, runs):  # type: ignore[no-untyped-def]
    """Move what was published until then into `taken`, as the hashes of routing blocks; returns how many runs it is.

    A row of `runs` is (engine, kind, begin in `taken`, end). Ends early, to be called again, when either is full; both have room
    for one change at least.
    """
    count = filled = 0
    for number in range(len(state.engines)):
        engine = state.engines[number]
        while engine.published != NONE and state.changes[engine.published].time <= until:
            change = state.changes[engine.published]
            first, end = change.start // block_size, change.end // block_size
            if filled + end - first > len(taken) or count == len(runs):
                return count
            joins = count and runs[count - 1, 0] == number and runs[count - 1, 1] == change.kind
            if end > first:
                if not joins:
                    runs[count, 0], runs[count, 1], runs[count, 2] = number, change.kind, filled
                    count += 1
                origin = first_hash[change.owner]
                for block in range(first, end):
                    taken[filled] = hashes[origin + block]
                    filled += 1
                runs[count - 1, 3] = filled
            row = engine.published
            engine.published = change.next
            _free_change(state, row)
    return count


@entry(int64(_STATE, float64, from_dtype(LOAD)[::1], int64[::1]))
def take_loads(state, until, taken, numbers):  # type: ignore[no-untyped-def]
    """Take each engine's last report until then, if there was a new one; returns how many. Those before it are dropped."""
    count = 0
    for number in range(len(state.engines)):
        engine, found = state.engines[number], NONE
        while engine.loads != NONE and state.loads[engine.loads].time <= until:
            if found != NONE:
                _free_load(state, found)
            found = engine.loads
            engine.loads = state.loads[found].next
        if found != NONE:
            taken[count], numbers[count] = state.loads[found], number
            _free_load(state, found)
            count += 1
    return count


@entry(void(_STATE))
def rehash(state):  # type: ignore[no-untyped-def]
    """Enter every node into an empty table of children."""
    for row in range(len(state.engines), state.counts[NODE_TOP]):
        if state.nodes[row].engine != NONE:
            _enter_child(state, row)


@inner
def _held(state, number, request, prompt_tokens):  # type: ignore[no-untyped-def]
    """How many leading tokens of a prompt a request would find in an engine's cache. Nothing counts as used. O(n)."""
    engine, nodes = state.engines[number], state.nodes
    length = (prompt_tokens - 1) // engine.page_size * engine.page_size
    row, position = engine.root, 0
    while position < length:
        child = _child(state, row, _page_key(state, request, position, engine.page_size))
        if child == NONE:
            break
        end = min(np.int64(nodes[child].end), length)
        position = _common_end(state, request, nodes[child].owner, position, end, engine.page_size)
        if position < nodes[child].end:
            break
        row = child
    return position


@entry(int64(_STATE, int64, int64, int64, int64))
def most_held(state, request, prompt_tokens, first, end):  # type: ignore[no-untyped-def]
    """The most that a request would find in the cache of any of the engines `first` to `end` - 1."""
    most = 0
    for number in range(first, end):
        most = max(most, _held(state, number, request, prompt_tokens))
    return most
