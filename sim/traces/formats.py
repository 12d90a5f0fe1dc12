"""The formats of trace files: which there are, and which a file is in."""

from __future__ import annotations

import json
from importlib import import_module
from typing import TYPE_CHECKING

from sim.traces.errors import TraceError

if TYPE_CHECKING:
    from pathlib import Path

    from sim.traces.trace import Trace

READERS = {
    "warmpath": ("sim.traces.native", "read"),
    "mooncake": ("sim.traces.mooncake", "read"),
    "mooncake-delta": ("sim.traces.mooncake", "read_delta"),
    "mooncake-agentic": ("sim.traces.mooncake", "read"),
    "bailian": ("sim.traces.bailian", "read"),
    "azure": ("sim.traces.azure", "read"),
}
"""Module and function of each; imported when they are needed, for they load compiled code."""
WRITERS = {"warmpath": ("sim.traces.native", "write"), "mooncake": ("sim.traces.mooncake", "write")}

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
    module, function = READERS[detect(path) if format == "auto" else format]
    trace: Trace = getattr(import_module(module), function)(path)
    return trace


def save(trace: Trace, path: Path, format: str = "warmpath") -> None:  # noqa: A002
    """Write a trace in one of `WRITERS`.

    :raises TraceError: the format cannot say what is in the trace.
    :raises OSError: it cannot be written.
    """
    module, function = WRITERS[format]
    getattr(import_module(module), function)(trace, path)


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
    if b"TIMESTAMP" in line.split(b"\n")[0].replace(b'"', b"").split(b","):
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
