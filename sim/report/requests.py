"""Every request as a line of a CSV file."""

from __future__ import annotations

import csv
from typing import TYPE_CHECKING

import numpy as np

from sim.report.figures import request_itl_seconds, ttft_seconds

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from sim.replay.outcome import Outcome
    from sim.report.report import Report

DIGITS = 6
"""Times are written to the microsecond."""


def write(report: Report, path: Path) -> None:
    """One line per policy and request, in the trace's order; what is not known is empty. O(policies · n).

    :raises OSError: it cannot be written.
    """
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        for number, (label, outcome) in enumerate(zip(report.labels, report.outcomes, strict=True)):
            columns = _columns(outcome)
            if number == 0:
                writer.writerow(["policy", "request", *columns])
            lists = [_texts(column) for column in columns.values()]
            writer.writerows(zip([label] * len(outcome.worker), range(len(outcome.worker)), *lists, strict=True))


def _columns(outcome: Outcome) -> dict[str, NDArray[np.float64] | NDArray[np.int64]]:
    return {
        "arrival_seconds": outcome.arrival_seconds,
        "worker": outcome.worker.astype(np.int64),
        "prefill_worker": outcome.prefill_worker.astype(np.int64),
        "input_tokens": outcome.input_tokens,
        "output_tokens": outcome.output_tokens,
        "cached_tokens": outcome.cached_tokens,
        "expected_cached_tokens": outcome.expected_cached_tokens,
        "best_cached_tokens": outcome.best_cached_tokens,
        "queue_seconds": outcome.queue_seconds,
        "ttft_seconds": ttft_seconds(outcome),
        "predicted_ttft_seconds": outcome.predicted_ttft_seconds,
        "itl_seconds": request_itl_seconds(outcome),
        "e2e_seconds": outcome.finish_seconds - outcome.arrival_seconds,
        "retractions": outcome.retractions.astype(np.int64),
        "failed": (~outcome.done).astype(np.int64),
    }


def _texts(column: NDArray[np.float64] | NDArray[np.int64]) -> list[float | int | str]:
    if column.dtype.kind == "f":
        return ["" if value != value else round(value, DIGITS) for value in column.tolist()]
    return column.tolist()  # type: ignore[no-any-return]
