"""The report as JSON: its schema is described in docs/simulator.md, and `VERSION` changes with it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:
    from sim.report.report import Report

VERSION = 1


def document(report: Report) -> dict[str, Any]:
    """Plain dictionaries, lists, strings and numbers; what is not known is None."""
    trace = report.trace
    return {
        "warmpath_report": VERSION,
        "trace": {"name": trace.name, "requests": len(trace), "span_seconds": trace.span_seconds},
        "slo": plain(report.slo),
        "policies": [
            plain(figures) | {"settings": plain(outcome.settings)}
            for figures, outcome in zip(report.figures, report.outcomes, strict=True)
        ],
    }


def encode(report: Report) -> bytes:
    """The document, indented; the same bytes for the same outcomes."""
    return msgspec.json.format(msgspec.json.encode(document(report)), indent=2) + b"\n"


def plain(value: Any) -> Any:
    """Named tuples as dictionaries, and NaN as None."""
    if hasattr(value, "_asdict"):
        value = value._asdict()
    if isinstance(value, dict):
        return {name: plain(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
