"""The grid of replays: what is run, what is run again, and what is made of it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from benchmarks.policies import Means, compare, predictions, table_of, table_of_all, verdicts
from benchmarks.policy_runs import LINEAR_GRID, Condition, Run, conditions, finished, measure, rate_factor
from sim.traces import formats
from sim.traces.synthesize import Uniform

if TYPE_CHECKING:
    from pathlib import Path

BEST = LINEAR_GRID[-1]


def figures(ttft: float, busy: float = 0.8) -> dict[str, Any]:
    return {
        "ttft_seconds": {"mean": ttft, "p99": 4 * ttft},
        "itl_seconds": {"mean": 0.01, "p99": 0.02},
        "e2e_seconds": {"mean": 1.0},
        "cached_token_ratio": 0.3,
        "pooled_bound_ratio": 0.4,
        "busy_prefill_ratio": busy,
        "failed": 0,
    }


def rows(rate: str, ttfts: dict[str, tuple[float, float]]) -> list[dict[str, Any]]:
    """Runs with two seeds."""
    axes = {
        "trace": "t.jsonl",
        "part": "whole",
        "smooth": False,
        "workers": 8,
        "profile": "step",
        "events": "immediate",
    }
    condition = axes | {"rate": rate, "capacity_tokens": 1}
    return [
        {"run": condition | {"seed": seed, "policy": policy}, "figures": figures(ttft)}
        for policy, values in ttfts.items()
        for seed, ttft in enumerate(values)
    ]


def test_a_policy_is_compared_with_the_defaults_and_with_the_best_of_the_grid() -> None:
    ttfts = {"warm": (0.5, 0.7), "linear": (1.0, 1.0), BEST: (0.7, 0.9), "round-robin": (3.0, 3.0)}
    warm = next(one for one in compare(rows("x1", ttfts)) if one.policy == "warm")
    assert warm.means.ttft == pytest.approx(0.6)
    assert warm.best == BEST
    assert warm.by_defaults == pytest.approx(Means(0.6, 0.6, 1, 1, 1, 1, 1, 1, float("nan")), nan_ok=True)
    assert warm.by_best is not None
    assert warm.by_best.ttft == pytest.approx(0.75)
    assert warm.round_robin_busy == pytest.approx(0.8)


def test_targets_are_held_or_missed() -> None:
    ttfts = {"warm": (0.8, 0.8), "linear": (1.0, 1.0), BEST: (0.7, 0.9), "round-robin": (3.0, 3.0)}
    comparisons = [*compare(rows("x1", ttfts)), *compare(rows("90%", ttfts | {"warm": (0.7, 0.7)}))]
    said = "\n".join(verdicts("warm", comparisons))
    assert "1 of   2  mean TTFT <= 0.75 of the defaults where round-robin" in said
    assert "1 of   1  mean TTFT <= 0.9 of the defaults at x1" in said
    assert "missed: t x1 8 step immediate" in said
    assert table_of("warm", comparisons).row_count == table_of_all(comparisons).row_count == 2


def test_predicted_caches_are_compared_with_events() -> None:
    runs = [*rows("x1", {"warm": (0.5, 0.5)}), *rows("x2", {"warm": (0.5, 0.5)})]
    runs += [
        row | {"run": row["run"] | {"events": "predicted"}, "figures": figures(0.6)}
        for row in runs
        if row["run"]["rate"] == "x2"
    ]
    said = list(predictions("warm", list(compare(runs))))
    assert said[0].startswith("  0 of   1")
    assert said[1].endswith("t x2 8 step predicted: 1.200")


def test_a_results_file_names_its_runs(tmp_path: Path) -> None:
    axes = {
        "trace": ["a"],
        "part": ["whole"],
        "smooth": [False],
        "rate": ["x1", "x2"],
        "workers": [4],
        "profile": ["p"],
    }
    both = conditions({**axes, "events": ["lag"], "seed": range(2), "capacity_tokens": [64]})
    assert len(both) == 4
    run = Run(both[0], "warm")
    results = tmp_path / "runs.jsonl"
    results.write_text(json.dumps({"run": json.loads(run.key), "figures": {}}) + '\n{"run": {"cut o')
    assert list(finished(results)) == [run.key]


def test_a_run_is_a_replay_at_the_rate_that_was_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    formats.save(Uniform().generate(800, 2.0, seed=0), path)
    where = {"trace": str(path), "part": "first", "smooth": False, "rate": "60%"}
    fleet = {"workers": 2, "profile": "h200-llama-8b", "events": "lag", "seed": 1, "capacity_tokens": 1 << 18}
    row = measure(Run(Condition(**where, **fleet), "round-robin"))
    assert row["run"] == where | fleet | {"policy": "round-robin"}
    assert 350 < row["figures"]["requests"] < 450
    assert row["figures"]["busy_prefill_ratio"] == pytest.approx(0.6, abs=0.15)
    assert row["rate_factor"] == rate_factor(Condition(**where, **(fleet | {"seed": 0, "events": "immediate"}))) > 1
