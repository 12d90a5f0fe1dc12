"""Policies compared by replay over traces, rates, fleets, profiles, events and seeds, against Dynamo's cost at its best.

`run` replays the grid into a file with one line per run, and goes on where it was interrupted; `summary` makes a table of it:
each policy's ratio to `linear` with its defaults, and to the best of `linear`'s whole grid in that condition.

    python -m benchmarks.policies run conversation.jsonl --rates x1 70% 90% --workers 8 --grid -o runs.jsonl
    python -m benchmarks.policies summary runs.jsonl --policy warm --json summary.json
"""

from __future__ import annotations

import argparse
import json
import math
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from rich import box
from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks.policy_runs import EVENTS, LINEAR_GRID, PARTS, Run, conditions, finished, run_all

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

POLICIES = (
    "warm",
    "linear",
    "cache-aware",
    "lmetric",
    "two-choices",
    "affinity",
    "least-loaded",
    "power-of-two",
    "round-robin",
)
DEFAULTS = "linear"
"""Dynamo's cost with its defaults."""


class Means(NamedTuple):
    """A policy's figures in a condition, over all seeds."""

    ttft: float
    ttft_p99: float
    itl: float
    itl_p99: float
    e2e: float
    hits: float
    of_pooled: float
    prefill_busy: float
    failed: float

    @classmethod
    def of(cls, figures: list[dict[str, Any]]) -> Means:
        """Of a policy's runs with all seeds."""
        rows = [
            (
                one["ttft_seconds"]["mean"],
                one["ttft_seconds"]["p99"],
                one["itl_seconds"]["mean"],
                one["itl_seconds"]["p99"],
                one["e2e_seconds"]["mean"],
                one["cached_token_ratio"],
                one["cached_token_ratio"] / one["pooled_bound_ratio"] if one["pooled_bound_ratio"] else math.nan,
                one["busy_prefill_ratio"],
                one["failed"],
            )
            for one in figures
        ]
        return cls(*np.mean(np.array(rows, float), axis=0).tolist())


class Comparison(NamedTuple):
    """A policy in a condition: figures, and ratios (below 1 is better than the rival)."""

    condition: dict[str, Any]
    policy: str
    means: Means
    round_robin_busy: float
    """Of the workers' time, what round-robin spends in prefill."""
    by_defaults: Means | None
    """By `linear` with its defaults."""
    by_best: Means | None
    """By the policy of `linear`'s grid that has the lowest mean TTFT here."""
    best: str | None


class Target(NamedTuple):
    """What a policy is to reach, and where."""

    text: str
    concerns: Callable[[Comparison], bool]
    holds: Callable[[Comparison], bool]


TARGETS = (
    Target(
        "mean TTFT <= 0.75 of the defaults where round-robin is in prefill >= 70 % of the time",
        lambda one: one.by_defaults is not None and one.round_robin_busy >= 0.7,
        lambda one: _value(one.by_defaults, "ttft") <= 0.75,
    ),
    Target(
        "mean TTFT <= 0.9 of the defaults at x1",
        lambda one: one.by_defaults is not None and one.condition["rate"] == "x1",
        lambda one: _value(one.by_defaults, "ttft") <= 0.9,
    ),
    Target(
        "mean TTFT <= 1.02 of the best of the grid",
        lambda one: one.by_best is not None,
        lambda one: _value(one.by_best, "ttft") <= 1.02,
    ),
    Target(
        "p99 TTFT <= 1.05 of that best",
        lambda one: one.by_best is not None,
        lambda one: _value(one.by_best, "ttft_p99") <= 1.05,
    ),
    Target(
        "mean ITL <= 1.05 of that best",
        lambda one: one.by_best is not None,
        lambda one: _value(one.by_best, "itl") <= 1.05,
    ),
    Target(
        ">= 95 % of the pooled cache's hits at x1",
        lambda one: one.condition["rate"] == "x1" and not math.isnan(one.means.of_pooled),
        lambda one: one.means.of_pooled >= 0.95,
    ),
)


