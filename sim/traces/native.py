"""Our own trace format: JSON lines that keep every column of a `Trace`.

The first line is ``{"warmpath_trace": 1, "name": "conversation", "block_tokens": 512}``; then one line per request, in order of
arrival: ``{"arrival_seconds": 0.5, "input_tokens": 700, "output_tokens": 20, "blocks": [7, 9], "previous": 0,
"delay_seconds": 1.5}``. `blocks` may be left out (nothing is shared), and so may `previous` (the number of an earlier request, from
0) with `delay_seconds`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import numpy as np

from sim.traces import jsonlines
from sim.traces.errors import TraceError
from sim.traces.jsonlines import line_of
from sim.traces.trace import ALONE, Trace, offsets

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

VERSION = 1
ROWS_AT_ONCE = 10_000
_NO_DELAY = 0.0  # this very object: a default is left out by identity


class Header(msgspec.Struct):
    """The first line."""

    warmpath_trace: int
    name: str
    block_tokens: int


class Row(msgspec.Struct, gc=False, omit_defaults=True):
    """A line of a file after the first."""

    arrival_seconds: float
    input_tokens: int
    output_tokens: int
    blocks: list[int] = []
    previous: int = ALONE
    delay_seconds: float = _NO_DELAY


def read(path: Path) -> Trace:
    """Read a file. Unknown fields are ignored. O(n + m).

    :raises TraceError: a line is wrong.
    :raises OSError: the file cannot be read.
    """
    header = _header(path)
    columns: list[tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.uint64]]] = []
    for first_line, rows in jsonlines.read(path, Row, skip_lines=1):
        columns.append(_columns(path, first_line, rows))
    if not columns:
        raise TraceError("has no requests", path=path)
    floats = np.concatenate([one[0] for one in columns], axis=1)
    integers = np.concatenate([one[1] for one in columns], axis=1)
    try:
        return Trace(
            name=header.name,
            arrival_seconds=floats[0],
            input_tokens=integers[0],
            output_tokens=integers[1],
            block_tokens=header.block_tokens,
            blocks=np.concatenate([one[2] for one in columns]),
            first_block=offsets(integers[3]),
            previous=integers[2],
            delay_seconds=floats[1],
        )
    except TraceError as error:
        line = None if error.row is None else line_of(path, error.row + 1)
        raise TraceError(error.reason, path=path, line=line, field=error.field) from None


def write(trace: Trace, path: Path) -> None:
    """Write a file; `read` gives the same trace back. O(n + m).

    :raises OSError: it cannot be written.
    """
    encoder = msgspec.json.Encoder()
    with path.open("wb") as file:
        file.write(encoder.encode(Header(VERSION, trace.name, trace.block_tokens)) + b"\n")
        for first in range(0, len(trace), ROWS_AT_ONCE):
            file.write(encoder.encode_lines(list(_rows(trace, first, min(first + ROWS_AT_ONCE, len(trace))))))


def _header(path: Path) -> Header:
    with path.open("rb") as file:
        line = file.readline()
    try:
        header = msgspec.json.decode(line, type=Header)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        raise TraceError('is no {"warmpath_trace": 1, "name": …, "block_tokens": …}', path=path, line=1) from None
    if header.warmpath_trace != VERSION:
        reason = f"is {header.warmpath_trace}: this warmpath reads version {VERSION}"
        raise TraceError(reason, path=path, line=1, field="warmpath_trace")
    return header


def _columns(
    path: Path, first_line: int, rows: list[Row]
) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.uint64]]:
    floats = np.array([[row.arrival_seconds for row in rows], [row.delay_seconds for row in rows]], np.float64)
    integers = np.array(
        [
            [row.input_tokens for row in rows],
            [row.output_tokens for row in rows],
            [row.previous for row in rows],
            [len(row.blocks) for row in rows],
        ],
        np.int64,
    )
    try:
        blocks = np.fromiter((one for row in rows for one in row.blocks), np.uint64, int(integers[3].sum()))
    except OverflowError:
        row = next(row for row, one in enumerate(rows) if any(not 0 <= block < 2**64 for block in one.blocks))
        raise TraceError("must be unsigned 64-bit numbers", path=path, line=first_line + row, field="blocks") from None
    return floats, integers, blocks


def _rows(trace: Trace, first: int, end: int) -> Iterator[Row]:
    """Some requests as lines."""
    edges = trace.first_block[first : end + 1].tolist()
    blocks = trace.blocks[edges[0] : edges[-1]].tolist()
    some = slice(first, end)
    columns = (trace.arrival_seconds, trace.input_tokens, trace.output_tokens, trace.previous, trace.delay_seconds)
    for row, (arrival, prompt, output, previous, delay) in enumerate(
        zip(*(column[some].tolist() for column in columns), strict=True)
    ):
        ids = blocks[edges[row] - edges[0] : edges[row + 1] - edges[0]]
        yield Row(arrival, prompt, output, ids, previous, delay or _NO_DELAY)
