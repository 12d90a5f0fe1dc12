"""Which plots there are, and what is in them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from sim.report.figures import request_itl_seconds, ttft_seconds
from sim.report.html import axis
from sim.report.html.chart import Chart, Mark, Series
from sim.report.series import HitRatios, Windows

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from sim.replay.outcome import Outcome
    from sim.report.report import Report

_SHARES = np.concatenate([np.linspace(0.0, 0.9, 91), 1 - np.geomspace(0.1, 1e-4, 60)[1:], [1.0]])
"""Where distributions are drawn: the upper tail closely."""
_ENOUGH = 0.999
"""Of all token gaps: the few longest would squeeze the others."""
_LEAST_LOAD = 0.5
"""Requests per worker below which imbalance means nothing."""


def charts(report: Report) -> list[Chart]:
    """All plots of lines, in the page's order."""
    windows = windows_of(report)
    return [
        _distribution(report, "ttft", "Time to first token", ttft_seconds, Mark(report.slo.ttft_seconds, "SLO")),
        _token_gaps(report),
        _distribution(report, "e2e", "End-to-end latency", _e2e_seconds),
        _goodput(report),
        _hit_ratio(report, windows),
        _regret(report, windows),
        _queue(report, windows),
        _imbalance(report, windows),
        _ttft_over_time(report, windows),
        _calibration(report),
    ]


def windows_of(report: Report) -> Windows:
    """The same for all policies: until the last request of any has ended."""
    ends = [float(np.nanmax(outcome.finish_seconds)) for outcome in report.outcomes if outcome.done.any()]
    return Windows.of(max(ends, default=report.trace.span_seconds))


# ---- distributions


def _distribution(
    report: Report, name: str, title: str, column: Callable[[Outcome], NDArray[np.float64]], *marks: Mark
) -> Chart:
    series = []
    for number, (label, outcome) in enumerate(zip(report.labels, report.outcomes, strict=True)):
        seconds = column(outcome)[outcome.done]
        if len(seconds):
            series.append(Series(label, np.maximum(np.quantile(seconds, _SHARES), 1e-6), _SHARES, number))
    return _shares(name, title, "Share of requests answered within a time.", series, marks)


def _token_gaps(report: Report) -> Chart:
    series = []
    for number, (label, outcome) in enumerate(zip(report.labels, report.outcomes, strict=True)):
        total = np.cumsum(outcome.gap_counts)
        if len(total) and total[-1]:
            some = slice(max(int(np.argmax(total > 0)) - 1, 0), int(np.argmax(total >= _ENOUGH * total[-1])) + 1)
            edges = np.maximum(outcome.gap_edges_seconds[1:][some], 1e-6)
            series.append(Series(label, edges, total[some] / total[-1], number))
    mark = Mark(report.slo.itl_seconds, "SLO")
    return _shares("itl", "Inter-token latency", "Share of all gaps between tokens within a time.", series, [mark])


def _shares(name: str, title: str, about: str, series: Sequence[Series], marks: Sequence[Mark]) -> Chart:
    x = axis.logarithmic("seconds, logarithmic", _joined([one.x for one in series]), axis.seconds_text)
    y = axis.linear("share", 1.0, axis.percent_text)
    return Chart(name=name, title=title, about=about, x=x, y=y, series=series, marks=marks)


def _e2e_seconds(outcome: Outcome) -> NDArray[np.float64]:
    return outcome.finish_seconds - outcome.arrival_seconds


def _goodput(report: Report) -> Chart:
    """Requests per second that keep the promise, over the promised time to first token."""
    series = []
    for number, (label, outcome, figures) in enumerate(
        zip(report.labels, report.outcomes, report.figures, strict=True)
    ):
        steady = outcome.done & (request_itl_seconds(outcome) <= report.slo.itl_seconds)
        seconds = np.sort(ttft_seconds(outcome)[steady])
        if len(seconds) and figures.duration_seconds:
            x = np.quantile(seconds, _SHARES)
            kept = np.searchsorted(seconds, x, side="right") / figures.duration_seconds
            series.append(Series(label, np.maximum(x, 1e-6), kept, number))
    longest = max((one.x[-1] for one in series), default=0.0)
    series = [one._replace(x=np.append(one.x, longest), y=np.append(one.y, one.y[-1])) for one in series]
    rates = [one.requests / one.duration_seconds for one in report.figures if one.duration_seconds]
    return Chart(
        name="goodput",
        title="Goodput",
        about=f"Requests per second within a time to first token and {axis.seconds_text(report.slo.itl_seconds)} a token.",
        x=axis.logarithmic("promised time to first token", _joined([one.x for one in series]), axis.seconds_text),
        y=axis.linear("requests/s", max(rates, default=1.0), axis.number_text),
        series=series,
        marks=[Mark(report.slo.ttft_seconds, "SLO")],
    )


# ---- over time


def _hit_ratio(report: Report, windows: Windows) -> Chart:
    series = []
    for number, (label, outcome, bounds) in enumerate(zip(report.labels, report.outcomes, report.bounds, strict=True)):
        ratios = HitRatios.of(outcome, bounds, windows)
        if number == 0:
            series.append(Series("infinite cache", windows.seconds, ratios.infinite, None))
            series.append(Series("one pooled cache", windows.seconds, ratios.pooled, None))
        series.append(Series(label, windows.seconds, ratios.cached, number))
    about = "Share of prompt tokens found in a cache, and what one cache for all workers would have had."
    return _over_time("hits", "Cache hit ratio", about, windows, series, axis.percent_text)


