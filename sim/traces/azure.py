"""Azure's trace format: a CSV of arrivals and lengths, without content.

``TIMESTAMP,ContextTokens,GeneratedTokens``, e.g. ``2023-11-16 18:15:46.6805900,374,44``. Source: AzureLLMInferenceTrace of 2023 and
2024 in github.com/Azure/AzurePublicDataset (CC-BY-4.0).
"""

from __future__ import annotations

import csv
from typing import TYPE_CHECKING

import numpy as np

from sim.traces.builder import Builder
from sim.traces.errors import TraceError
from sim.traces.jsonlines import line_of

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from sim.traces.trace import Trace

COLUMNS = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")
BLOCK_TOKENS = 512
"""Of no meaning: there are no ids."""


def read(path: Path, *, block_tokens: int = BLOCK_TOKENS) -> Trace:
    """Read a file. Nothing is shared between requests. O(n).

    :raises TraceError: a line is wrong.
    :raises OSError: the file cannot be read.
    """
    stamps, lengths = _rows(path)
    rows = len(stamps)
    builder = Builder(path, block_tokens, header_lines=1)
    builder.add(
        _seconds(path, stamps).tolist(),
        _numbers(path, [one[0] for one in lengths], COLUMNS[1]).tolist(),
        _numbers(path, [one[1] for one in lengths], COLUMNS[2]).tolist(),
        [()] * rows,
        keys=[None] * rows,
        after=[()] * rows,
        delay_seconds=[0.0] * rows,
    )
    return builder.build()


def _rows(path: Path) -> tuple[list[str], list[tuple[str, str]]]:
    stamps, lengths = [], []
    with path.open(newline="", encoding="utf-8-sig", errors="replace") as file:
        lines = csv.reader(file)
        header = [name.strip() for name in next(lines, [])]
        if missing := [name for name in COLUMNS if name not in header]:
            raise TraceError("is no column of the header", path=path, line=1, field=missing[0])
        stamp, *both = (header.index(name) for name in COLUMNS)
        for row in lines:
            if not row:
                continue
            if len(row) < len(header):
                raise TraceError(f"has {len(row)} of {len(header)} fields", path=path, line=lines.line_num)
            stamps.append(row[stamp].strip().removesuffix("+00:00").removesuffix("Z"))
            lengths.append((row[both[0]], row[both[1]]))
    return stamps, lengths


def _seconds(path: Path, stamps: list[str]) -> NDArray[np.float64]:
    """Seconds since the first stamp."""
    try:
        times = np.array(stamps, "datetime64[ns]")
    except ValueError:
        row = next(row for row, stamp in enumerate(stamps) if not _is_stamp(stamp))
        raise _wrong(path, row, COLUMNS[0], f"{stamps[row]!r} is no time") from None
    if np.isnat(times).any():
        raise _wrong(path, int(np.argmax(np.isnat(times))), COLUMNS[0], "is empty")
    return (times - times.min()).astype(np.int64) / 1e9 if len(times) else np.zeros(0)


def _is_stamp(stamp: str) -> bool:
    try:
        np.datetime64(stamp, "ns")
    except ValueError:
        return False
    return True


def _numbers(path: Path, texts: list[str], field: str) -> NDArray[np.int64]:
    try:
        return np.array([int(text) for text in texts], np.int64)
    except (ValueError, OverflowError):
        row = next(row for row, text in enumerate(texts) if not text.strip().isdecimal())
        raise _wrong(path, row, field, f"{texts[row]!r} is no whole number") from None


def _wrong(path: Path, row: int, field: str, reason: str) -> TraceError:
    """An error of a row, from 0; the header is the file's first line."""
    return TraceError(reason, path=path, line=line_of(path, row + 1), field=field)
