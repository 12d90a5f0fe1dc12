"""Traces of all shapes."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

from sim.traces import ALONE, Trace
from sim.traces.trace import offsets


@st.composite
def traces(draw: st.DrawFn, *, branches: bool = True) -> Trace:
    """Up to a dozen requests over few ids, so that prefixes are shared; chains of sessions, or trees of them."""
    rows = draw(st.integers(1, 12))
    gaps = draw(st.lists(st.floats(0, 1e3), min_size=rows, max_size=rows))
    ids = draw(st.lists(st.lists(st.integers(0, 2), max_size=5), min_size=rows, max_size=rows))
    previous = np.full(rows, ALONE)
    free = set(range(rows))
    for row in range(1, rows):
        choice = draw(st.integers(-1, row - 1))
        if choice in free:
            previous[row] = choice
            free -= set() if branches else {choice}
    tokens = st.lists(st.integers(1, 2000), min_size=rows, max_size=rows)
    delays = draw(st.lists(st.floats(0, 1e3), min_size=rows, max_size=rows))
    return Trace(
        name=draw(st.text(max_size=5)),
        arrival_seconds=np.cumsum(gaps),
        input_tokens=np.array(draw(tokens)),
        output_tokens=np.array(draw(tokens)),
        block_tokens=draw(st.sampled_from([16, 512])),
        blocks=np.array([one for row in ids for one in row], np.uint64),
        first_block=offsets(np.array([len(row) for row in ids])),
        previous=previous,
        delay_seconds=np.where(previous == ALONE, 0.0, delays),
    )


def assert_equal(left: Trace, right: Trace) -> None:
    """Every column is the same, to the bit."""
    assert (left.name, left.block_tokens) == (right.name, right.block_tokens)
    for column in (
        "arrival_seconds",
        "input_tokens",
        "output_tokens",
        "blocks",
        "first_block",
        "previous",
        "delay_seconds",
    ):
        assert np.array_equal(getattr(left, column), getattr(right, column)), column