def _regret(report: Report, windows: Windows) -> Chart:
    series = [
        Series(label, windows.seconds, HitRatios.of(outcome, bounds, windows).regret, number)
        for number, (label, outcome, bounds) in enumerate(
            zip(report.labels, report.outcomes, report.bounds, strict=True)
        )
    ]
    about = (
        "Share of prompt tokens that another worker had cached when the request was placed, and the chosen one had not."
    )
    return _over_time("regret", "Regret", about, windows, series, axis.percent_text)


def _queue(report: Report, windows: Windows) -> Chart:
    series = [
        Series(
            label,
            windows.seconds,
            windows.means(outcome.samples.sample_seconds, outcome.samples.waiting).sum(axis=1),
            number,
        )
        for number, (label, outcome) in enumerate(zip(report.labels, report.outcomes, strict=True))
    ]
    return _over_time("queue", "Queue", "Requests that wait at the engines, in all.", windows, series, axis.number_text)


def _imbalance(report: Report, windows: Windows) -> Chart:
    series = []
    for number, (label, outcome) in enumerate(zip(report.labels, report.outcomes, strict=True)):
        load = load_per_worker(outcome, windows)
        mean = load.mean(axis=1)
        ratio = np.where(mean >= _LEAST_LOAD, load.max(axis=1) / np.maximum(mean, _LEAST_LOAD), np.nan)
        series.append(Series(label, windows.seconds, ratio, number))
    about = "Requests at the fullest worker by the mean of all: 1 is even. Left out where there are hardly any."
    return _over_time("imbalance", "Imbalance", about, windows, series, axis.number_text, low=1.0)


def _ttft_over_time(report: Report, windows: Windows) -> Chart:
    series = []
    for number, (label, outcome) in enumerate(zip(report.labels, report.outcomes, strict=True)):
        done, ttft = outcome.done, ttft_seconds(outcome)
        count = windows.sums(outcome.arrival_seconds[done], np.ones(int(done.sum())))
        with np.errstate(invalid="ignore"):
            mean = windows.sums(outcome.arrival_seconds[done], ttft[done]) / count
        series.append(Series(label, windows.seconds, mean, number))
    about = "Mean of the requests that were sent in each window."
    return _over_time("ttft-time", "Time to first token over time", about, windows, series, axis.seconds_text)


def _over_time(
    name: str,
    title: str,
    about: str,
    windows: Windows,
    series: Sequence[Series],
    form: Callable[[float], str],
    low: float = 0.0,
) -> Chart:
    values = _joined([one.y for one in series])
    x = axis.clock("time, minutes and seconds", float(windows.edges[-1]))
    y = axis.linear("", float(np.nanmax(values)) if np.isfinite(values).any() else 1.0, form, low)
    return Chart(name=name, title=title, about=about, x=x, y=y, series=series)


# ---- predictions


def _calibration(report: Report) -> Chart:
    """Real times over predicted ones: medians, and the middle 80 percent."""
    series = []
    for number, (label, outcome) in enumerate(zip(report.labels, report.outcomes, strict=True)):
        known = outcome.done & (outcome.predicted_ttft_seconds > 0)
        predicted, real = outcome.predicted_ttft_seconds[known], ttft_seconds(outcome)[known]
        if len(real) >= 10:
            series.append(_by_prediction(label, predicted, real, number))
    bands = [bound for one in series if one.band for bound in one.band]
    around = _joined([*(one.x for one in series), *(one.y for one in series), *bands])
    return Chart(
        name="calibration",
        title="Prediction calibration",
        about="Real time to first token over the predicted one: median, and the middle 80 %. On the dashed line it was right.",
        x=axis.logarithmic("predicted time to first token", around, axis.seconds_text),
        y=axis.logarithmic("real", around, axis.seconds_text),
        series=series,
        diagonal=True,
    )


def _by_prediction(label: str, predicted: NDArray[np.float64], real: NDArray[np.float64], number: int) -> Series:
    """In groups of equal size by prediction."""
    groups = np.array_split(np.argsort(predicted, kind="stable"), min(20, len(real) // 5))
    x = np.array([np.median(predicted[group]) for group in groups])
    low, middle, high = np.array([np.quantile(real[group], [0.1, 0.5, 0.9]) for group in groups]).T
    return Series(label, x, middle, number, (low, high))


# ---- per worker


def load_per_worker(outcome: Outcome, windows: Windows) -> NDArray[np.float64]:
    """Requests at each worker, running and waiting, shape (windows, workers)."""
    return windows.means(outcome.samples.sample_seconds, outcome.samples.running + outcome.samples.waiting)


def cached_per_worker(outcome: Outcome, windows: Windows) -> NDArray[np.float64]:
    """Tokens in each worker's cache, shape (windows, workers)."""
    return windows.means(outcome.samples.sample_seconds, outcome.samples.cached_tokens)


def _joined(columns: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
    return np.concatenate(columns) if columns else np.zeros(0)
