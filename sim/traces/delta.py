"""Conversations told by what each turn adds, into whole prompts.

As in Dynamo's replay of the delta form, a turn's prompt is the session's text so far, outputs included, and then its own tokens.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from sim.traces.session_kernels import stream_blocks, stream_tokens
from sim.traces.trace import ALONE, offsets

if TYPE_CHECKING:
    from sim.traces.trace import Trace


def accumulate(trace: Trace) -> Trace:
    """The trace with whole prompts, of one whose turns after the first hold only what they add. O(n + m of the result).

    Ids of a session's first turn stay where a block is all of it: they may be shared with other sessions. All other blocks, also
    those of outputs, get ids of the session's own, so that each turn finds the whole text of the turn before it in a cache.
    Requests without a session are as they were.
    """
    is_turn = trace.previous != ALONE
    is_turn[trace.previous[is_turn]] = True
    before = stream_tokens(trace.previous, trace.input_tokens, trace.output_tokens)
    prompt = before + trace.input_tokens
    named = -(-(prompt + trace.output_tokens) // trace.block_tokens)
    counts = np.where(is_turn, named, trace.block_counts)
    first_block = offsets(counts)
    blocks = stream_blocks(
        trace.previous, is_turn, trace.input_tokens, trace.blocks, trace.first_block, first_block, trace.block_tokens
    )
    return trace.with_columns(input_tokens=prompt, blocks=blocks, first_block=first_block)
