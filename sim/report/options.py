"""The report's part of a command line."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from events.command import seconds
from sim.report.slo import Slo
from sim.traces.values import STANDARD_OUTPUT, writable

if TYPE_CHECKING:
    import argparse
    from pathlib import Path

    from sim.report.report import Report

NARROWEST = 92
"""Columns that the table needs."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Where to write which form of the report, and what is promised."""
    group = parser.add_argument_group("report")
    group.add_argument(
        "--json", type=writable, metavar="FILE", help="figures of every policy (-: standard output, no table)"
    )
    group.add_argument("--html", type=writable, metavar="FILE", help="one page with all plots")
    group.add_argument("--csv", type=writable, metavar="FILE", help="every request of every policy")
    group.add_argument("--perfetto", type=writable, metavar="FILE", help="a trace for ui.perfetto.dev")
    group.add_argument(
        "--slo-ttft", type=seconds, default=Slo().ttft_seconds, metavar="S", help="promised (%(default)s)"
    )
    group.add_argument("--slo-itl", type=seconds, default=Slo().itl_seconds, metavar="S", help="promised (%(default)s)")


def slo(options: argparse.Namespace) -> Slo:
    """What is promised."""
    return Slo(options.slo_ttft, options.slo_itl)


def write(report: Report, options: argparse.Namespace, part: str | None = None) -> None:
    """Show the table, and write what was asked for; of several reports, each into files with its part's name in theirs.

    :raises OSError: a file cannot be written.
    """
    from rich.console import Console  # all of it is slow to load: not for --help

    from sim.report import perfetto, requests
    from sim.report.document import encode
    from sim.report.html.page import page
    from sim.report.table import table

    json, html, csv, trace = (
        _named(path, part) for path in (options.json, options.html, options.csv, options.perfetto)
    )
    if json == STANDARD_OUTPUT:
        sys.stdout.write(encode(report).decode())
    else:
        console = Console(highlight=False)
        console.width = max(console.width, NARROWEST)
        console.print(
            f"[bold]{report.trace.name}[/]: {len(report.trace):,} requests in {report.trace.span_seconds:,.0f} s"
        )
        console.print(table(report))
    if json not in (None, STANDARD_OUTPUT):
        json.write_bytes(encode(report))
    if html is not None:
        html.write_text(page(report), encoding="utf-8")
    if csv is not None:
        requests.write(report, csv)
    if trace is not None:
        perfetto.write(report, trace)


def _named(path: Path | None, part: str | None) -> Path | None:
    return path if path is None or part is None or path == STANDARD_OUTPUT else path.with_stem(f"{path.stem}-{part}")
