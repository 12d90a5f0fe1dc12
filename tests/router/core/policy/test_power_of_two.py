from collections import Counter
from collections.abc import Callable
from random import Random

import numpy as np
import pytest

from router.core.fleet import FleetView
from router.core.policy.power_of_two import PowerOfTwo
from router.core.request import RoutingRequest


def draws(view: FleetView, request: RoutingRequest, count: int = 2000) -> Counter[int]:
    chosen = Counter[int]()
    for seed in range(count):
        chance = Random(seed)
        chosen[PowerOfTwo().pick(PowerOfTwo().score(view, request, chance), view.eligible, chance)] += 1
    return chosen


def test_the_busier_of_two_is_never_chosen(
    request_of: Callable[..., RoutingRequest], view_of: Callable[..., FleetView]
) -> None:
    request = request_of()
    chosen = draws(view_of(request, 4, active_requests=[3, 1, 0, 2]), request)
    # Of the six pairs, the least loaded wins three, the next two, the next one, and the most loaded none.
    assert [chosen[slot] / 2000 for slot in (2, 1, 3, 0)] == pytest.approx([1 / 2, 1 / 3, 1 / 6, 0], abs=0.04)


def test_only_eligible_targets_are_drawn(
    request_of: Callable[..., RoutingRequest], view_of: Callable[..., FleetView]
) -> None:
    request = request_of()
    assert set(draws(view_of(request, 4, eligible=[False, True, False, True]), request, 100)) == {1, 3}
    assert set(draws(view_of(request, 4, eligible=[False, True, False, False]), request, 10)) == {1}


def test_both_are_different(request_of: Callable[..., RoutingRequest], view_of: Callable[..., FleetView]) -> None:
    request = request_of()
    for seed in range(50):
        scores = PowerOfTwo().score(view_of(request, 3), request, Random(seed))
        assert np.isfinite(scores).sum() == 2