def compare(rows: list[dict[str, Any]]) -> Iterator[Comparison]:
    """Every condition and policy that the runs have, seeds taken together."""
    grouped: dict[str, dict[str, list[dict[str, Any]]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        condition = {name: value for name, value in row["run"].items() if name not in ("policy", "seed")}
        grouped[json.dumps(condition, sort_keys=True)][row["run"]["policy"]].append(row["figures"])
    for key, policies in grouped.items():
        means = {policy: Means.of(figures) for policy, figures in policies.items()}
        grid = {policy: means[policy] for policy in (*LINEAR_GRID, DEFAULTS) if policy in means}
        best = min(grid, key=lambda policy: grid[policy].ttft) if len(grid) > 1 else None
        busy = means["round-robin"].prefill_busy if "round-robin" in means else math.nan
        for policy, one in means.items():
            by_defaults = _by(one, means.get(DEFAULTS))
            yield Comparison(json.loads(key), policy, one, busy, by_defaults, _by(one, grid.get(best or "")), best)


def _by(one: Means, other: Means | None) -> Means | None:
    if other is None:
        return None
    with np.errstate(divide="ignore", invalid="ignore"):
        return Means(*(np.array(one) / np.array(other)).tolist())


def _value(means: Means | None, name: str) -> float:
    return math.nan if means is None else float(getattr(means, name))


# ---- tables


def table_of(policy: str, comparisons: list[Comparison]) -> Table:
    """A policy in every condition."""
    made = Table(title=policy, title_justify="left", box=box.SIMPLE_HEAD, collapse_padding=True, pad_edge=False)
    for name in ("trace", "rate", "workers", "profile", "events"):
        made.add_column(name)
    for name in (
        "RR busy",
        "TTFT ms",
        "by defaults",
        "by best",
        "p99 by best",
        "ITL by best",
        "E2E by best",
        "hits",
        "of pooled",
    ):
        made.add_column(name, justify="right")
    made.add_column("best: credit, scale", no_wrap=True)
    for one in comparisons:
        if one.policy == policy:
            made.add_row(*_place(one.condition), *_figures(one), _knobs(one.best))
    return made


def table_of_all(comparisons: list[Comparison]) -> Table:
    """Mean TTFT of every policy by that of the rival's defaults; one row per condition."""
    policies = sorted({one.policy for one in comparisons if one.policy not in LINEAR_GRID}, key=_rank)
    made = Table(
        title="mean TTFT by linear's, with its defaults",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        collapse_padding=True,
    )
    for name in ("trace", "rate", "workers", "profile", "events"):
        made.add_column(name)
    for policy in (*policies, "best of the grid"):
        made.add_column(policy, justify="right")
    for condition in dict.fromkeys(json.dumps(one.condition) for one in comparisons):
        here = {one.policy: one for one in comparisons if json.dumps(one.condition) == condition}
        best = here.get(next(iter(here.values())).best or "")
        cells = [_ratio(_value(here[policy].by_defaults, "ttft")) if policy in here else "–" for policy in policies]
        made.add_row(*_place(json.loads(condition)), *cells, _ratio(_value(best.by_defaults, "ttft")) if best else "–")
    return made


def verdicts(policy: str, comparisons: list[Comparison]) -> Iterator[str]:
    """Each target: in how many conditions it holds, and where it is missed."""
    for target in TARGETS:
        concerned = [one for one in comparisons if one.policy == policy and target.concerns(one)]
        missed = [one for one in concerned if not target.holds(one)]
        yield f"{len(concerned) - len(missed):3} of {len(concerned):3}  {target.text}"
        yield from (f"              missed: {' '.join(_place(one.condition))}" for one in missed)


def predictions(policy: str, comparisons: list[Comparison]) -> Iterator[str]:
    """The target for caches that are predicted, for no events come: mean TTFT as with events, in otherwise equal conditions."""
    there = {
        (json.dumps(one.condition | {"events": ""}), one.condition["events"]): one
        for one in comparisons
        if one.policy == policy
    }
    pairs = [(one, there.get((place, "immediate"))) for (place, events), one in there.items() if events == "predicted"]
    ratios = [(one, one.means.ttft / other.means.ttft) for one, other in pairs if other is not None]
    missed = [(one, ratio) for one, ratio in ratios if ratio > 1.05]
    yield f"{len(ratios) - len(missed):3} of {len(ratios):3}  mean TTFT with predicted caches <= 1.05 of that with events"
    yield from (f"              missed: {' '.join(_place(one.condition))}: {ratio:.3f}" for one, ratio in missed)


def _knobs(policy: str | None) -> str:
    """Credit and scale of a policy of the grid."""
    if policy is None:
        return "–"
    return "defaults" if policy == DEFAULTS else " ".join(part.split("=")[1] for part in policy.split(","))


def _order(one: Comparison) -> tuple[object, ...]:
    condition, rate = one.condition, one.condition["rate"]
    names = tuple(str(condition[name]) for name in ("trace", "part", "smooth", "profile", "events"))
    return (*names, condition["workers"], rate.endswith("%"), float(rate.strip("x%")))


def _rank(policy: str) -> tuple[int, str]:
    return (POLICIES.index(policy) if policy in POLICIES else len(POLICIES), policy)


def _place(condition: dict[str, Any]) -> list[str]:
    trace = Path(condition["trace"]).stem
    smooth, part = "~" if condition["smooth"] else "", condition["part"]
    name = f"{smooth}{trace}" if part == "whole" else f"{smooth}{trace} {part}"
    return [name, condition["rate"], str(condition["workers"]), condition["profile"], condition["events"]]


def _figures(one: Comparison) -> list[str]:
    ratios = (
        _value(one.by_defaults, "ttft"),
        *(_value(one.by_best, name) for name in ("ttft", "ttft_p99", "itl", "e2e")),
    )
    return [
        _ratio(one.round_robin_busy, ".0%"),
        f"{one.means.ttft * 1e3:,.1f}",
        *(_ratio(ratio) for ratio in ratios),
        f"{one.means.hits:.1%}",
        _ratio(one.means.of_pooled, ".0%"),
    ]


def _ratio(value: float, form: str = ".3f") -> str:
    return format(value, form) if math.isfinite(value) else "–"


# ---- the command line


def _run(options: argparse.Namespace) -> None:
    axes = {
        "trace": [str(path.resolve()) for path in options.traces],
        "part": options.parts,
        "smooth": [options.smooth_arrivals],
        "rate": options.rates,
        "workers": options.workers,
        "profile": options.profiles,
        "events": options.events,
        "seed": range(options.seeds),
        "capacity_tokens": [options.capacity_tokens],
    }
    policies = (*options.policies, *(LINEAR_GRID if options.grid else ()))
    runs = [Run(condition, policy) for condition in conditions(axes) for policy in policies]
    left = len(runs) - sum(run.key in finished(options.output) for run in runs)
    console = Console(highlight=False)
    console.print(f"{len(runs)} runs, {left} of them left")
    ended = run_all(runs, options.output, options.processes)
    for run, error in track(ended, total=left, description="replays", console=console):
        if error is not None:
            console.print(f"[red]failed[/] {run.key}: {error!r}", soft_wrap=True)


def _summary(options: argparse.Namespace) -> None:
    comparisons = sorted(compare(list(finished(options.results).values())), key=_order)
    console = Console(highlight=False)
    console.width = max(console.width, 190)
    console.print(table_of_all(comparisons))
    for policy in options.policies:
        console.print(table_of(policy, comparisons))
        console.print("\n".join([*verdicts(policy, comparisons), *predictions(policy, comparisons)]))
    if options.json:
        options.json.write_text(json.dumps([_document(one) for one in comparisons], indent=1) + "\n")


def _document(one: Comparison) -> dict[str, Any]:
    """A row of the JSON summary; the trace by its name, not by its place."""
    row: dict[str, Any] = {}
    for name, value in one._asdict().items():
        row[name] = value._asdict() if isinstance(value, Means) else value
    row["condition"] = row["condition"] | {"trace": Path(one.condition["trace"]).stem}
    return json.loads(json.dumps(row).replace("NaN", "null"))  # type: ignore[no-any-return]


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    actions = parser.add_subparsers(dest="action", required=True)
    run = actions.add_parser("run", help="replay what the results file lacks")
    run.add_argument("traces", nargs="+", type=Path, metavar="TRACE")
    run.add_argument("-o", "--output", type=Path, required=True, metavar="FILE", help="results, one JSON line per run")
    run.add_argument(
        "--rates", nargs="+", default=["x1"], metavar="R", help="x2, or 90%%: of prefill under round-robin (x1)"
    )
    run.add_argument("--workers", nargs="+", type=int, default=[8], metavar="N", help="(8)")
    run.add_argument(
        "--profiles", nargs="+", default=["polynomial", "h200-llama-8b"], metavar="NAME", help="(%(default)s)"
    )
    run.add_argument("--events", nargs="+", choices=EVENTS, default=["immediate"], help="(immediate)")
    run.add_argument("--parts", nargs="+", choices=PARTS, default=["whole"], help="of each trace, by time (whole)")
    run.add_argument("--seeds", type=int, default=1, metavar="N", help="seeds 0 to N - 1 (1)")
    run.add_argument("--policies", nargs="+", default=POLICIES, metavar="NAME[:OPTION=VALUE]", help="(%(default)s)")
    run.add_argument("--grid", action="store_true", help="also linear with 3 overlap credits x 5 prefill scales")
    run.add_argument(
        "--smooth-arrivals", action="store_true", help="spread what arrives at once until the next arrival"
    )
    run.add_argument("--capacity-tokens", type=int, default=1 << 20, metavar="N", help="of a worker (%(default)s)")
    run.add_argument("--processes", type=int, default=2, metavar="N", help="(2)")
    summary = actions.add_parser("summary", help="tables, and how often a policy reaches its targets")
    summary.add_argument("results", type=Path, metavar="FILE")
    summary.add_argument("--policies", nargs="+", default=["warm"], metavar="NAME", help="in detail (warm)")
    summary.add_argument("--json", type=Path, metavar="FILE", help="also write every comparison there")
    options = parser.parse_args()
    _run(options) if options.action == "run" else _summary(options)


if __name__ == "__main__":
    main()
