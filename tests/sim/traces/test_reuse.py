"""Hit ratios and reuse distances, against a cache written out."""

from __future__ import annotations

from collections import OrderedDict

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sim.traces import Trace, formats
from sim.traces.reuse import Reuse
from sim.traces.statistics import TraceStatistics
from tests.sim.traces.published import published
from tests.sim.traces.strategies import traces


def all_prefixes(trace: Trace, request: int) -> list[tuple[int, ...]]:
    """The prefixes that a request's ids name, its output's too."""
    ids = trace.ids(request).tolist()
    return [tuple(ids[: place + 1]) for place in range(len(ids))]


def prompt_prefixes(trace: Trace, request: int) -> list[tuple[int, ...]]:
    """Those of its prompt."""
    return all_prefixes(trace, request)[: -(-int(trace.input_tokens[request]) // trace.block_tokens)]


def hits_of_a_cache(trace: Trace, capacity: float) -> list[int]:
    """Leading blocks that a least-recently-used cache has of each request."""
    cache: OrderedDict[tuple[int, ...], None] = OrderedDict()
    hits = []
    for request in range(len(trace)):
        prefixes = prompt_prefixes(trace, request)
        hits.append(next((place for place, prefix in enumerate(prefixes) if prefix not in cache), len(prefixes)))
        for prefix in reversed(all_prefixes(trace, request)):
            cache[prefix] = None
            cache.move_to_end(prefix)
        while len(cache) > capacity:
            cache.popitem(last=False)
    return hits


@given(trace=traces(), capacity=st.integers(0, 12))
def test_hits_are_those_of_a_cache(trace: Trace, capacity: int) -> None:
    reuse = Reuse.of(trace)
    assert reuse.hit_blocks(capacity * trace.block_tokens).tolist() == hits_of_a_cache(trace, capacity)
    assert reuse.hit_blocks().tolist() == hits_of_a_cache(trace, np.inf)
    assert reuse.unique_blocks == len({one for request in range(len(trace)) for one in all_prefixes(trace, request)})


def test_a_turn_finds_the_answer_before_it() -> None:
    """A prompt of 150 tokens and its answer of 100, then a turn that adds 60: of its 310 tokens, 250 were named before."""
    two = Trace(
        name="turns",
        arrival_seconds=np.array([0.0, 1.0]),
        input_tokens=np.array([150, 310]),
        output_tokens=np.array([100, 10]),
        block_tokens=100,
        blocks=np.array([1, 2, 3, 1, 2, 3, 4], np.uint64),
        first_block=np.array([0, 3, 7]),
        previous=np.array([-1, 0]),
        delay_seconds=np.zeros(2),
    )
    assert Reuse.of(two).hit_blocks().tolist() == [0, 3]
    assert Reuse.of(two).hit_tokens().tolist() == [0, 250]


@given(trace=traces())
def test_a_cache_never_has_a_prompts_last_token(trace: Trace) -> None:
    assert (Reuse.of(trace).hit_tokens() < trace.input_tokens).all()


@given(trace=traces())
def test_the_latest_use_is_an_earlier_request_that_has_the_block(trace: Trace) -> None:
    reuse = Reuse.of(trace)
    for request in range(len(trace)):
        first, end = reuse.first_block[request], reuse.first_block[request + 1]
        for prefix, latest in zip(prompt_prefixes(trace, request), reuse.latest_use[first:end], strict=True):
            users = [other for other in range(request) if prefix in all_prefixes(trace, other)]
            assert latest == max(users, default=-1)


@pytest.mark.parametrize(
    ("name", "infinite", "pooled", "unique", "without"),
    [("conversation", 0.3664, 0.2656, 182_790, 0.0001), ("synthetic", 0.6396, 0.5316, 43_924, 0.5537)],
)
def test_the_published_figures(name: str, infinite: float, pooled: float, unique: int, without: float) -> None:
    sharing = TraceStatistics.of(formats.load(published(f"{name}.jsonl")), 8 * 16_384 * 64).sharing
    assert round(sharing.infinite_hit_ratio, 4) == infinite
    assert round(sharing.pooled_hit_ratio, 4) == pooled
    assert sharing.unique_blocks == unique
    assert round(sharing.requests_without_hit, 4) == without


@pytest.mark.parametrize(
    ("name", "span", "mean_input", "mean_output", "percentiles"),
    [
        ("conversation.jsonl", 3537, 12_035, 343, (6_909, 27_367, 85_401, 126_195)),
        ("synthetic.jsonl", 1022, 15_325, 149, (11_587, 38_615, 66_458, 191_378)),
        ("azure2023_code.csv", 3436, 2_048, 28, (1_469, 5_194, 7_436, 7_437)),
        ("azure2023_conv.csv", 3502, 1_155, 211, (1_020, 2_735, 4_142, 14_050)),
    ],
)
def test_the_published_lengths(
    name: str, span: int, mean_input: int, mean_output: int, percentiles: tuple[int, ...]
) -> None:
    statistics = TraceStatistics.of(formats.load(published(name)))
    assert round(statistics.span_seconds) == span
    assert (round(statistics.input_tokens.mean), round(statistics.output_tokens.mean)) == (mean_input, mean_output)
    assert statistics.input_tokens[1:] == percentiles


def test_bursts_show_in_the_statistics() -> None:
    ones = np.ones(1000, np.int64)
    bursts = TraceStatistics.of(Trace.open_loop("bursts", np.repeat(np.arange(100.0) * 3, 10), ones, ones)).arrivals
    clock = TraceStatistics.of(Trace.open_loop("clock", np.arange(1000) * 0.3, ones, ones)).arrivals
    assert (bursts.distinct_times, bursts.most_at_once) == (100, 10)
    assert bursts.gap_variation == pytest.approx(3.0, abs=0.02)
    assert clock.gap_variation == pytest.approx(0.0, abs=1e-9)
    assert bursts.dispersion_1s > 5 > 0.5 > clock.dispersion_1s
