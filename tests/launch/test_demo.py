"""The demo's figures and verdict."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest

from benchmarks.live import Arrival, pooled_bound, read
from launch.conversations import Summary, Turn, summarise, words
from launch.demo import RUNS, verdict

if TYPE_CHECKING:
    from pathlib import Path


def summary(ratio: float) -> Summary:
    return Summary(10, ratio, 0.1, 0.2, 1.0, 4)


@pytest.mark.parametrize(("ratios", "status"), [((0.8, 0.7, 0.5), 0), ((0.5, 0.7, 0.5), 1)])
def test_the_demo_succeeds_only_if_warm_reuses_more(ratios: tuple[float, ...], status: int) -> None:
    line, code = verdict({run.name: summary(ratio) for run, ratio in zip(RUNS, ratios, strict=True)})
    assert code == status
    assert line.startswith("demo ok: " if status == 0 else "demo FAILED")
    assert line.endswith(f"cached {ratios[0]:.0%} warm, 70% predicted, 50% round-robin")


def test_a_summary_counts_tokens_and_spread() -> None:
    turns = [Turn("a", 100, 50, 0.1), Turn("a", 300, 0, 0.4), Turn("b", 100, 100, 0.2)]
    result = summarise(turns, fleet_size=3)
    assert (result.requests, result.cached_ratio, result.workers) == (3, 0.3, 2)
    assert (result.ttft_p50_seconds, result.ttft_p99_seconds) == (0.2, 0.4)
    assert result.spread == pytest.approx(2 / (3 / 3))


def test_the_load_is_the_same_for_a_seed() -> None:
    assert words(5, random.Random(1)) == words(5, random.Random(1))


def test_a_trace_keeps_its_prefixes_when_it_is_shrunk(tmp_path: Path) -> None:
    trace = tmp_path / "trace.jsonl"
    trace.write_text(
        '{"timestamp": 0, "input_length": 1000, "output_length": 80, "hash_ids": [1, 2]}\n'
        '{"timestamp": 8000, "input_length": 1500, "output_length": 4, "hash_ids": [1, 2, 3]}\n'
    )
    first, second = read(trace, requests=10, compress=4, shrink=8)
    assert (first.at_seconds, second.at_seconds) == (0, 2)
    assert (len(first.prompt), first.output_tokens, len(second.prompt)) == (125, 10, 187)
    assert first.prompt == second.prompt[:125]
    assert first.prompt[:64] != first.prompt[64:]


def test_the_pooled_bound_is_one_lru_cache() -> None:
    prompt = list(range(64))
    again = [Arrival(0, prompt, 1), Arrival(1, prompt, 1)]
    assert pooled_bound(again, 10_000) == pytest.approx(48 / 128)  # the last page is computed again
    between = [again[0], Arrival(0.5, list(range(1000, 1064)), 1), again[1]]
    assert pooled_bound(between, 64) == 0
