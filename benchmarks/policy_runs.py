"""Replays of a grid of conditions and policies: in parallel, one JSON line per run, and resumable.

A run is named by its condition and its policy; runs that the results file has already are not done again.
"""

from __future__ import annotations

import gc
import itertools
import json
import multiprocessing
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, fields, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sim.engine import EngineConfig
from sim.engine.timing import profile
from sim.replay import Settings, replay
from sim.replay.command import policy as policy_of
from sim.report.document import plain
from sim.report.report import Report
from sim.report.slo import Slo
from sim.traces import cut, formats, scale

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from sim.replay.outcome import Outcome
    from sim.traces.trace import Trace

EVENT_LAG_SECONDS = 0.1
EVENTS = ("immediate", "lag", "predicted")
PARTS = ("whole", "first", "second")
LINEAR_GRID = tuple(
    f"linear:overlap_score_credit={credit:g},prefill_load_scale={scale_:g}"
    for credit in (0.5, 1, 2)
    for scale_ in (1, 2, 4, 8, 16)
)
"""The rival's knobs: its defaults are credit 1 and scale 1."""
BUSY_ROUNDS = 2
"""Measurements of round-robin's prefill work until the rate for a wanted share of it is known."""


@dataclass(frozen=True, kw_only=True)
class Condition:
    """All but the policy."""

    trace: str
    """A file."""
    part: str
    """`whole`, or its `first` or `second` half by time: tune on one, report on the other."""
    smooth: bool
    rate: str
    """`x2`: twice the trace's; `90%`: where round-robin's prefill would take so much of the workers' time."""
    workers: int
    profile: str
    events: str
    """`immediate`, with `lag`, or none at all: `predicted`."""
    seed: int
    capacity_tokens: int

    def settings(self) -> Settings:
        """The fleet."""
        engine = EngineConfig(
            capacity_tokens=self.capacity_tokens,
            page_size=64,
            context_length=self.capacity_tokens,
            timing=profile.load(self.profile).timing,
        )
        return Settings(
            workers=self.workers,
            engine=engine,
            kv_events=self.events != "predicted",
            event_lag_seconds=EVENT_LAG_SECONDS if self.events == "lag" else 0.0,
            seed=self.seed,
        )


@dataclass(frozen=True)
class Run:
    """A condition and a policy, as `python -m sim replay --policy` takes it."""

    condition: Condition
    policy: str

    @property
    def key(self) -> str:
        """Its name in the results file."""
        return json.dumps(asdict(self.condition) | {"policy": self.policy}, sort_keys=True)


def conditions(axes: dict[str, Sequence[Any]]) -> list[Condition]:
    """Every combination; `axes` has the fields of `Condition`."""
    names = [item.name for item in fields(Condition)]
    return [
        Condition(**dict(zip(names, values, strict=True)))
        for values in itertools.product(*(axes[name] for name in names))
    ]


def finished(results: Path) -> dict[str, dict[str, Any]]:
    """The runs of a results file by key; a last line that was cut off is left out."""
    found: dict[str, dict[str, Any]] = {}
    for line in results.read_text().splitlines() if results.exists() else ():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        found[json.dumps(row["run"], sort_keys=True)] = row
    return found


def run_all(runs: Sequence[Run], results: Path, processes: int) -> Iterator[tuple[Run, Exception | None]]:
    """Do what is not done yet, and add a line for each; yields the runs as they end, with what went wrong. O(runs)."""
    done = finished(results)
    context = multiprocessing.get_context("spawn")
    with results.open("a") as file, ProcessPoolExecutor(processes, mp_context=context) as pool:
        futures = {pool.submit(measure, run): run for run in runs if run.key not in done}
        try:
            for future in as_completed(futures):
                error = future.exception()
                if error is None:
                    file.write(json.dumps(future.result()) + "\n")
                    file.flush()
                yield futures[future], error if isinstance(error, Exception) else None
        finally:
            pool.shutdown(cancel_futures=True)  # after an interruption; what has ended is in the file


def measure(run: Run) -> dict[str, Any]:
    """One replay: the run, and the report's figures."""
    condition = run.condition
    factor = rate_factor(replace(condition, seed=0, events="immediate"))  # the same rate for all that is compared
    trace = scale.rate(_trace(condition.trace, condition.part, condition.smooth), factor)
    report = Report.of(trace, [_replay(trace, condition, run.policy)], Slo())
    gc.collect()  # what a replay leaves refers to itself, and is large but not many: it would not be collected soon
    return {"run": json.loads(run.key), "rate_factor": factor, "figures": plain(report.figures[0])}


@cache
def rate_factor(condition: Condition) -> float:
    """How many times as fast the trace is to arrive.

    For a share of prefill, round-robin is measured at the rate that its work at the trace's own rate would need, and again; beyond
    70 % at that rate, since above it the replay's end counts too much.
    """
    if condition.rate.startswith("x"):
        return float(condition.rate[1:])
    share = float(condition.rate.removesuffix("%")) / 100
    trace = _trace(condition.trace, condition.part, condition.smooth)
    factor = 1.0
    for _ in range(BUSY_ROUNDS):
        outcome = _replay(scale.rate(trace, factor), condition, "round-robin")
        work = float(np.sum(outcome.busy_prefill_seconds))
        factor = min(share, 0.7) * condition.workers * trace.span_seconds / work
    return factor * share / min(share, 0.7)


def _replay(trace: Trace, condition: Condition, policy: str) -> Outcome:
    label, make = policy_of(policy)
    return replay(trace, make, condition.settings(), label)


@cache
def _trace(path: str, part: str, smooth: bool) -> Trace:
    trace = formats.load(Path(path))
    if smooth:
        trace = scale.smooth_arrivals(trace)
    half = trace.span_seconds / 2
    if part == "first":
        return cut.by_time(trace, 0.0, half)
    return cut.by_time(trace, half) if part == "second" else trace
