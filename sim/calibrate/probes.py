"""What is measured of an engine from outside."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import msgspec

from events.command import UsageError
from sim.recordings.lines import content, rows

if TYPE_CHECKING:
    from pathlib import Path


class Probe(NamedTuple):
    """One request to an engine that does nothing else."""

    new_tokens: int
    cached_tokens: int
    ttft_seconds: float
    sent_at: float = 0.0
    """On the clock of the step log, if there is one."""


class Series(NamedTuple):
    """Several requests that decode together."""

    sequences: int
    kv_tokens: float
    """In all of them, on average."""
    step_seconds: float


class _Line(msgspec.Struct):
    kind: str = msgspec.field(name="k")
    new_tokens: int = msgspec.field(name="n", default=0)
    cached_tokens: int = msgspec.field(name="c", default=0)
    sent_at: float = msgspec.field(name="t_send", default=0.0)
    ttft_ms: float | None = None


def read_probes(path: Path) -> list[Probe]:
    """Single requests from a file of JSON lines: those with ``"k": "ttft"``, `n` new tokens after `c` cached ones, sent at second
    `t_send` of the step log's clock, the first token `ttft_ms` milliseconds later. Other lines are skipped.

    :raises UsageError: a line is not what it should be, or none is a probe.
    :raises OSError: the file cannot be read.
    """
    probes = [
        Probe(line.new_tokens, line.cached_tokens, line.ttft_ms * 1e-3, line.sent_at)
        for line in rows(path, _Line, content(path))
        if line.kind == "ttft" and line.ttft_ms
    ]
    if not probes:
        raise UsageError(f'{path}: no request with "k": "ttft"')
    return probes
