"""Cutting, scaling, smoothing and merging."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sim.traces import ALONE, Trace, TraceError, cut, formats, scale
from sim.traces.merge import merge
from sim.traces.reuse import Reuse
from sim.traces.session_kernels import session_roots
from tests.sim.traces.published import published
from tests.sim.traces.strategies import traces


@given(trace=traces(), start=st.floats(0, 3e3), length=st.floats(1, 3e3))
def test_a_cut_by_time_has_exactly_what_arrives_then(trace: Trace, start: float, length: float) -> None:
    inside = (trace.arrival_seconds >= start) & (trace.arrival_seconds < start + length)
    if not inside.any():
        with pytest.raises(TraceError, match="no request arrives"):
            cut.by_time(trace, start, start + length)
        return
    part = cut.by_time(trace, start, start + length)
    assert part.input_tokens.tolist() == trace.input_tokens[inside].tolist()
    assert part.arrival_seconds[0] == 0.0
    rows = np.flatnonzero(inside)
    assert [part.ids(row).tolist() for row in range(len(part))] == [trace.ids(row).tolist() for row in rows]


@given(trace=traces(), count=st.integers(1, 5), seed=st.none() | st.integers(0, 9))
def test_a_cut_by_sessions_has_whole_ones(trace: Trace, count: int, seed: int | None) -> None:
    part = cut.by_sessions(trace, count, seed)
    roots = session_roots(trace.previous)
    sizes = np.unique(roots, return_counts=True)[1].tolist()
    found = np.unique(session_roots(part.previous), return_counts=True)[1].tolist()
    assert len(found) == min(count, len(sizes))
    assert all(sizes.count(size) >= found.count(size) for size in found)


def test_a_cut_by_requests() -> None:
    ones = np.ones(5, np.int64)
    trace = Trace.open_loop("n", np.arange(5.0), np.arange(1, 6), ones)
    assert cut.by_requests(trace, 2, skip=1).input_tokens.tolist() == [2, 3]
    with pytest.raises(TraceError, match="no request is left after 5"):
        cut.by_requests(trace, 2, skip=5)


@given(trace=traces(), factor=st.floats(0.1, 10))
def test_twice_the_rate_is_half_the_time(trace: Trace, factor: float) -> None:
    faster = scale.rate(trace, factor)
    assert faster.span_seconds == pytest.approx(trace.span_seconds / factor)
    assert faster.delay_seconds == pytest.approx(trace.delay_seconds / factor)


@given(trace=traces(), factor=st.floats(0.05, 8))
def test_longer_prompts_share_the_same_blocks(trace: Trace, factor: float) -> None:
    """The blocks grow with the prompts, so what a cache has of them is the same share."""
    longer = scale.input_tokens(trace, factor)
    if len(trace.blocks):
        assert Reuse.of(longer).hit_blocks().tolist() == Reuse.of(trace).hit_blocks().tolist()
    step = 0.5 / trace.block_tokens if len(trace.blocks) else 0
    assert (longer.input_tokens >= np.floor(trace.input_tokens * (factor - step - 1e-9))).all()
    assert (
        longer.input_tokens <= np.ceil(trace.input_tokens * max(factor + step + 1e-9, 1 / trace.block_tokens))
    ).all()


def test_outputs_scale() -> None:
    trace = Trace.open_loop("n", np.arange(2.0), np.array([5, 5]), np.array([1, 10]))
    assert scale.output_tokens(trace, 0.25).output_tokens.tolist() == [1, 3]


@given(trace=traces(), seed=st.integers(0, 9))
def test_smoothing_keeps_the_order_and_the_time_of_a_burst(trace: Trace, seed: int) -> None:
    smooth = scale.smooth_arrivals(trace, seed)
    times = np.unique(trace.arrival_seconds)
    place = np.searchsorted(times, trace.arrival_seconds)
    assert (smooth.arrival_seconds >= trace.arrival_seconds).all()
    before_next = smooth.arrival_seconds[place < len(times) - 1] <= times[1:][place[place < len(times) - 1]]
    assert before_next.all()


def test_smoothing_makes_the_published_bursts_random() -> None:
    trace = formats.load(published("conversation.jsonl"))
    smooth = scale.smooth_arrivals(trace)
    gaps = np.diff(smooth.arrival_seconds)
    assert gaps.std() / gaps.mean() == pytest.approx(1.0, abs=0.05)
    assert smooth.span_seconds == pytest.approx(trace.span_seconds, abs=6)


def test_nothing_arrives_at_a_rate_when_all_arrives_at_once() -> None:
    ones = np.ones(2, np.int64)
    with pytest.raises(TraceError, match="all requests arrive at once"):
        scale.to_rate(Trace.open_loop("n", np.zeros(2), ones, ones), 5.0)


@given(left=traces(), right=traces())
def test_merged_traces_share_nothing(left: Trace, right: Trace) -> None:
    right = right.with_columns(block_tokens=left.block_tokens)
    both = merge("both", [left, right])
    assert len(both) == len(left) + len(right)
    assert sorted(both.input_tokens.tolist()) == sorted([*left.input_tokens.tolist(), *right.input_tokens.tolist()])
    hits = Reuse.of(left).hit_blocks().sum() + Reuse.of(right).hit_blocks().sum()
    assert Reuse.of(both).hit_blocks().sum() == hits
    follows = int((left.previous != ALONE).sum() + (right.previous != ALONE).sum())
    assert int((both.previous != ALONE).sum()) == follows


def test_merged_traces_have_blocks_of_one_size() -> None:
    ones = np.ones(1, np.int64)
    sizes = [Trace.open_loop("n", np.zeros(1), ones, ones, block_tokens=size) for size in (16, 512)]
    with pytest.raises(TraceError, match="block_tokens: traces of \\[16, 512\\]"):
        merge("both", sizes)
