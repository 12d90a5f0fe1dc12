"""The table at the top: each figure with a bar behind it, the best one marked."""

from __future__ import annotations

import math
from html import escape
from typing import TYPE_CHECKING, NamedTuple

from sim.report.html.axis import seconds_text
from sim.report.html.chart import COLOURS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from sim.report.figures import Figures
    from sim.report.report import Report


class Row(NamedTuple):
    """A figure of all policies."""

    title: str
    value: Callable[[Figures], float]
    form: Callable[[float], str]
    less_is_better: bool | None = True


def _plain(value: float) -> str:
    return f"{value:,.2f}"


def _percent(value: float) -> str:
    return f"{value * 100:.1f} %"


def _whole(value: float) -> str:
    return f"{value:,.0f}"


ROWS = (
    Row("Time to first token, mean", lambda one: one.ttft_seconds.mean, seconds_text),
    Row("p50", lambda one: one.ttft_seconds.p50, seconds_text),
    Row("p90", lambda one: one.ttft_seconds.p90, seconds_text),
    Row("p99", lambda one: one.ttft_seconds.p99, seconds_text),
    Row("Inter-token latency, mean", lambda one: one.itl_seconds.mean, seconds_text),
    Row("p99", lambda one: one.itl_seconds.p99, seconds_text),
    Row("End-to-end, mean", lambda one: one.e2e_seconds.mean, seconds_text),
    Row("p99", lambda one: one.e2e_seconds.p99, seconds_text),
    Row("Cache hit ratio", lambda one: one.cached_token_ratio, _percent, less_is_better=False),
    Row(
        "of the pooled bound",
        lambda one: _by(one.cached_token_ratio, one.pooled_bound_ratio),
        _percent,
        less_is_better=False,
    ),
    Row("Regret", lambda one: one.regret_token_ratio, _percent),
    Row("Goodput", lambda one: one.goodput.ratio, _percent, less_is_better=False),
    Row("Imbalance", lambda one: one.imbalance, _plain),
    Row("Workers in prefill", lambda one: one.busy_prefill_ratio, _percent, None),
    Row("Failed requests", lambda one: float(one.failed), _whole),
    Row("CPU time of the replay", lambda one: one.cpu_seconds, seconds_text, None),
)


def scoreboard(report: Report) -> str:
    """The table."""
    heads = "".join(
        f'<th><i class="dot p{number % COLOURS}"></i>{escape(label)}</th>' for number, label in enumerate(report.labels)
    )
    rows = "".join(_row(row, report.figures) for row in ROWS)
    return f"<table class='scores'><thead><tr><th></th>{heads}</tr></thead><tbody>{rows}</tbody></table>"


def _row(row: Row, figures: Sequence[Figures]) -> str:
    is_part = row.title[0].islower() or row.title.startswith("p9") or row.title == "p50"
    return f"<tr{' class=part' if is_part else ''}><th>{row.title}</th>{''.join(_cells(row, figures))}</tr>"


def _cells(row: Row, figures: Sequence[Figures]) -> Iterator[str]:
    values = [row.value(one) for one in figures]
    known = [value for value in values if math.isfinite(value)]
    best = None if row.less_is_better is None or len(set(known)) < 2 else (min if row.less_is_better else max)(known)
    most = max(known, default=0.0)
    for number, value in enumerate(values):
        width = 100 * value / most if most > 0 and math.isfinite(value) else 0
        text = row.form(value) if math.isfinite(value) else "–"
        style = " class=best" if value == best else ""
        yield f'<td{style}><i class="bar p{number % COLOURS}" style="width:{width:.0f}%"></i><b>{escape(text)}</b></td>'


def _by(part: float, whole: float) -> float:
    return part / whole if whole else math.nan
