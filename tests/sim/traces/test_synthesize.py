"""Made-up workloads: what each kind promises, and how well a fit fits."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sim.traces import ALONE, Trace, TraceError, formats
from sim.traces.draws import Draws
from sim.traces.reuse import Reuse
from sim.traces.statistics import TraceStatistics
from sim.traces.synthesize import KINDS, Conversation, SharedPrompt, ToolAgent, Uniform
from sim.traces.synthesize.distribution import exponential, lognormal
from sim.traces.synthesize.fit import fit
from tests.sim.traces.published import published
from tests.sim.traces.strategies import assert_equal, traces

SEEDS = st.integers(0, 2**64 - 1)


def digest(trace: Trace) -> str:
    columns = (
        trace.arrival_seconds,
        trace.input_tokens,
        trace.output_tokens,
        trace.blocks,
        trace.previous,
        trace.delay_seconds,
    )
    return hashlib.sha256(b"".join(column.tobytes() for column in columns)).hexdigest()[:12]


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS.keys())
@settings(max_examples=15)
@given(requests=st.integers(1, 300), per_second=st.floats(0.1, 50), seed=SEEDS)
def test_every_kind_keeps_its_promises(kind: type[Uniform], requests: int, per_second: float, seed: int) -> None:
    trace = kind().generate(requests, per_second, seed)
    assert len(trace) == requests
    assert trace.arrival_seconds[0] == 0.0
    assert (-(-trace.input_tokens // trace.block_tokens) <= trace.block_counts).all()
    assert_equal(kind().generate(requests, per_second, seed), trace)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("conversation", "96e19111d51b"),
        ("tool-agent", "6202ba8e506f"),
        ("shared-prompt", "fb8eec7305e5"),
        ("uniform", "59dfe2edfe36"),
    ],
)
def test_every_kind_is_the_same_on_every_machine(kind: str, expected: str) -> None:
    assert digest(KINDS[kind]().generate(500, 4.0, seed=7)) == expected


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS.keys())
def test_the_rate_is_what_was_asked_for(kind: type[Uniform]) -> None:
    arrivals = TraceStatistics.of(kind().generate(8000, 20.0, 0)).arrivals
    assert arrivals.per_second == pytest.approx(20.0, rel=0.06)
    assert arrivals.gap_variation == pytest.approx(1.0, abs=0.1)


def test_another_seed_is_another_trace() -> None:
    assert digest(Uniform().generate(50, 4.0, 0)) != digest(Uniform().generate(50, 4.0, 1))


@given(seed=SEEDS)
@settings(max_examples=10)
def test_a_turn_begins_with_all_that_was_said_before(seed: int) -> None:
    trace = Conversation(turns=4.0).generate(200, 4.0, seed)
    for row in np.flatnonzero(trace.previous != ALONE):
        before = int(trace.previous[row])
        assert trace.input_tokens[row] > trace.input_tokens[before] + trace.output_tokens[before]
        assert trace.ids(row)[: len(trace.ids(before))].tolist() == trace.ids(before).tolist()
        assert trace.delay_seconds[row] > 0


def test_conversations_have_the_means_that_were_asked_for() -> None:
    statistics = TraceStatistics.of(
        Conversation(turns=3.0, think_seconds=10.0, output_tokens=100.0).generate(20_000, 50.0, 0)
    )
    assert statistics.output_tokens.mean == pytest.approx(100, rel=0.05)
    assert statistics.sessions.delay_seconds.mean == pytest.approx(10, rel=0.05)


def test_a_conversation_ends_at_the_context_limit() -> None:
    trace = Conversation(context_tokens=4000, turns=50.0).generate(2000, 10.0, 0)
    assert (trace.input_tokens + trace.output_tokens).max() <= 4000


def test_tool_calls_have_the_published_means_and_shape() -> None:
    statistics = TraceStatistics.of(ToolAgent().generate(40_000, 10.0, 0))
    assert statistics.input_tokens.mean == pytest.approx(8596, rel=0.03)
    assert statistics.output_tokens.mean == pytest.approx(182, rel=0.03)
    assert statistics.sharing.most_common_first_block == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize(("calls", "requests"), [(0.99, 3), (0.01, 3), (0.5, 1)])
def test_a_few_tool_calls(calls: float, requests: int) -> None:
    assert len(ToolAgent(calls=calls).generate(requests, 1.0, 0)) == requests


def test_system_prompts_are_shared_in_full_and_nothing_else() -> None:
    trace = SharedPrompt(system_prompts=3, system_tokens=2048).generate(1000, 10.0, 0)
    hits = Reuse.of(trace).hit_blocks()
    assert sorted(set(hits.tolist())) == [0, 4]
    assert int((hits == 0).sum()) == 3


def test_uniform_shares_nothing() -> None:
    assert not Reuse.of(Uniform().generate(500, 10.0, 0)).hits().any()


def test_a_parameter_must_be_positive() -> None:
    with pytest.raises(TraceError, match="turns: must be positive, not 0"):
        Conversation(turns=0)


# ---- distributions


def test_draws_do_not_depend_on_how_many_are_asked_for_at_once() -> None:
    one, many = Draws(3), Draws(3)
    assert [*one.uniform(2), *one.uniform(3)] == many.uniform(5).tolist()


@pytest.mark.parametrize("mean", [0.01, 1.0, 340.0])
def test_distributions_have_their_means(mean: float) -> None:
    for distribution in (exponential(mean), lognormal(mean, 1.0)):
        assert distribution.draw(Draws(0), 200_000).mean() == pytest.approx(mean, rel=0.02)


def test_the_logarithm_of_a_lognormal_is_normal() -> None:
    values = np.log(lognormal(100.0, 1.0).draw(Draws(0), 100_000))
    assert values.std() == pytest.approx(np.sqrt(np.log(2)), rel=0.02)


# ---- fit


@settings(max_examples=25)
@given(model=traces(), requests=st.integers(1, 30), seed=SEEDS)
def test_a_fit_is_a_trace_with_rows_of_its_model(model: Trace, requests: int, seed: int) -> None:
    made = fit(model, requests, seed).trace
    assert len(made) == requests
    assert set(made.input_tokens.tolist()) <= set(model.input_tokens.tolist())
    assert (Reuse.of(made).hit_blocks() <= made.block_counts).all()
    assert_equal(fit(model, requests, seed).trace, made)


@pytest.mark.parametrize("name", ["conversation", "synthetic"])
def test_a_fit_of_a_published_trace_is_like_it(name: str) -> None:
    model = formats.load(published(f"{name}.jsonl"))
    made = fit(model, len(model), seed=0)
    ours, theirs = TraceStatistics.of(made.trace), TraceStatistics.of(model)
    assert ours.arrivals.per_second == pytest.approx(theirs.arrivals.per_second, rel=0.05)
    assert ours.arrivals.gap_variation == pytest.approx(theirs.arrivals.gap_variation, rel=0.05)
    assert ours.input_tokens.mean == pytest.approx(theirs.input_tokens.mean, rel=0.05)
    assert ours.output_tokens.mean == pytest.approx(theirs.output_tokens.mean, rel=0.05)
    assert ours.sharing.infinite_hit_ratio == pytest.approx(theirs.sharing.infinite_hit_ratio, abs=0.03)
    assert ours.sharing.pooled_hit_ratio == pytest.approx(theirs.sharing.pooled_hit_ratio, abs=0.03)
    assert ours.sharing.requests_without_hit == pytest.approx(theirs.sharing.requests_without_hit, abs=0.03)
    assert made.unshared_blocks < 0.01 * len(model.blocks)


def test_a_fit_can_be_much_longer_than_its_model() -> None:
    model = Conversation().generate(500, 4.0, 0)
    made = TraceStatistics.of(fit(model, 5000, seed=1).trace)
    assert made.arrivals.per_second == pytest.approx(TraceStatistics.of(model).arrivals.per_second, rel=0.1)
    assert made.sessions.sessions > 900
