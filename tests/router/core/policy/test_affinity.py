from collections.abc import Callable
from random import Random
from typing import Any

import pytest

from router.core.fleet import FleetView
from router.core.policy.affinity import Affinity
from router.core.request import RoutingRequest

RequestOf = Callable[..., RoutingRequest]
ViewOf = Callable[..., FleetView]


def chosen(view: FleetView, request: RoutingRequest, **options: Any) -> int:
    policy = Affinity(**{"exploration": 0.0, **options})
    return policy.pick(policy.score(view, request, Random(0)), view.eligible, Random(0))


@pytest.mark.parametrize(("held", "queued", "choice"), [(8, 5000, 1), (7, 5000, 0), (8, 5600, 0), (7, 0, 1)])
def test_holders_are_kept_to_while_they_are_fast_enough(
    request_of: RequestOf, view_of: ViewOf, held: int, queued: int, choice: int
) -> None:
    request = request_of(blocks=10)  # 640 tokens, 1,000 tokens a second: 0.64 s elsewhere
    view = view_of(request, 2, device_blocks=[0, held], prefill_tokens=[0, queued])
    assert chosen(view, request) == choice


def test_among_holders_the_fastest_wins(request_of: RequestOf, view_of: ViewOf) -> None:
    request = request_of(blocks=10)
    assert chosen(view_of(request, 3, device_blocks=[10, 9, 0], prefill_tokens=[200, 100, 0]), request) == 1


def test_a_few_requests_look_at_everybody(request_of: RequestOf, view_of: ViewOf) -> None:
    request = request_of(blocks=10)
    view = view_of(request, 2, device_blocks=[0, 10], prefill_tokens=[0, 4000])
    assert chosen(view, request, exploration=1.0) == 0


@pytest.mark.parametrize("options", [{"threshold": 1.1}, {"exploration": -0.1}, {"break_seconds": float("nan")}])
def test_a_bad_option_is_named(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"policy 'affinity': {next(iter(options))} must be"):
        Affinity(**options)
