"""Qwen-Bailian's trace format: JSON lines with a hash for every 16 tokens of the prompt.

``{"chat_id": 159, "parent_chat_id": 55, "timestamp": 61.114, "input_length": 521, "output_length": 132, "type": "text", "turn": 2,
"hash_ids": [1089, …]}``, times in seconds, a parent of -1 begins a conversation. Source: the README of
github.com/alibaba-edu/qwen-bailian-usagetraces-anon.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import msgspec

from sim.traces import jsonlines
from sim.traces.builder import Builder

if TYPE_CHECKING:
    from pathlib import Path

    from sim.traces.trace import Trace

BLOCK_TOKENS = 16
NO_PARENT = -1


class Row(msgspec.Struct, gc=False):
    """A line of a file."""

    chat_id: int
    timestamp: float
    input_length: int
    output_length: int
    parent_chat_id: int = NO_PARENT
    hash_ids: list[int] = []


def read(path: Path, *, block_tokens: int = BLOCK_TOKENS) -> Trace:
    """Read a file. Unknown fields are ignored. O(n + m).

    A turn follows the end of its parent by the time that lies between their arrivals: when the parent ended is not told. Use
    `Trace.without_sessions` to have it sent at its time instead.

    :raises TraceError: a line is wrong.
    :raises OSError: the file cannot be read.
    """
    builder = Builder(path, block_tokens)
    for _, rows in jsonlines.read(path, Row):
        builder.add(
            [row.timestamp for row in rows],
            [row.input_length for row in rows],
            [row.output_length for row in rows],
            [row.hash_ids for row in rows],
            keys=[row.chat_id for row in rows],
            after=[() if row.parent_chat_id == NO_PARENT else (row.parent_chat_id,) for row in rows],
            delay_seconds=[math.nan] * len(rows),
        )
    return builder.build()
