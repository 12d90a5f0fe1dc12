"""The report's part of a command line."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from events.command import seconds
from sim.report import perfetto, requests
from sim.report.document import encode
from sim.report.slo import Slo
from sim.report.table import table

if TYPE_CHECKING:
    import argparse

    from sim.report.report import Report

STANDARD_OUTPUT = Path("-")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Where to write which form of the report, and what is promised."""
    group = parser.add_argument_group("report")
    group.add_argument(
        "--json", type=Path, metavar="FILE", help="figures of every policy (-: standard output, no table)"
    )
    group.add_argument("--html", type=Path, metavar="FILE", help="one page with all plots")
    group.add_argument("--csv", type=Path, metavar="FILE", help="every request of every policy")
    group.add_argument("--perfetto", type=Path, metavar="FILE", help="a trace for ui.perfetto.dev")
    group.add_argument(
        "--slo-ttft", type=seconds, default=Slo().ttft_seconds, metavar="S", help="promised (%(default)s)"
    )
    group.add_argument("--slo-itl", type=seconds, default=Slo().itl_seconds, metavar="S", help="promised (%(default)s)")


def slo(options: argparse.Namespace) -> Slo:
    """What is promised."""
    return Slo(options.slo_ttft, options.slo_itl)


def write(report: Report, options: argparse.Namespace) -> None:
    """Show the table, and write what was asked for.

    :raises OSError: a file cannot be written.
    """
    if options.json == STANDARD_OUTPUT:
        sys.stdout.write(encode(report).decode())
    else:
        Console(highlight=False).print(table(report))
    if options.json not in (None, STANDARD_OUTPUT):
        options.json.write_bytes(encode(report))
    if options.html is not None:
        from sim.report.html.page import page

        options.html.write_text(page(report), encoding="utf-8")
    if options.csv is not None:
        requests.write(report, options.csv)
    if options.perfetto is not None:
        perfetto.write(report, options.perfetto)
