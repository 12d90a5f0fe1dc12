"""What a benchmark reports: figures against a rival, as a table and as JSON.

A row is a function that yields `Figure`s (or one `Skipped`); `report` runs rows, prints the table and writes the file. Ours and the
rival's are measured in turns in the same process, so that both meet the same noise.
"""

from __future__ import annotations

import json
import os
import platform
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence


@dataclass(frozen=True, slots=True)
class Figure:
    """One measured row: ours, the rival's where there is one, and what was to be reached."""

    figure: str
    unit: str
    """What `ours` and `rival` are in; a unit that ends in "/s" or names a ratio of hits is better when higher."""
    ours: float
    rival: float | None = None
    reach: str = ""
    """In words, as the table shows it."""
    met: bool | None = None
    """None: nothing was to be reached."""

    @property
    def ratio(self) -> float | None:
        """How many times better than the rival; below 1 is worse. None without a rival."""
        if not self.rival or not self.ours:
            return None
        return self.ours / self.rival if self.unit.endswith("/s") else self.rival / self.ours


@dataclass(frozen=True, slots=True)
class Skipped:
    """A row that did not run, and why."""

    figure: str
    reason: str


def against(figure: str, unit: str, ours: float, rival: float, times: float) -> Figure:
    """A figure that should be `times` better than the rival's.

    >>> against("store", "blocks/s", 30.0, 2.0, 12).met
    True
    """
    plain = Figure(figure, unit, ours, rival)
    return Figure(figure, unit, ours, rival, f">= {times:g}x", (plain.ratio or 0.0) >= times)


def at_most(figure: str, unit: str, ours: float, bound: float, rival: float | None = None) -> Figure:
    """A figure that should not exceed a bound.

    >>> at_most("memory", "bytes/block", 24.0, 32.0).met
    True
    """
    return Figure(figure, unit, ours, rival, f"<= {bound:g} {unit}", ours <= bound)


def at_least(figure: str, unit: str, ours: float, bound: float, rival: float | None = None) -> Figure:
    """A figure that should not stay below a bound."""
    return Figure(figure, unit, ours, rival, f">= {bound:g} {unit}", ours >= bound)


def seconds_each(function: Callable[..., object], arguments: Iterable[object]) -> list[float]:
    """Wall seconds of each call, one per argument."""
    clock, walls = time.perf_counter, []
    for argument in arguments:
        start = clock()
        function(argument)
        walls.append(clock() - start)
    return walls


def interleaved(rounds: int, **sides: Callable[[], float]) -> dict[str, float]:
    """The median over rounds of what each side measures; within a round the sides take turns."""
    measured: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, measure in sides.items():
            measured[name].append(measure())
    return {name: median(values) for name, values in measured.items()}


def percentile(values: Sequence[float], share: float) -> float:
    """The value below which that share of all lies.

    >>> percentile([3.0, 1.0, 2.0], 0.5)
    2.0
    """
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def machine() -> str:
    """One line on what the figures were taken on."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    load = " ".join(f"{value:.1f}" for value in os.getloadavg())
    return f"{model}, {os.cpu_count()} cores, Python {platform.python_version()}, load average {load}"


def table(results: Iterable[Figure | Skipped]) -> Table:
    """The figures for a person."""
    shown = Table(title=machine(), title_justify="left", title_style="dim")
    shown.add_column("figure", min_width=40)
    for name in ("ours", "rival", "ratio", "reach"):
        shown.add_column(name, justify="right")
    shown.add_column("met")
    for result in results:
        shown.add_row(*_cells(result))
    return shown


def write_json(results: Iterable[Figure | Skipped], path: Path) -> None:
    """A list of objects with the keys figure, unit, ours, rival, ratio, reach, met; a skipped row has figure and skipped."""
    records = [
        {"figure": result.figure, "skipped": result.reason}
        if isinstance(result, Skipped)
        else {
            **{key: value for key, value in asdict(result).items() if key not in ("reach", "met")},
            "ratio": result.ratio,
            "reach": result.reach,
            "met": result.met,
        }
        for result in results
    ]
    path.write_text(json.dumps(records, indent=1) + "\n")


def report(rows: Iterable[Callable[[], Iterable[Figure | Skipped]]], json_path: Path | None = None) -> None:
    """Run rows one after another, print what they yield as one table, and write it down."""
    console, results = Console(), list[Figure | Skipped]()
    for row in rows:
        results.extend(row())
    console.print(table(results))
    if json_path is not None:
        write_json(results, json_path)


def _cells(result: Figure | Skipped) -> tuple[str, ...]:
    if isinstance(result, Skipped):
        return (result.figure, "", "", "", "", f"skipped: {result.reason}")
    met = {True: "[green]yes", False: "[red]no", None: ""}[result.met]
    ratio = "" if result.ratio is None else f"{result.ratio:.1f}x"
    rival = "" if result.rival is None else _number(result.rival)
    return (result.figure, f"{_number(result.ours)} {result.unit}", rival, ratio, result.reach, met)


def _number(value: float) -> str:
    return f"{value / 1e6:.1f} M" if value >= 1e6 else f"{value:,.4g}"
