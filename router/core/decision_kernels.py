"""The steps of a decision that go over all targets, compiled. Every array has one entry per slot."""

from __future__ import annotations

import numpy as np
from numba import boolean, float64, int32, int64, njit, types, void

_BLOCKS = types.Array(int32, 1, "A", readonly=True)
_TOKENS = types.Array(int64, 1, "A", readonly=True)
_FLOATS = types.Array(float64, 1, "A", readonly=True)
_MASK = types.Array(boolean, 1, "A", readonly=True)


ANY_MODEL = -2
REPORT_LIFETIME_SECONDS = 5.0
"""Engines report every second: one that was silent for so long is not known to have a queue, nor to have none."""


@njit(int64(_MASK, _MASK, _TOKENS, int64, _TOKENS, int64, boolean[::1]), cache=True, nogil=True)
def available(present, is_available, model, wanted, part, wanted_part, left):  # type: ignore[no-untyped-def]
    """Mark the targets that are there, available, serve the model (or `ANY_MODEL`) and do the part; returns how many."""
    count = 0
    for slot in range(len(left)):
        left[slot] = (
            present[slot]
            and is_available[slot]
            and (wanted == ANY_MODEL or model[slot] == wanted)
            and part[slot] == wanted_part
        )
        count += left[slot]
    return count


@njit(void(_BLOCKS, _BLOCKS, _BLOCKS, _BLOCKS, _TOKENS, int64, int64, int64[::1]), cache=True, nogil=True)
def uncached(device, host, disk, predicted, page_size, block_size, prompt_tokens, tokens):  # type: ignore[no-untyped-def]
    """Tokens to be prefilled. An engine computes at least a prompt's last token, and takes whole pages only from its cache."""
    for slot in range(len(tokens)):
        page = max(page_size[slot], 1)
        most = (prompt_tokens - 1) // page * page
        blocks = np.int64(device[slot]) + host[slot] + disk[slot] + predicted[slot]
        tokens[slot] = prompt_tokens - min(blocks * block_size, most)


@njit(void(_FLOATS, _FLOATS, _FLOATS, float64, float64[::1]), cache=True, nogil=True)
def still_waiting(waiting, received_at, rate, now, tokens):  # type: ignore[no-untyped-def]
    """What an engine said was waiting, less what it has prefilled since at its rate; nothing once the report has expired."""
    for slot in range(len(tokens)):
        age = now - received_at[slot]
        tokens[slot] = max(waiting[slot] - rate[slot] * age, 0.0) if age <= REPORT_LIFETIME_SECONDS else 0.0


@njit(
    void(
        _TOKENS,
        _BLOCKS,
        _BLOCKS,
        _TOKENS,
        _FLOATS,
        _TOKENS,
        _TOKENS,
        _FLOATS,
        float64,
        float64,
        float64,
        float64,
        float64,
        float64[::1],
    ),
    cache=True,
    nogil=True,
)
def warm(  # type: ignore[no-untyped-def]
    uncached,
    host,
    disk,
    booked,
    reported,
    requests,
    context,
    rate,
    host_tokens,
    disk_tokens,
    work_weight,
    stall_weight,
    context_weight,
    scores,
):
    """The score of the policy `warm`; a block on host or disk costs as much as that many tokens of prefill."""
    for slot in range(len(scores)):
        own = uncached[slot] + host_tokens * host[slot] + disk_tokens * disk[slot]
        queue = max(np.float64(booked[slot]), reported[slot]) + context_weight * context[slot]
        scores[slot] = (queue + own * (work_weight + stall_weight * requests[slot])) / rate[slot]


