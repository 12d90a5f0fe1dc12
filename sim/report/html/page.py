"""The whole page."""

from __future__ import annotations

import math
from html import escape
from importlib.resources import files
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from sim.report.html.axis import clock_text, number_text, seconds_text
from sim.report.html.chart import COLOURS
from sim.report.html.heatmap import heatmap
from sim.report.html.plots import cached_per_worker, charts, load_per_worker, windows_of
from sim.report.html.scoreboard import scoreboard

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    from sim.replay.outcome import Outcome
    from sim.report.html.chart import Chart
    from sim.report.report import Report
    from sim.report.series import Windows

OF_PAIRS = ("transfer_bytes_per_second", "kv_token_bytes")
"""Settings that say nothing without separate prefill and decode workers."""
LONGEST_CHIP = 40
"""Characters of a setting that is shown at the top."""


def page(report: Report) -> str:
    """The HTML; the same for the same outcomes. O(n log n)."""
    plots = charts(report)
    numbers = {chart.name: chart.numbers() for chart in plots}
    return "".join(
        [
            "<!doctype html><html lang=en><head><meta charset=utf-8>",
            '<meta name=viewport content="width=device-width,initial-scale=1">',
            f"<title>{escape(report.trace.name)}: {escape(', '.join(report.labels))}</title>",
            f"<style>{_resource('page.css')}</style></head><body>",
            _header(report),
            f"<main><section class=wide>{scoreboard(report)}</section>",
            *(_figure(chart) for chart in plots),
            *_heatmaps(report),
            "</main>",
            _footer(report),
            f"<script type=application/json id=numbers>{_json(numbers)}</script>",
            f"<script>{_resource('page.js')}</script></body></html>\n",
        ]
    )


def _header(report: Report) -> str:
    trace = report.trace
    chips = [f"{len(trace):,} requests", f"{seconds_text(round(trace.span_seconds))} long", *_common_settings(report)]
    legend = "".join(
        f'<button data-policy="{number}"><i class="dot p{number % COLOURS}"></i>{escape(label)}</button>'
        for number, label in enumerate(report.labels)
    )
    return (
        f"<header><div><p class=over>warmpath replay</p><h1>{escape(trace.name)}</h1>"
        f"<p class=chips>{''.join(f'<span>{escape(chip)}</span>' for chip in chips)}</p></div>"
        f"<nav>{legend}<button id=theme title='light or dark' aria-label='light or dark'>◐</button></nav></header>"
    )


def _common_settings(report: Report) -> Iterator[str]:
    """The settings that all outcomes have in common, as far as they say something."""
    if not report.outcomes:
        return
    first = report.outcomes[0].settings
    unsaid = {"trace"} if first.get("prefill") else {"trace", *OF_PAIRS}
    for name, value in first.items():
        alike = all(outcome.settings.get(name) == value for outcome in report.outcomes)
        alike = alike and name not in unsaid
        words = name.replace("_", " ")
        if alike and isinstance(value, bool):
            yield words if value else f"no {words}"
        elif alike and isinstance(value, int | float) and value:
            yield f"{words} {number_text(value)}"
        elif alike and isinstance(value, str) and len(value) <= LONGEST_CHIP:
            yield f"{words} {value}"


def _figure(chart: Chart) -> str:
    others = "".join(f"<span class=other>{escape(one.label)}</span>" for one in chart.series if one.policy is None)
    empty = "" if chart.series else "<p class=empty>nothing to show</p>"
    return (
        f'<section id="{chart.name}"><h2>{escape(chart.title)}{others}</h2><p>{escape(chart.about)}</p>'
        f"<figure>{chart.svg()}{empty}<div class=tip></div></figure></section>"
    )


def _heatmaps(report: Report) -> Iterator[str]:
    windows = windows_of(report)
    yield _per_worker(report, windows, "load", "Load per worker", "requests", load_per_worker)
    yield _per_worker(report, windows, "cache", "Cache per worker", "tokens", cached_per_worker)


def _per_worker(
    report: Report,
    windows: Windows,
    name: str,
    title: str,
    unit: str,
    values: Callable[[Outcome, Windows], NDArray[np.float64]],
) -> str:
    """One image per policy, on one scale: by the square root, so that few busy workers do not hide the others."""
    arrays = [np.sqrt(values(outcome, windows).T) for outcome in report.outcomes]
    most = max((float(array.max(initial=0.0)) for array in arrays), default=0.0)
    pairs = enumerate(zip(arrays, report.labels, strict=True))
    images = "".join(_image(array, most, number, label) for number, (array, label) in pairs)
    end, full = clock_text(math.ceil(windows.edges[-1])), number_text(most * most)
    about = f"A row is a worker; time runs to the right, until {end}; full colour is {full} {unit}."
    return f'<section class=wide id="{name}"><h2>{title}</h2><p>{about}</p><div class=heats>{images}</div></section>'


def _image(values: NDArray[np.float64], most: float, number: int, label: str) -> str:
    height, colour, name = min(max(10 * len(values), 60), 260), f"p{number % COLOURS}", escape(label)
    address = heatmap(values, most)
    mask = f"-webkit-mask-image:url({address});mask-image:url({address});height:{height}px"
    return (
        f'<div class=heat data-of="{number}"><p><i class="dot {colour}"></i>{name}</p>'
        f'<div class=plate><div class="mask {colour}" style="{mask}" role=img aria-label="{name}"></div></div></div>'
    )


def _footer(report: Report) -> str:
    ttft, itl = report.slo
    return (
        "<footer><p>Times are those of answered requests. <b>Cache hit ratio</b>: of all prompt tokens, those that came from a "
        "cache. <b>Pooled bound</b>: the same if the caches of the whole fleet were one, least recently used out first. "
        "<b>Regret</b>: of all prompt tokens, those that another worker had cached when the request was placed, and the chosen one "
        f"had not. <b>Goodput</b>: requests with a first token within {seconds_text(ttft)}, {seconds_text(itl)} a token after it. "
        "<b>Imbalance</b>: requests at the fullest worker by the mean of all workers, over the whole time.</p></footer>"
    )


def _resource(name: str) -> str:
    return files("sim.report.html").joinpath(name).read_text(encoding="utf-8")


def _json(value: Any) -> str:
    """JSON that cannot end the script element it is in."""
    return msgspec.json.encode(value).decode().replace("<", "\\u003c")
