from collections.abc import Callable
from random import Random

import numpy as np
import pytest

from router.core.fleet import FleetView
from router.core.policy.warm import Warm
from router.core.request import RoutingRequest

RequestOf = Callable[..., RoutingRequest]
ViewOf = Callable[..., FleetView]


def scores(view: FleetView, request: RoutingRequest) -> list[float]:
    return Warm().score(view, request, Random(0)).tolist()


def test_the_formula(request_of: RequestOf, view_of: ViewOf) -> None:
    request = request_of(blocks=10)  # 640 tokens
    view = view_of(
        request,
        2,
        device_blocks=[5, 0],
        prefill_tokens=[100, 0],
        active_requests=[3, 0],
        context_tokens=[2000, 0],
        prefill_rate=[1000.0, 500.0],
    )
    busy = (100 + 320 * (3 + 3 / 50) + 2000 / 10) / 1000
    assert scores(view, request) == pytest.approx([busy, 3 * 640 / 500])


def test_a_cached_prompt_costs_its_last_token(request_of: RequestOf, view_of: ViewOf) -> None:
    request = request_of(blocks=10)
    assert scores(view_of(request, 1, device_blocks=10), request) == pytest.approx([3 / 1000])


def test_predictions_count_in_full_and_slower_tiers_in_part(request_of: RequestOf, view_of: ViewOf) -> None:
    request = request_of(prompt_tokens=641, blocks=10)
    kinds = [
        scores(view_of(request, 1, **{kind: 10}), request)[0]
        for kind in ("device_blocks", "predicted_blocks", "host_blocks", "disk_blocks")
    ]
    assert kinds == pytest.approx([0.003, 0.003, 0.243, 1.443])


def test_the_engine_is_believed_when_it_reports_more(request_of: RequestOf, view_of: ViewOf) -> None:
    request = request_of(blocks=1)
    view = view_of(request, 3, prefill_tokens=[500, 500, 0], reported_prefill_tokens=[200.0, 900.0, 0.0])
    assert scores(view, request) == pytest.approx([0.692, 1.092, 0.192])


def test_the_holder_wins_until_its_queue_costs_more_than_the_cache_saves(
    request_of: RequestOf, view_of: ViewOf
) -> None:
    request = request_of(blocks=100)

    def chosen(queue: int) -> int:
        view = view_of(request, 2, device_blocks=[90, 0], prefill_tokens=[queue, 0])
        return Warm().pick(Warm().score(view, request, Random(0)), view.eligible, Random(0))

    assert [chosen(0), chosen(17_000), chosen(17_500)] == [0, 0, 1]  # 3 · 90 blocks of 64


def test_cold_prompts_spread_over_idle_targets_of_one_kind(request_of: RequestOf, view_of: ViewOf) -> None:
    request = request_of()
    view = view_of(request, 3, prefill_rate=[1000.0, 1000.0, 700.0])
    costs = Warm().score(view, request, Random(0))
    assert {Warm().pick(costs, np.ones(3, np.bool_), Random(seed)) for seed in range(40)} == {0, 1}


def test_among_idle_targets_of_one_kind_the_longest_prefix_wins(request_of: RequestOf, view_of: ViewOf) -> None:
    request = request_of(blocks=100)
    view = view_of(request, 3, device_blocks=[0, 1, 0])
    costs = Warm().score(view, request, Random(0))
    assert {Warm().pick(costs, np.ones(3, np.bool_), Random(seed)) for seed in range(20)} == {1}