@njit(
    void(
        *(_BLOCKS, _BLOCKS, _BLOCKS, _BLOCKS, _BLOCKS, _TOKENS, _TOKENS, _TOKENS),
        *(_MASK, int64, int64, int64),
        *(float64, float64, float64, float64, float64, float64),
        float64[::1],
    ),
    cache=True,
    nogil=True,
    error_model="numpy",
)
def linear(  # type: ignore[no-untyped-def]
    device,
    host,
    disk,
    predicted,
    active,
    booked,
    decode,
    requests,
    eligible,
    block_size,
    prompt,
    blocks,
    overlap_credit,
    credit_decay,
    prefill_scale,
    request_weight,
    host_weight,
    disk_weight,
    scores,
):
    """The score of the policy `linear`, in blocks; its weights are its options."""
    least = np.iinfo(np.int64).max
    for slot in range(len(scores)):
        if eligible[slot]:
            least = min(least, booked[slot])
    request_blocks = max(1, -(-prompt // block_size))
    for slot in range(len(scores)):
        fast = device[slot] + predicted[slot]
        slow = host_weight * host[slot] + disk_weight * disk[slot]
        cached = (fast + slow) * block_size
        prefill = ((booked[slot] + max(0.0, prompt - cached)) + cached) / block_size
        decay = 1.0
        if credit_decay > 0:
            excess = (booked[slot] - least) / block_size
            decay = 1 / (1 + credit_decay * excess / request_blocks)
        adjusted = max(0.0, prefill - (overlap_credit * decay * fast + slow))
        shared = decode[slot] + (blocks - active[slot])
        scores[slot] = prefill_scale * adjusted + shared + request_weight * requests[slot]


@njit(void(_FLOATS, _FLOATS, float64, float64, float64, float64, float64[::1]), cache=True, nogil=True)
def rates(tokens, seconds, weight_tokens, default_rate, prior_tokens, same_kind, rate):  # type: ignore[no-untyped-def]
    """Each target's prefill rate: its own, shrunk towards the fleet's mean, which it is taken for when it is close to it."""
    all_tokens, all_seconds = weight_tokens, weight_tokens / default_rate
    for slot in range(len(rate)):
        all_tokens += tokens[slot]
        all_seconds += seconds[slot]
    fleet = all_tokens / all_seconds
    for slot in range(len(rate)):
        own = (tokens[slot] + prior_tokens) / (seconds[slot] + prior_tokens / fleet)
        rate[slot] = fleet if fleet / same_kind < own < fleet * same_kind else own


@njit(boolean(_FLOATS, _MASK), cache=True, nogil=True)
def has_nan(scores, eligible):  # type: ignore[no-untyped-def]
    """Whether an eligible target's score is not a number."""
    found = False
    for slot in range(len(scores)):
        found |= eligible[slot] and np.isnan(scores[slot])
    return found


@njit(int64(_FLOATS, _MASK, float64, int64[::1]), cache=True, nogil=True)
def lowest(scores, eligible, tolerance, ties):  # type: ignore[no-untyped-def]
    """Write the eligible slots with the lowest score, or up to a fraction above it; returns how many. Scores are no NaN."""
    least = np.inf
    for slot in range(len(scores)):
        if eligible[slot] and scores[slot] < least:
            least = scores[slot]
    most = least + abs(least) * tolerance if np.isfinite(least) else least
    count = 0
    for slot in range(len(scores)):
        if eligible[slot] and scores[slot] <= most:
            ties[count] = slot
            count += 1
    return count


@njit(boolean(_FLOATS, _FLOATS, _FLOATS, _MASK, int64, int64[::1]), cache=True, nogil=True)
def spread(at_first, with_one, precedence, eligible, count, placed):  # type: ignore[no-untyped-def]
    """Place requests, each at the lowest score, which then rises there as it would with the first; `precedence` breaks ties.

    `placed`, zeros, gets them per slot. False, and none, where an eligible score is not finite, or the lowest does not rise.
    """
    for slot in range(len(placed)):
        if eligible[slot] and not (np.isfinite(at_first[slot]) and np.isfinite(with_one[slot])):
            return False
    for number in range(count + 1):
        best, least = -1, np.inf
        for slot in range(len(placed)):
            score = at_first[slot] + placed[slot] * (with_one[slot] - at_first[slot]) + precedence[slot]
            if eligible[slot] and score < least:
                best, least = slot, score
        if best < 0 or not with_one[best] > at_first[best]:
            placed[:] = 0
            return False
        placed[best] += number < count
    return True
