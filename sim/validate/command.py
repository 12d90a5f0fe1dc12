"""`python -m sim validate`."""

from __future__ import annotations

import logging
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
from rich.console import Console
from rich.table import Table

from events.command import UsageError
from sim.calibrate import logs
from sim.engine.timing import StepTiming, profile
from sim.recordings.run import read_run
from sim.recordings.steps import read_steps
from sim.traces import formats
from sim.validate.comparison import GOALS, LEAST_EQUAL_SHARE, compare
from sim.validate.playback import play

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from sim.engine.timing.profile import AnyTiming
    from sim.recordings.run import Run
    from sim.recordings.steps import Step
    from sim.traces import Trace
    from sim.validate.comparison import Comparison

EXAMPLE = """\
example: recorded fleets of real SGLang servers against the engine model

  python -m sim validate runs/conv262_rr runs/d4_rr --traces traces --json validate.json

Status 1: a goal is missed. What a recording consists of is in docs/simulator.md.
"""
LINEAR_FROM = 384
"""New tokens of a prefill; fewer are told apart in the report, and not fitted to with --own-steps."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command line."""
    parser.epilog = EXAMPLE
    add = parser.add_argument
    add("recordings", nargs="+", type=Path, metavar="RECORDING", help="folders of recorded runs")
    add("--traces", type=Path, metavar="DIR", help="where the traces are that they played (there, or one level up)")
    add("--profile", default=profile.DEFAULT, metavar="NAME|FILE", help=f"step times ({profile.DEFAULT})")
    add(
        "--own-steps",
        action="store_true",
        help="step times fitted to each run's own steps: what is left is the scheduler's",
    )
    add("--disable-overlap-schedule", action="store_true", help="to see what it matters")
    add("--json", type=Path, metavar="FILE", help="all figures")


def run(options: argparse.Namespace) -> int:
    """Do what the command line says.

    :raises UsageError: it cannot be done; the message is one line.
    """
    logging.basicConfig(format="%(levelname).1s %(message)s", stream=sys.stderr)
    timing = _load(options.profile)
    results, reports = [], []
    for folder in options.recordings:
        begin = time.process_time()
        recorded = read_run(folder)
        steps = _steps(folder)
        used = _own(steps) if options.own_steps else timing
        trace = formats.load(_trace_path(recorded, folder, options.traces))
        result = _compare(recorded, trace, used, overlap_schedule=not options.disable_overlap_schedule)
        results.append(result)
        reports.append(_report(result, used, steps, time.process_time() - begin))
    Console(width=160).print(table(results))
    if options.json:
        content = {"profile": "own steps" if options.own_steps else options.profile, "runs": reports}
        options.json.write_bytes(msgspec.json.format(msgspec.json.encode(content), indent=1) + b"\n")
    missed = [f"{result.name}: {miss}" for result in results for miss in result.misses]
    sys.stdout.write("".join(f"missed: {line}\n" for line in missed) or "all goals reached\n")
    return 1 if missed else 0


def table(results: Sequence[Comparison]) -> Table:
    """One row per figure, one column per run."""
    made = Table(title="recorded → played, error")
    made.add_column("")
    for result in results:
        made.add_column(result.name, justify="right")
    made.add_row(
        "requests compared", *(f"{result.requests - result.missing} of {result.requests}" for result in results)
    )
    goals = {goal.figure: f" (±{goal.most_percent:g} %)" for goal in GOALS}
    for figure in results[0].figures:
        pairs = [result.figures[figure] for result in results]
        cells = [f"{pair.recorded:,.4g} → {pair.played:,.4g}, {pair.error_percent:+.1f} %" for pair in pairs]
        made.add_row(figure.replace("_", " ") + goals.get(figure, ""), *cells)
    made.add_row(
        "median error of a request's ttft", *(f"{result.median_ttft_error_percent:.1f} %" for result in results)
    )
    made.add_row(
        f"equal cached tokens (≥ {LEAST_EQUAL_SHARE:.0%})", *(f"{result.equal_cached_share:.2%}" for result in results)
    )
    return made


def _load(name: str) -> AnyTiming:
    try:
        return profile.load(name).timing
    except ValueError as error:
        raise UsageError(str(error)) from error


def _trace_path(recorded: Run, folder: Path, traces: Path | None) -> Path:
    name = Path(recorded.about.trace).name
    places = [place for place in (traces, folder, folder.parent) if place is not None]
    for place in places:
        if (place / name).is_file():
            return place / name
    raise UsageError(f"{folder}: its trace {name} is not in {', '.join(map(str, places))}; say --traces")


def _steps(folder: Path) -> list[Step]:
    """The steps of all workers, if they were recorded."""
    return [step for path in sorted(folder.glob("steps_w*.jsonl*")) for step in read_steps(path)]


def _own(steps: Sequence[Step]) -> StepTiming:
    if not steps:
        raise UsageError("--own-steps needs steps_w*.jsonl[.gz] in the recording")
    standard = StepTiming()
    timing, _ = logs.fit_steps(steps, [], linear_from=LINEAR_FROM, graph_tokens=standard.prefill_graph_tokens)
    return replace(
        timing,
        request_base_seconds=standard.request_base_seconds,
        request_token_seconds=standard.request_token_seconds,
    )


def _compare(recorded: Run, trace: Trace, timing: AnyTiming, *, overlap_schedule: bool) -> Comparison:
    try:
        played = play(recorded, trace, timing, overlap_schedule=overlap_schedule)
    except (ValueError, IndexError) as error:
        raise UsageError(f"{recorded.name}: {error}") from error
    return compare(recorded.name, recorded.requests, played)


def _report(result: Comparison, timing: AnyTiming, steps: Sequence[Step], cpu_seconds: float) -> dict[str, Any]:
    content = result.as_json() | {"cpu_seconds": round(cpu_seconds, 2)}
    if steps and isinstance(timing, StepTiming):
        content["step_times"] = logs.report(timing, steps, LINEAR_FROM)
    return content
