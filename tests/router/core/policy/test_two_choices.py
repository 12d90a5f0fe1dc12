from collections.abc import Callable
from random import Random
from typing import Any

import numpy as np
import pytest

from router.core.fleet import FleetView
from router.core.policy.two_choices import TwoChoices
from router.core.request import RoutingRequest

RequestOf = Callable[..., RoutingRequest]
ViewOf = Callable[..., FleetView]


def prompt(name: int, blocks: int = 4) -> RoutingRequest:
    return RoutingRequest("r", np.arange(name * 1000, name * 1000 + blocks, dtype=np.uint64), blocks * 64)


def homes(view: FleetView, request: RoutingRequest, **options: Any) -> set[int]:
    return set(np.flatnonzero(np.isfinite(TwoChoices(**options).score(view, request, Random(0)))).tolist())


def test_a_prefix_has_two_homes_and_keeps_them(view_of: ViewOf) -> None:
    seen = set()
    for name in range(40):
        view = view_of(prompt(name), 8)
        both = homes(view, prompt(name))
        assert len(both) == 2
        assert homes(view, prompt(name)) == both
        seen |= both
    assert seen == set(range(8))


def test_only_the_beginning_counts(view_of: ViewOf) -> None:
    beginnings = {
        frozenset(homes(view_of(prompt(7, blocks), 8), prompt(7, blocks), prefix_blocks=4)) for blocks in (4, 5, 90)
    }
    assert len(beginnings) == 1


def test_few_prefixes_move_when_a_target_leaves(view_of: ViewOf) -> None:
    stayed = 0
    for name in range(200):
        request = prompt(name)
        before = homes(view_of(request, 8), request)
        after = homes(view_of(request, 8, eligible=[True] * 7 + [False]), request)
        assert 7 not in after
        stayed += before - {7} <= after
    assert stayed == 200


def test_the_longer_match_wins_until_the_wait_is_too_long(view_of: ViewOf) -> None:
    request = prompt(1, blocks=20)
    view = view_of(request, 2, device_blocks=[0, 10], prefill_tokens=[0, 2000])
    policy = TwoChoices()
    assert policy.pick(policy.score(view, request, Random(0)), view.eligible, Random(0)) == 1
    policy = TwoChoices(slo_seconds=1.0)
    assert policy.pick(policy.score(view, request, Random(0)), view.eligible, Random(0)) == 0


def test_one_target_and_a_prompt_without_a_block(request_of: RequestOf, view_of: ViewOf) -> None:
    request = request_of(blocks=0, prompt_tokens=5)
    assert homes(view_of(request, 1), request) == {0}
    assert len(homes(view_of(request, 5), request)) == 2


@pytest.mark.parametrize("options", [{"prefix_blocks": 0}, {"prefix_blocks": 1.5}, {"slo_seconds": 0.0}])
def test_a_bad_option_is_named(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"policy 'two-choices': {next(iter(options))} must be"):
        TwoChoices(**options)
