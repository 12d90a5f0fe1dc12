"""The replay as a trace for Perfetto (ui.perfetto.dev) or chrome://tracing.

Format: Trace Event Format, the JSON object form. A process is a policy's worker; its threads are lanes, so that what runs at the
same time lies side by side; each request is a slice of three parts: queue, prefill, decode.
"""

from __future__ import annotations

import heapq
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    from sim.replay.outcome import Outcome
    from sim.report.report import Report

_MICRO = 1e6


def write(report: Report, path: Path) -> None:
    """Write all policies' replays into one file. O(policies · n log n).

    :raises OSError: it cannot be written.
    """
    encoder = msgspec.json.Encoder()
    with path.open("wb") as file:
        file.write(b'{"displayTimeUnit":"ms","traceEvents":[\n')
        comma = b""
        for number, (label, outcome) in enumerate(zip(report.labels, report.outcomes, strict=True)):
            first_process = 1 + number * (len(outcome.busy_prefill_seconds) + 1)
            for event in _events(outcome, label, first_process):
                file.write(comma + encoder.encode(event))
                comma = b",\n"
        file.write(b"\n]}\n")


def _events(outcome: Outcome, label: str, first_process: int) -> Iterator[dict[str, Any]]:
    for worker in range(len(outcome.busy_prefill_seconds)):
        process = first_process + worker
        yield {"ph": "M", "pid": process, "name": "process_name", "args": {"name": f"{label}: worker {worker}"}}
        yield {"ph": "M", "pid": process, "name": "process_sort_index", "args": {"sort_index": process}}
        yield from _counters(outcome, worker, process)
        rows = np.flatnonzero(outcome.done & (outcome.worker == worker))
        for row, lane in zip(rows.tolist(), _lanes(outcome, rows), strict=True):
            yield from _slices(outcome, row, process, lane)


def _slices(outcome: Outcome, row: int, process: int, lane: int) -> Iterator[dict[str, Any]]:
    sent, first = float(outcome.arrival_seconds[row]), float(outcome.first_token_seconds[row])
    started = min(sent + float(outcome.queue_seconds[row]), first)
    end = float(outcome.finish_seconds[row])
    about = {
        "input_tokens": int(outcome.input_tokens[row]),
        "cached_tokens": int(outcome.cached_tokens[row]),
        "output_tokens": int(outcome.output_tokens[row]),
        "retractions": int(outcome.retractions[row]),
    }
    where: dict[str, Any] = {"ph": "X", "pid": process, "tid": lane, "cat": "request"}
    yield where | {"name": f"request {row}", "ts": _micro(sent), "dur": _micro(end - sent), "args": about}
    for name, begin, until in (("queue", sent, started), ("prefill", started, first), ("decode", first, end)):
        if until > begin:
            yield where | {"name": name, "ts": _micro(begin), "dur": _micro(until - begin)}


def _counters(outcome: Outcome, worker: int, process: int) -> Iterator[dict[str, Any]]:
    samples = outcome.samples
    columns = (
        samples.sample_seconds,
        samples.running[:, worker],
        samples.waiting[:, worker],
        samples.cached_tokens[:, worker],
    )
    for seconds, running, waiting, cached in zip(*(column.tolist() for column in columns), strict=True):
        where: dict[str, Any] = {"ph": "C", "pid": process, "ts": _micro(seconds)}
        yield where | {"name": "requests", "args": {"running": running, "waiting": waiting}}
        yield where | {"name": "cache", "args": {"tokens": cached}}


def _lanes(outcome: Outcome, rows: NDArray[np.int64]) -> Iterator[int]:
    """The lowest lane that is free for each request, in order of sending. O(rows · log lanes)."""
    ends: list[tuple[float, int]] = []
    free: list[int] = []
    lanes = 0
    order = np.argsort(outcome.arrival_seconds[rows], kind="stable")
    chosen = np.empty(len(rows), np.int64)
    for place in order.tolist():
        row = rows[place]
        while ends and ends[0][0] <= outcome.arrival_seconds[row]:
            heapq.heappush(free, heapq.heappop(ends)[1])
        if not free:
            heapq.heappush(free, lanes)
            lanes += 1
        chosen[place] = heapq.heappop(free)
        heapq.heappush(ends, (float(outcome.finish_seconds[row]), int(chosen[place])))
    yield from chosen.tolist()


def _micro(seconds: float) -> float:
    return round(seconds * _MICRO, 1)
