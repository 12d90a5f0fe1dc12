"""Lines of JSON, compressed or not."""

from __future__ import annotations

import gzip
import zlib
from typing import TYPE_CHECKING, TypeVar

import msgspec

from events.command import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

Row = TypeVar("Row", bound=msgspec.Struct)


def content(path: Path) -> bytes:
    """A file's content, unpacked if it is compressed.

    :raises UsageError: it is cut off or damaged.
    :raises OSError: it cannot be read.
    """
    data = path.read_bytes()
    if not data.startswith(b"\x1f\x8b"):
        return data
    try:
        return gzip.decompress(data)
    except (EOFError, zlib.error, OSError) as error:
        raise UsageError(f"{path}: damaged: {error}") from error


def rows(path: Path, row: type[Row], data: bytes, first_line: int = 1) -> Iterator[Row]:
    """The lines of `data`, a file's content from `first_line` on.

    :raises UsageError: a line is not what it should be; it names file, line and field.
    """
    decoder = msgspec.json.Decoder(row)
    for number, line in enumerate(data.splitlines(), first_line):
        if line.strip():
            try:
                yield decoder.decode(line)
            except (msgspec.DecodeError, UnicodeDecodeError) as error:
                raise UsageError(f"{path}, line {number}: {error}") from error
