"""The columns of a trace, and rows taken out of it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from sim.traces import ALONE, Trace, TraceError


def small(**columns: Any) -> Trace:
    """Three requests: a turn, a stranger, the next turn."""
    values: dict[str, Any] = {
        "name": "small",
        "arrival_seconds": [0.0, 1.0, 2.5],
        "input_tokens": [700, 10, 1500],
        "output_tokens": [20, 1, 30],
        "block_tokens": 512,
        "blocks": [1, 2, 1, 2, 3],
        "first_block": [0, 2, 2, 5],
        "previous": [ALONE, ALONE, 0],
        "delay_seconds": [0.0, 0.0, 1.5],
    }
    return Trace(**(values | columns))


def test_columns_have_their_types() -> None:
    trace = small()
    assert trace.blocks.dtype == np.uint64
    assert trace.input_tokens.dtype == trace.previous.dtype == np.int64
    assert repr(trace) == "Trace('small': 3 requests in 2 s, 5 ids of 512 tokens)"
    assert [trace.ids(request).tolist() for request in range(3)] == [[1, 2], [], [1, 2, 3]]
    assert trace.has_sessions


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (
            {"arrival_seconds": [0.0, 2.0, 1.0]},
            "small, request 2: arrival_seconds: is 1.0: the request before it comes later",
        ),
        (
            {"arrival_seconds": [0.0, 1.0, np.nan]},
            "request 2: arrival_seconds: is nan: must be at least 0 and finite",
        ),
        ({"input_tokens": [1, 0, 1]}, "request 1: input_tokens: is 0: must be at least 1"),
        ({"output_tokens": [1, 1, -1]}, "request 2: output_tokens: is -1"),
        ({"output_tokens": [1, 1]}, r"output_tokens: has the shape \(2,\), not \(3,\)"),
        ({"block_tokens": 0}, "block_tokens: must be at least 1, not 0"),
        ({"first_block": [0, 2, 2, 4]}, "first_block: must go from 0 to the number of blocks"),
        ({"first_block": [0, 3, 2, 5]}, "request 1: first_block: is 3"),
        ({"previous": [ALONE, 1, 0]}, "request 1: previous: is 1: must be an earlier request, or -1"),
        ({"delay_seconds": [0.0, 0.0, -1.0]}, "request 2: delay_seconds"),
    ],
)
def test_a_wrong_column_is_named(columns: dict[str, Any], message: str) -> None:
    with pytest.raises(TraceError, match=message):
        small(**columns)


def test_rows_taken_keep_their_ids_and_sessions() -> None:
    taken = small().take(np.array([0, 2]))
    assert taken.previous.tolist() == [ALONE, 0]
    assert [taken.ids(request).tolist() for request in range(2)] == [[1, 2], [1, 2, 3]]


def test_a_turn_whose_predecessor_is_left_out_is_sent_at_its_time() -> None:
    taken = small().take(np.array([1, 2]))
    assert taken.previous.tolist() == [ALONE, ALONE]
    assert taken.delay_seconds.tolist() == [0.0, 0.0]


def test_a_turn_waits_for_the_closest_ancestor_that_is_kept() -> None:
    trace = Trace.open_loop("chain", np.arange(4.0), np.ones(4, np.int64), np.ones(4, np.int64))
    chained = trace.with_columns(previous=np.array([ALONE, 0, 1, 2]))
    assert chained.take(np.array([0, 3])).previous.tolist() == [ALONE, 0]
