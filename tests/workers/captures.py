"""Frames that real engines published, where they are at hand; tests skip without them."""

from __future__ import annotations

import gzip
import json
import os
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

SHARED = Path(os.environ.get("WARMPATH_SHARED") or Path(__file__).resolve().parents[2] / ".." / "shared")
CAPTURES = SHARED / "sglang-cpu" / "captures"
FLEET = SHARED / "recordings" / "runs" / "conv524_rr" / "kv_events_w0_head.bin.gz"


class CapturedFrame(NamedTuple):
    """One ZMQ message of a capture, with what another decoder read in it."""

    step: str
    socket: str
    seq: int
    payload: bytes
    decoded: list[Any]


def require(path: Path) -> Path:
    """The path, or the test skips."""
    if not path.exists():
        pytest.skip(f"{path.name} needs the shared captures (WARMPATH_SHARED or ../shared)")
    return path


def document(name: str) -> Any:
    """A JSON file among the captures."""
    return json.loads(require(CAPTURES / name).read_text())


def steps(name: str) -> list[dict[str, Any]]:
    """The recorded steps of a capture."""
    return [json.loads(line) for line in require(CAPTURES / name).read_text().splitlines()]


def frames(name: str, socket: str = "") -> list[CapturedFrame]:
    """The recorded messages of sockets whose name starts so."""
    return [
        CapturedFrame(step["step"], frame["sock"], frame["seq"], bytes.fromhex(frame["hex"][2]), frame["decoded"])
        for step in steps(name)
        for frame in step["frames"]
        if frame["sock"].startswith(socket)
    ]


def fleet_payloads() -> Iterator[bytes]:
    """Payloads that a 0.5.17 engine under real load published in 87 s, page size 16."""
    with gzip.open(require(FLEET)) as file:
        while head := file.read(20):
            (count,) = struct.unpack_from("<I", head, 16)
            parts = []
            for _ in range(count):
                (size,) = struct.unpack("<I", file.read(4))
                parts.append(file.read(size))
            yield parts[2]
