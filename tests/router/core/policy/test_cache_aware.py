from collections.abc import Callable
from random import Random
from typing import Any

import pytest

from router.core.fleet import FleetView
from router.core.policy.cache_aware import CacheAware
from router.core.request import RoutingRequest

RequestOf = Callable[..., RoutingRequest]
ViewOf = Callable[..., FleetView]


def chosen(view: FleetView, request: RoutingRequest, **options: Any) -> int:
    policy = CacheAware(**options)
    return policy.pick(policy.score(view, request, Random(0)), view.eligible, Random(0))


def test_a_long_match_decides_however_much_waits_there(request_of: RequestOf, view_of: ViewOf) -> None:
    request = request_of(blocks=10)
    view = view_of(request, 3, device_blocks=[0, 4, 5], active_requests=[0, 0, 64], prefill_tokens=[0, 0, 10**6])
    assert chosen(view, request) == 2


def test_equal_matches_go_to_the_fewest_requests(request_of: RequestOf, view_of: ViewOf) -> None:
    request = request_of(blocks=10)
    assert chosen(view_of(request, 3, device_blocks=[5, 5, 4], active_requests=[9, 8, 0]), request) == 1


def test_without_a_long_match_the_emptiest_cache_is_filled(request_of: RequestOf, view_of: ViewOf) -> None:
    request = request_of(blocks=10)
    view = view_of(request, 3, device_blocks=[3, 0, 0], held_blocks=[90, 50, 70], active_requests=[0, 9, 0])
    assert chosen(view, request) == 1
    assert chosen(view, request, cache_threshold=0.2) == 0


@pytest.mark.parametrize(("most", "choice"), [(64, 1), (65, 0)])
def test_out_of_balance_the_fewest_requests_win(request_of: RequestOf, view_of: ViewOf, most: int, choice: int) -> None:
    request = request_of(blocks=10)
    assert chosen(view_of(request, 2, device_blocks=[0, 10], active_requests=[0, most]), request) == choice


@pytest.mark.parametrize(("at_holder", "choice"), [(5, 1), (6, 0)])
def test_the_mean_spill_passes_over_the_holder_alone(
    request_of: RequestOf, view_of: ViewOf, at_holder: int, choice: int
) -> None:
    request = request_of(blocks=10)  # 5 others with 1 request each: at most 1.67 + 4 and 1.83 + 4
    requests = [1, at_holder, 1, 1, 1, 1]
    view = view_of(request, 6, device_blocks=[6, 10, 0, 0, 0, 0], active_requests=requests)
    assert chosen(view, request, mean_spill=1) == choice


def test_targets_that_are_not_eligible_do_not_count(request_of: RequestOf, view_of: ViewOf) -> None:
    request = request_of(blocks=10)
    view = view_of(request, 3, device_blocks=[0, 5, 10], active_requests=[0, 9, 500], eligible=[True, True, False])
    assert chosen(view, request) == 1


@pytest.mark.parametrize(
    "options",
    [
        {"cache_threshold": 1.5},
        {"balance_abs_threshold": -1.0},
        {"balance_rel_threshold": float("inf")},
        {"mean_spill": 0.5},
    ],
)
def test_a_bad_option_is_named(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"policy 'cache-aware': {next(iter(options))} must be"):
        CacheAware(**options)
