"""All forms of the report, from outcomes made by hand."""

from __future__ import annotations

import argparse
import csv
import io
import json
import re
import struct
import zlib
from base64 import b64decode
from html.parser import HTMLParser
from typing import TYPE_CHECKING

import numpy as np
import pytest
from rich.console import Console

from sim.report import options, perfetto, requests
from sim.report.document import document, encode
from sim.report.figures import gap_quantile
from sim.report.html import axis
from sim.report.html.heatmap import heatmap
from sim.report.html.page import page
from sim.report.html.plots import charts
from sim.report.progress import Progress
from sim.report.report import Report
from sim.report.series import Windows
from sim.report.slo import Slo
from sim.report.table import table
from tests.sim.report.outcomes import nothing_answered, outcome, trace

if TYPE_CHECKING:
    from pathlib import Path

PLOTS = ["ttft", "itl", "e2e", "goodput", "hits", "regret", "queue", "imbalance", "ttft-time", "calibration"]


@pytest.fixture
def report() -> Report:
    return Report.of(trace(), [outcome(), nothing_answered()], Slo(0.4, 0.1))


# ---- JSON


def test_every_figure_has_its_exact_value(report: Report) -> None:
    made = document(report)
    assert made["warmpath_report"] == 1
    assert made["trace"] == {"name": "by hand", "requests": 4, "span_seconds": 3.0}
    assert made["slo"] == {"ttft_seconds": 0.4, "itl_seconds": 0.1}
    figures = made["policies"][0]
    expected = {
        "policy": "one",
        "seed": 7,
        "requests": 4,
        "failed": 1,
        "duration_seconds": 4.3,
        "ttft_seconds": {"mean": 0.3, "p50": 0.3, "p90": 0.46, "p99": 0.496},
        "itl_seconds": {"mean": 3.1 / 20, "p99": 0.4 - 0.36 * 0.02},
        "e2e_seconds": {"mean": 4.0 / 3, "p50": 0.5, "p90": 0.5 + 0.8 * 2.8, "p99": 0.5 + 0.98 * 2.8},
        "queue_seconds": {"mean": 0.1, "p50": 0.1, "p90": 0.18, "p99": 0.198},
        "cached_token_ratio": 90 / 600,
        "pooled_bound_ratio": 200 / 600,
        "infinite_bound_ratio": 200 / 600,
        "regret_token_ratio": 120 / 600,
        "expected_cached_ratio": 120 / 600,
        "imbalance": 4 / 3,
        "busy_prefill_ratio": 0.1,
        "busy_decode_ratio": 0.25,
        "retractions": 2,
        "goodput": {"ratio": 0.25, "requests_per_second": 1 / 4.3},
        "calibration": {"requests": 2, "bias": 3.0, "within_factor_2": 0.5},
        "cpu_seconds": 0.25,
        "settings": {"workers": 2, "capacity_tokens": 150, "kv_events": True, "routers": 1},
    }
    assert figures.keys() == expected.keys()
    for name, value in expected.items():
        assert figures[name] == (pytest.approx(value) if isinstance(value, float | dict) else value), name


def test_what_is_not_known_is_null_and_the_bytes_are_stable(report: Report) -> None:
    figures = json.loads(encode(report))["policies"][1]
    assert figures["failed"] == 4
    assert figures["ttft_seconds"] == {"mean": None, "p50": None, "p90": None, "p99": None}
    assert figures["goodput"] == {"ratio": 0.0, "requests_per_second": 0.0}
    assert figures["calibration"] == {"requests": 0, "bias": None, "within_factor_2": None}
    assert encode(report) == encode(Report.of(trace(), [outcome(), nothing_answered()], Slo(0.4, 0.1)))


def test_a_smaller_fleet_has_a_lower_bound() -> None:
    small = Report.of(trace(), [outcome(settings={"capacity_tokens": 49})], Slo())
    assert small.figures[0].pooled_bound_ratio == 0.0
    assert small.figures[0].infinite_bound_ratio == pytest.approx(1 / 3)


@pytest.mark.parametrize(("quantile", "seconds"), [(0.25, 0.01), (0.45, 0.018), (0.75, 0.22), (1.0, 0.4)])
def test_quantiles_of_gaps_are_interpolated(quantile: float, seconds: float) -> None:
    assert gap_quantile(outcome(), quantile) == pytest.approx(seconds)


