from collections import Counter
from collections.abc import Callable
from random import Random as Chance

import pytest

from router.core.fleet import FleetView
from router.core.policy.random import Random
from router.core.request import RoutingRequest


def test_everyone_eligible_is_alike(
    request_of: Callable[..., RoutingRequest], view_of: Callable[..., FleetView]
) -> None:
    request = request_of()
    view = view_of(request, 4, eligible=[True, True, False, True], active_requests=[0, 100, 0, 7])
    chance = Chance(1)
    chosen = Counter(Random().pick(Random().score(view, request, chance), view.eligible, chance) for _ in range(3000))
    assert [chosen[slot] / 3000 for slot in range(4)] == pytest.approx([1 / 3, 1 / 3, 0, 1 / 3], abs=0.04)
