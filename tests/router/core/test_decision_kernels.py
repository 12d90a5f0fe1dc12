"""The compiled steps against the same formulas in plain Python."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from router.core import decision_kernels as kernels
from router.core.overlap import Overlap
from router.core.warmup import warm_up

ROWS = st.lists(
    st.tuples(*[st.integers(0, 40)] * 4, st.sampled_from([0, 1, 16, 64]), st.floats(0, 1e6), st.floats(1, 1e5)),
    min_size=1,
    max_size=70,
)


@settings(derandomize=True, deadline=None)
@given(ROWS, st.integers(1, 10_000))
def test_uncached_tokens(rows: list[tuple[int, ...]], prompt_tokens: int) -> None:
    blocks = np.array([row[:4] for row in rows], np.int32).T
    page_size = np.array([row[4] for row in rows], np.int64)
    expected = []
    for row in rows:
        page = max(row[4], 1)
        expected.append(prompt_tokens - min(sum(row[:4]) * 64, (prompt_tokens - 1) // page * page))
    assert Overlap(*blocks).uncached_tokens(prompt_tokens, 64, page_size).tolist() == expected


@settings(derandomize=True, deadline=None)
@given(ROWS, st.booleans(), st.data())
def test_available(rows: list[tuple[int, ...]], any_model: bool, data: st.DataObject) -> None:
    marks = st.lists(st.booleans(), min_size=len(rows), max_size=len(rows))
    present, available = data.draw(marks), data.draw(marks)
    models = [row[0] % 3 for row in rows]
    left = np.empty(len(rows), np.bool_)
    parts = [row[1] % 3 for row in rows]
    wanted, wanted_part = kernels.ANY_MODEL if any_model else 1, data.draw(st.integers(0, 2))
    count = kernels.available(
        np.array(present), np.array(available), np.array(models), wanted, np.array(parts), wanted_part, left
    )
    expected = [
        here and up and (any_model or model == 1) and part == wanted_part
        for here, up, model, part in zip(present, available, models, parts, strict=True)
    ]
    assert left.tolist() == expected
    assert count == sum(expected)


def test_only_an_eligible_nan_counts() -> None:
    scores = np.array([1.0, np.nan, np.inf])
    assert kernels.has_nan(scores, np.array([True, True, True]))
    assert not kernels.has_nan(scores, np.array([True, False, True]))


def test_warm_up_leaves_nothing_to_compile() -> None:
    warm_up()
    assert len(kernels.warm.signatures) == 1


SCORES = st.floats(0, 100) | st.sampled_from([0.0, 1.0, 2.0, np.inf, np.nan])


@settings(derandomize=True, deadline=None)
@given(st.lists(st.tuples(SCORES, SCORES, st.booleans()), min_size=1, max_size=12), st.integers(0, 20))
def test_spread(rows: list[tuple[float, float, bool]], count: int) -> None:
    at_first, with_one, eligible = (np.array(column) for column in zip(*rows, strict=True))
    precedence = np.arange(len(rows))[::-1] * 1e-9
    expected = [0] * len(rows)
    here = [slot for slot, row in enumerate(rows) if row[2]]
    possible = bool(here) and all(np.isfinite(rows[slot][:2]).all() for slot in here)
    for number in range(count + 1 if possible else 0):
        rise = [after - before for before, after, _ in rows]
        best = min(here, key=lambda slot: rows[slot][0] + expected[slot] * rise[slot] + precedence[slot])
        possible = possible and rise[best] > 0
        expected[best] += number < count
    placed = np.zeros(len(rows), np.int64)
    assert kernels.spread(at_first, with_one, precedence, eligible, count, placed) == possible
    assert placed.tolist() == (expected if possible else [0] * len(rows))
