import math
from collections import Counter
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router.core.policy import pick

SCORES = st.lists(st.floats(-1e6, 1e6) | st.just(math.inf), min_size=1, max_size=20)


@settings(derandomize=True, deadline=None)
@given(SCORES, st.data())
def test_the_lowest_eligible_score_wins(scores: list[float], data: st.DataObject) -> None:
    eligible = np.zeros(len(scores), np.bool_)
    eligible[data.draw(st.lists(st.integers(0, len(scores) - 1), min_size=1))] = True
    slot = pick.lowest(np.array(scores), eligible, Random(data.draw(st.integers())))
    assert eligible[slot]
    assert scores[slot] == min(score for score, its in zip(scores, eligible, strict=True) if its)


@settings(derandomize=True, deadline=None)
@given(SCORES, st.floats(0.001, 100), st.data())
def test_softmax_stays_among_the_eligible(scores: list[float], temperature: float, data: st.DataObject) -> None:
    eligible = np.zeros(len(scores), np.bool_)
    eligible[data.draw(st.lists(st.integers(0, len(scores) - 1), min_size=1))] = True
    slot = pick.softmax(np.array(scores), eligible, Random(data.draw(st.integers())), temperature)
    assert eligible[slot]
    if math.isinf(scores[slot]):
        assert all(math.isinf(score) for score, its in zip(scores, eligible, strict=True) if its)


def frequencies(scores: list[float], temperature: float, draws: int = 4000) -> list[float]:
    chance = Random(7)
    values, eligible = np.array(scores), np.ones(len(scores), np.bool_)
    counts = Counter(pick.softmax(values, eligible, chance, temperature) for _ in range(draws))
    return [counts[slot] / draws for slot in range(len(scores))]


@pytest.mark.parametrize("temperature", [0.2, 0.5, 2.0])
def test_softmax_follows_its_formula(temperature: float) -> None:
    scores = [10.0, 12.0, 30.0]
    weights = [math.exp(-(score - 10) / (20 * temperature)) for score in scores]
    expected = [weight / sum(weights) for weight in weights]
    assert frequencies(scores, temperature) == pytest.approx(expected, abs=0.03)


def test_softmax_does_not_depend_on_the_unit_of_scores() -> None:
    assert frequencies([1.0, 2.0, 5.0], 0.5) == frequencies([1000.0, 2000.0, 5000.0], 0.5)


def test_softmax_of_equal_scores_is_uniform() -> None:
    assert frequencies([3.0, 3.0, 3.0, 3.0], 0.5) == pytest.approx([0.25] * 4, abs=0.03)


def test_softmax_at_zero_is_the_lowest() -> None:
    assert frequencies([3.0, 2.0, 5.0], 0.0) == [0, 1, 0]


def test_a_range_beyond_floats_is_survived() -> None:
    assert sum(frequencies([-1e308, 1e308], 0.5)) == 1


def test_ties_are_broken_alike_and_reproducibly() -> None:
    scores, eligible = np.array([1.0, 1.0, 2.0, 1.0]), np.array([True, True, True, True])
    chance = Random(3)
    drawn = [pick.lowest(scores, eligible, chance) for _ in range(3000)]
    assert {slot: drawn.count(slot) / 3000 for slot in (0, 1, 3)} == pytest.approx(
        {0: 1 / 3, 1: 1 / 3, 3: 1 / 3}, abs=0.05
    )
    again = Random(3)
    assert drawn == [pick.lowest(scores, eligible, again) for _ in range(3000)]


def test_tolerance_widens_a_tie() -> None:
    scores, eligible = np.array([100.0, 104.0, 106.0]), np.ones(3, np.bool_)
    assert {pick.lowest(scores, eligible, Random(seed), 0.05) for seed in range(50)} == {0, 1}
    assert {pick.lowest(-scores[::-1], eligible, Random(seed), 0.05) for seed in range(50)} == {0, 1}
