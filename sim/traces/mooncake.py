"""Mooncake's trace format: JSON lines with a hash for every 512 tokens of the prompt.

``{"timestamp": 0, "input_length": 6758, "output_length": 500, "hash_ids": [0, 1, 2, …]}``, times in milliseconds. Source: the
traces published with Mooncake (FAST '25). Dynamo's replay knows more of it, and so does this module:

* other names, ``created_time``, ``input_tokens``, ``output_tokens``, ``delay_ms``;
* sessions in closed loop, ``session_id`` and ``delay`` (after the end of the turn before; without it, the time between arrivals);
* the *delta* form, whose later turns hold what they add to the conversation (see `sim.traces.delta`);
* the *agentic* form: ``request_id``, ``wait_for`` (ids of earlier requests), ``delay`` and ``tool_wait_ms`` after their end.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from sim.traces import jsonlines
from sim.traces.builder import Builder
from sim.traces.delta import accumulate
from sim.traces.errors import TraceError
from sim.traces.session_kernels import session_roots
from sim.traces.trace import ALONE

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence
    from pathlib import Path

    from sim.traces.trace import Trace

BLOCK_TOKENS = 512


class Row(msgspec.Struct, gc=False):
    """A line of a file."""

    timestamp: float | None = None
    created_time: float | None = None
    input_length: int | None = None
    input_tokens: int | None = None
    output_length: int | None = None
    output_tokens: int | None = None
    hash_ids: list[int] | None = None
    session_id: str | int | None = None
    delay: float | None = None
    delay_ms: float | None = None
    request_id: str | int | None = None
    wait_for: list[str | int] | None = None
    tool_wait_ms: float | None = None

    @property
    def seconds(self) -> float:
        """When it came; NaN: not told."""
        return _seconds(self.timestamp, self.created_time)

    @property
    def delay_seconds(self) -> float:
        """After the end of what it follows; NaN: not told."""
        delay, tool_wait = _seconds(self.delay, self.delay_ms), _seconds(self.tool_wait_ms)
        return delay if math.isnan(tool_wait) else tool_wait if math.isnan(delay) else delay + tool_wait

    @property
    def key(self) -> str | int | None:
        """What later rows call this one."""
        return self.session_id if self.wait_for is None else self.request_id

    @property
    def after(self) -> Collection[str | int]:
        """The keys of what it follows."""
        if self.wait_for is not None:
            return self.wait_for
        return () if self.session_id is None else (self.session_id,)


def read(path: Path, *, block_tokens: int = BLOCK_TOKENS) -> Trace:
    """Read a file of the plain or the agentic form. Unknown fields are ignored.

    O(n + m): 12,000 requests with 290,000 ids take 0.05 s.

    :raises TraceError: a line is wrong.
    :raises OSError: the file cannot be read.
    """
    builder = Builder(path, block_tokens)
    for _, rows in jsonlines.read(path, Row):
        _add(builder, rows)
    return builder.build()


def read_delta(path: Path, *, block_tokens: int = BLOCK_TOKENS) -> Trace:
    """Read a file of the delta form: see `read`, and `accumulate`."""
    return accumulate(read(path, block_tokens=block_tokens))


def write(trace: Trace, path: Path) -> None:
    """Write a trace in the plain form, times in milliseconds, sessions as `session_id` and `delay`. O(n + m).

    :raises TraceError: a session branches: two requests follow the same one, which the format cannot say.
    :raises OSError: it cannot be written.
    """
    follows = trace.previous[trace.previous != ALONE]
    if len(np.unique(follows)) < len(follows):
        raise TraceError("two requests follow the same one, which Mooncake's format cannot say", path=trace.name)
    roots = session_roots(trace.previous)
    in_session = np.zeros(len(trace), bool)
    in_session[follows] = in_session[trace.previous != ALONE] = True
    edges, blocks = trace.first_block.tolist(), trace.blocks
    encoder = msgspec.json.Encoder()
    with path.open("wb") as file:
        for row in range(len(trace)):
            fields: dict[str, object] = {
                "timestamp": _milliseconds(trace.arrival_seconds[row]),
                "input_length": int(trace.input_tokens[row]),
                "output_length": int(trace.output_tokens[row]),
                "hash_ids": blocks[edges[row] : edges[row + 1]].tolist(),
            }
            if in_session[row]:
                fields["session_id"] = str(roots[row])
            if trace.previous[row] != ALONE:
                fields["delay"] = _milliseconds(trace.delay_seconds[row])
            file.write(encoder.encode(fields) + b"\n")


def _milliseconds(seconds: float) -> float | int:
    """A whole number where it is one, as in the published traces; else to the microsecond."""
    value = round(float(seconds) * 1000, 3)
    return int(value) if value.is_integer() else value


def _add(builder: Builder, rows: Sequence[Row]) -> None:
    input_tokens = [row.input_length if row.input_length is not None else row.input_tokens for row in rows]
    output_tokens = [row.output_length if row.output_length is not None else row.output_tokens for row in rows]
    builder.add(
        [row.seconds for row in rows],
        _required(builder, input_tokens, "input_length"),
        _required(builder, output_tokens, "output_length"),
        [row.hash_ids or () for row in rows],
        keys=[row.key for row in rows],
        after=[row.after for row in rows],
        delay_seconds=[row.delay_seconds for row in rows],
    )


def _seconds(*milliseconds: float | None) -> float:
    """The first that is given."""
    return next((value / 1000 for value in milliseconds if value is not None), math.nan)


def _required(builder: Builder, values: list[int | None], field: str) -> list[int]:
    if None in values:
        line = builder.line(len(builder) + values.index(None))
        raise TraceError("is missing", path=builder.path, line=line, field=field)
    return values  # type: ignore[return-value] # none of them is None
