"""The report for a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from rich import box
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from collections.abc import Callable

    from sim.report.figures import Figures
    from sim.report.report import Report


class Column(NamedTuple):
    """A figure, how it is written, and whether less of it is better (None: neither)."""

    title: str
    value: Callable[[Figures], float]
    form: str
    less_is_better: bool | None


COLUMNS = (
    Column("TTFT mean ms", lambda one: one.ttft_seconds.mean * 1e3, ",.1f", True),
    Column("TTFT p99 ms", lambda one: one.ttft_seconds.p99 * 1e3, ",.0f", True),
    Column("ITL mean ms", lambda one: one.itl_seconds.mean * 1e3, ",.2f", True),
    Column("ITL p99 ms", lambda one: one.itl_seconds.p99 * 1e3, ",.1f", True),
    Column("E2E mean s", lambda one: one.e2e_seconds.mean, ",.2f", True),
    Column("cache hits", lambda one: one.cached_token_ratio, ".1%", False),
    Column("within SLO", lambda one: one.goodput.ratio, ".1%", False),
    Column("imba- lance", lambda one: one.imbalance, ".2f", True),
    Column("failed", lambda one: one.failed, ",.0f", True),
    Column("CPU s", lambda one: one.cpu_seconds, ",.2f", None),
)


def table(report: Report) -> Table:
    """One row per policy; the best of each figure is green. Fits into 80 columns, if policies have short names."""
    columns = [column for column in COLUMNS if column.title != "failed" or any(one.failed for one in report.figures)]
    made = Table(
        box=box.SIMPLE_HEAD, collapse_padding=True, pad_edge=False, caption=_caption(report), caption_justify="left"
    )
    made.add_column("policy", no_wrap=True)
    cells = [[_dash(format(column.value(one), column.form)) for one in report.figures] for column in columns]
    for column, texts in zip(columns, cells, strict=True):
        made.add_column(column.title, justify="right", min_width=max(len(text) for text in texts), vertical="bottom")
        for row in _best(column, report):
            texts[row].stylize("bold green")
    for label, texts_of_one in zip(report.labels, zip(*cells, strict=True), strict=True):
        made.add_row(label, *texts_of_one)
    return made


def _dash(text: str) -> Text:
    return Text("–" if "nan" in text else text)


def _best(column: Column, report: Report) -> list[int]:
    """The rows to mark: none if all are alike."""
    values = np.array([column.value(one) for one in report.figures])
    if column.less_is_better is None or not np.isfinite(values).any():
        return []
    best = np.nanmin(values) if column.less_is_better else np.nanmax(values)
    rows = np.flatnonzero(values == best)
    return [] if len(rows) == len(values) else rows.tolist()


def _caption(report: Report) -> str:
    bounds = sorted({(one.pooled_bound_ratio, one.infinite_bound_ratio) for one in report.figures})
    pooled, infinite = bounds[0] if bounds else (0.0, 0.0)
    ttft, itl = report.slo
    return (
        f"Cache hits by tokens; one cache for the whole fleet would have {pooled:.1%}, one without limit {infinite:.1%}. "
        f"SLO: first token within {ttft:g} s, {itl * 1e3:g} ms a token after it."
    )
