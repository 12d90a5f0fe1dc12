"""JSON lines into structs, in pieces, so that a large file needs little memory at once."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import msgspec

from sim.traces.errors import TraceError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PIECE_BYTES = 8 << 20

Row = TypeVar("Row", bound=msgspec.Struct)


def read(path: Path, row: type[Row], *, skip_lines: int = 0) -> Iterator[tuple[int, list[Row]]]:
    """A file's lines in pieces of some megabytes: the number of the piece's first line, from 1, and its rows.

    Blank lines are skipped. O(bytes of the file), O(bytes of a piece) in memory.

    :raises TraceError: a line is no JSON, or lacks a field, or one has a wrong type: it names the line and the field.
    :raises OSError: the file cannot be read.
    """
    decoder = msgspec.json.Decoder(row)
    first_line = 1 + skip_lines
    with path.open("rb") as file:
        for _ in range(skip_lines):
            file.readline()
        while piece := file.read(PIECE_BYTES):
            piece += file.readline()
            try:
                rows = decoder.decode_lines(piece)
            except msgspec.MsgspecError:
                raise _first_error(path, first_line, piece, decoder) from None
            except UnicodeDecodeError as error:
                raise TraceError(f"is no text in UTF-8 ({error.reason})", path=path) from None
            yield first_line, rows
            first_line += piece.count(b"\n")


def line_of(path: Path, number: int) -> int:
    """The line, from 1, of a file's row of that number, from 0: blank lines are no rows. O(number); for error messages."""
    rows = -1
    with path.open("rb") as file:
        for line, text in enumerate(file, 1):
            rows += bool(text.strip())
            if rows == number:
                return line
    raise IndexError(number)


def _first_error(path: Path, first_line: int, piece: bytes, decoder: msgspec.json.Decoder[Row]) -> TraceError:
    """What is wrong with the first line that cannot be decoded."""
    for line, text in enumerate(piece.split(b"\n"), first_line):
        try:
            if text.strip():
                decoder.decode(text)
        except msgspec.MsgspecError as error:
            reason, _, where = str(error).partition(" - at `$.")
            return TraceError(reason, path=path, line=line, field=where.rstrip("`") or None)
        except UnicodeDecodeError as error:
            return TraceError(f"is no text in UTF-8 ({error.reason})", path=path, line=line)
    raise AssertionError("lines that decode one by one decode together")
