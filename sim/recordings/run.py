"""A recorded run: which requests were sent to which worker when, and what came back."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import msgspec
import numpy as np

from events.command import UsageError
from sim.recordings.lines import content, rows

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray


class About(msgspec.Struct):
    """The first line."""

    trace: str
    pool: list[int]
    """Tokens of KV memory per worker."""
    page: int
    version: str
    drained_at: float
    """Seconds; what was open then was given up."""
    name: str = ""


class RecordedRequest(msgspec.Struct, gc=False):
    """One request; see the package's text."""

    row: int = msgspec.field(name="idx")
    worker: int = msgspec.field(name="w")
    input_tokens: int = msgspec.field(name="in")
    output_tokens: int = msgspec.field(name="out")
    planned_at: float = msgspec.field(name="at")
    sent_at: float | None = msgspec.field(name="t_send", default=None)
    ttft_ms: float | None = None
    times: list[tuple[float, int]] = []
    received_tokens: int = msgspec.field(name="n_out", default=0)
    cached_tokens: int | None = None

    @property
    def sent_seconds(self) -> float:
        """When it was sent: planned, where the sender lost its account of the request."""
        return self.planned_at if self.sent_at is None else self.sent_at

    @property
    def finished(self) -> bool:
        """Whether all of its output came."""
        return self.received_tokens == self.output_tokens

    def token_seconds(self) -> NDArray[np.float64]:
        """When each token came, from sending on; tokens of one piece at the same time. Shape (received,)."""
        counts = np.diff([0, *(count for _, count in self.times)])
        return np.repeat(np.array([time for time, _ in self.times], np.float64), counts) * 1e-3


class Run(NamedTuple):
    """A recorded run."""

    name: str
    about: About
    requests: list[RecordedRequest]


def read_run(folder: Path) -> Run:
    """Read a run's folder.

    :raises UsageError: it is no recording, or a line is not what it should be.
    :raises OSError: a file cannot be read.
    """
    path = next((p for p in (folder / "requests.jsonl.gz", folder / "requests.jsonl") if p.is_file()), None)
    if path is None:
        raise UsageError(f"{folder}: no requests.jsonl[.gz]: it is no recorded run")
    first, _, rest = content(path).partition(b"\n")
    about = next(rows(path, About, first), None)
    if about is None:
        raise UsageError(f"{path}: the first line is empty")
    requests = list(rows(path, RecordedRequest, rest, first_line=2))
    for request in requests:
        if not 0 <= request.worker < len(about.pool):
            raise UsageError(
                f"{path}: request of row {request.row}: worker {request.worker} has no pool in the first line"
            )
    return Run(about.name or folder.name, about, requests)