# ---- table


def test_the_table_marks_the_best(report: Report) -> None:
    worse = outcome("worse", first_token_seconds=np.array([0.2, 1.6, np.nan, 3.5]))
    console = Console(width=100, record=True, file=io.StringIO(), color_system="truecolor", force_terminal=True)
    console.print(table(Report.of(trace(), [outcome(), worse], Slo())))
    text = console.export_text(styles=True)
    assert re.search(r"\x1b\[1;32m\s*300\.0", text)
    assert not re.search(r"\x1b\[1;32m\s*433\.3", text)
    assert "one cache for the whole fleet would have 33.3%" in text


def test_a_policy_that_comes_twice_has_its_seed() -> None:
    assert Report.of(trace(), [outcome(), outcome(seed=8)], Slo()).labels == ["one (seed 7)", "one (seed 8)"]


# ---- requests and Perfetto


def test_every_request_is_a_line(report: Report, tmp_path: Path) -> None:
    requests.write(report, tmp_path / "file.csv")
    with (tmp_path / "file.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["policy"], row["request"]) for row in rows[3:5]] == [("one", "3"), ("none", "0")]
    assert rows[1]["ttft_seconds"] == "0.3"
    assert rows[1]["itl_seconds"] == "0.3"
    assert rows[2] | {"ttft_seconds": "", "failed": "1", "worker": "-1"} == rows[2]
    assert rows[3]["predicted_ttft_seconds"] == "0.1"


def test_slices_of_one_lane_do_not_overlap(report: Report, tmp_path: Path) -> None:
    perfetto.write(report, tmp_path / "file.json")
    events = json.loads((tmp_path / "file.json").read_text())["traceEvents"]
    names = [event["args"]["name"] for event in events if event["name"] == "process_name"]
    assert names == ["one: worker 0", "one: worker 1", "none: worker 0", "none: worker 1"]
    whole = [event for event in events if event["name"].startswith("request ")]
    assert [event["name"] for event in whole] == ["request 0", "request 3", "request 1"]
    parts = [(event["name"], event["ts"], event["dur"]) for event in events if event["ph"] == "X" and event["pid"] == 2]
    assert parts[1:] == [("queue", 1e6, 1e5), ("prefill", 1.1e6, 2e5), ("decode", 1.3e6, 3e6)]


def test_requests_at_the_same_time_lie_in_different_lanes(tmp_path: Path) -> None:
    one_worker = outcome(worker=np.array([0, 0, -1, 0], np.int32))
    perfetto.write(Report.of(trace(), [one_worker], Slo()), tmp_path / "file.json")
    events = json.loads((tmp_path / "file.json").read_text())["traceEvents"]
    assert {event["name"]: event["tid"] for event in events if event["name"].startswith("request ")} == {
        "request 0": 0,
        "request 1": 0,
        "request 3": 1,
    }


# ---- page


class Page(HTMLParser):
    """Checks that elements are closed in order, and keeps what is looked for."""

    VOID = frozenset({"meta", "path", "line", "i"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.addresses: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = dict(attrs)
        self.ids += [names["id"] or ""] if "id" in names else []
        self.addresses += [value or "" for name, value in attrs if name in ("href", "src")]
        if tag not in ("meta", "path", "line"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Nothing stays open."""

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_has_every_plot_and_needs_nothing_else(report: Report) -> None:
    text = page(report)
    parsed = Page(text)
    assert parsed.open == []
    assert set(PLOTS) | {"load", "cache"} <= set(parsed.ids)
    assert parsed.addresses == []
    assert not re.search(r"(https?:)?//\w+\.\w+", text.replace("http://www.w3.org", ""))
    numbers = json.loads(re.search(r"id=numbers>(.*?)</script>", text).group(1))  # type: ignore[union-attr]
    assert list(numbers) == PLOTS
    assert [len(chart["series"]) for chart in numbers.values()][:4] == [1, 1, 1, 1]
    assert text == page(report)


def test_names_cannot_break_the_page() -> None:
    evil = "</script><b>&\"'"
    text = page(Report.of(trace().with_columns(name=evil), [outcome(evil)], Slo()))
    assert "</script><b>&" not in text
    assert Page(text).open == []


@pytest.mark.parametrize("outcomes", [[], [nothing_answered()]], ids=["none", "nothing answered"])
def test_a_page_of_nothing_is_a_page(outcomes: list[object]) -> None:
    assert Page(page(Report.of(trace(), outcomes, Slo()))).open == []  # type: ignore[arg-type]


def test_the_plots_show_the_outcome(report: Report) -> None:
    shown = {chart.name: chart for chart in charts(report)}
    ttft = shown["ttft"].series[0]
    assert np.interp(0.3, ttft.x, ttft.y) == pytest.approx(0.5, abs=0.01)
    assert shown["goodput"].series[0].y.max() == pytest.approx(2 / 4.3)
    hits = {one.label: one for one in shown["hits"].series}
    assert set(hits) == {"infinite cache", "one pooled cache", "one", "none"}
    assert np.nanmax(hits["one"].y) == pytest.approx(90 / 200, abs=0.01)
    assert np.nanmax(shown["queue"].series[0].y) == 3
    imbalance = shown["imbalance"].series[0].y
    assert imbalance[[0, 80]].tolist() == pytest.approx([2.0, 3 / 2.5])  # 1 and 0 requests, then 3 and 2
    assert np.isnan(imbalance[-1])


def test_windows_carry_on_where_there_is_no_sample() -> None:
    windows = Windows.of(4.0, count=4)
    assert windows.means(np.array([0.5, 2.5]), np.array([[1, 2], [3, 4]])).tolist() == [[1, 2], [1, 2], [3, 4], [3, 4]]
    assert windows.sums(np.array([0.5, 0.6, np.nan]), np.array([1, 2, 4])).tolist() == [3, 0, 0, 0]


def test_a_heatmap_is_a_png_of_its_values() -> None:
    address = heatmap(np.array([[0.0, 1.0], [2.0, 5.0]]), most=4.0)
    raw = b64decode(address.removeprefix("data:image/png;base64,"))
    assert struct.unpack(">II", raw[16:24]) == (2, 2)
    start = raw.index(b"IDAT") + 4
    pixels = zlib.decompress(raw[start : start + struct.unpack(">I", raw[start - 8 : start - 4])[0]])
    assert pixels == bytes([0, 0, 0, 0, 64, 0, 0, 128, 0, 255])


@pytest.mark.parametrize(
    ("made", "ticks"),
    [
        (axis.linear("", 0.93, axis.percent_text), [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        (axis.linear("", float("nan"), axis.number_text), [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        (axis.logarithmic("", np.array([0.02, 0.5]), axis.seconds_text), [0.03, 0.1, 0.3]),
        (axis.logarithmic("", np.array([1e-3, 100.0]), axis.seconds_text), [1e-3, 1e-2, 0.1, 1.0, 10.0, 100.0]),
        (axis.logarithmic("", np.zeros(0), axis.seconds_text), [1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3, 1.0]),
        (axis.clock("", 530.0), [0, 60, 120, 180, 240, 300, 360, 420, 480]),
    ],
)
def test_ticks_are_round(made: axis.Axis, ticks: list[float]) -> None:
    assert made.ticks() == pytest.approx(ticks)


# ---- options


def test_all_files_are_written(report: Report, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parser = argparse.ArgumentParser()
    options.add_arguments(parser)
    names = ("json", "html", "csv", "perfetto")
    given = [word for name in names for word in (f"--{name}", str(tmp_path / f"file.{name}"))]
    options.write(report, parser.parse_args([*given, "--slo-ttft", "2"]))
    assert "by hand: 4 requests" in capsys.readouterr().out
    assert all((tmp_path / f"file.{name}").stat().st_size for name in names)
    options.write(report, parser.parse_args(given), part="conversation")
    assert (tmp_path / "file-conversation.html").exists()


def test_json_alone_goes_to_standard_output(report: Report, capsys: pytest.CaptureFixture[str]) -> None:
    parser = argparse.ArgumentParser()
    options.add_arguments(parser)
    options.write(report, parser.parse_args(["--json", "-"]))
    assert json.loads(capsys.readouterr().out)["policies"][0]["policy"] == "one"
    assert options.slo(parser.parse_args(["--slo-itl", "0.02"])) == Slo(1.0, 0.02)


def test_progress_is_silent_without_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress() as progress:
        tell = progress.bar("one")
        tell(0.5)
        tell(1.0)
    assert capsys.readouterr() == ("", "")
