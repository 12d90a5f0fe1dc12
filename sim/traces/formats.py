"""The formats of trace files: which there are, and which a file is in."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from sim.traces import azure, bailian, mooncake, native
from sim.traces.errors import TraceError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from sim.traces.trace import Trace

READERS: dict[str, Callable[[Path], Trace]] = {
    "warmpath": native.read,
    "mooncake": mooncake.read,
    "mooncake-delta": mooncake.read_delta,
    "mooncake-agentic": mooncake.read,
    "bailian": bailian.read,
    "azure": azure.read,
}
WRITERS: dict[str, Callable[[Trace, Path], None]] = {"warmpath": native.write, "mooncake": mooncake.write}

_HEAD_BYTES = 1 << 20
_SIGNS = (
    ("warmpath", {"warmpath_trace"}),
    ("bailian", {"chat_id"}),
    ("mooncake-agentic", {"wait_for"}),
    ("mooncake", {"input_length"}),
    ("mooncake", {"hash_ids"}),
    ("mooncake", {"input_tokens", "output_tokens"}),
)
"""Fields of the first line that tell a format; the delta form of Mooncake's has none of its own."""


def load(path: Path, format: str = "auto") -> Trace:  # noqa: A002 - the command line's word
    """A trace from a file in one of `READERS`.

    :raises TraceError: the file is in no known format, or wrong: file, line, field and reason.
    :raises OSError: it cannot be read.
    """
    return READERS[detect(path) if format == "auto" else format](path)


def detect(path: Path) -> str:
    """The name of a file's format, from its first line.

    :raises TraceError: it is in none.
    :raises OSError: it cannot be read.
    """
    with path.open("rb") as file:
        line = file.readline(_HEAD_BYTES)
        while line.isspace():
            line = file.readline(_HEAD_BYTES)
    if not line:
        raise TraceError("has no requests", path=path)
    if azure.COLUMNS[0].encode() in line.split(b"\n")[0].replace(b'"', b"").split(b","):
        return "azure"
    fields = _fields(line)
    found = next((name for name, signs in _SIGNS if signs <= fields), None)
    if found is None:
        known = ", ".join(READERS)
        raise TraceError(f"is in no format that is known ({known})", path=path, line=1)
    return found


def _fields(line: bytes) -> set[str]:
    try:
        row = json.loads(line)
    except ValueError:
        return set()
    return set(row) if isinstance(row, dict) else set()
