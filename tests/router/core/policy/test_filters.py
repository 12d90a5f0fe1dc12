from collections.abc import Callable
from typing import Any

import pytest

from router.core.decision import NoTarget
from router.core.fleet import Fleet
from router.core.policy import filters
from router.core.request import RoutingRequest, Target

A, B, C = Target("a"), Target("b"), Target("b", 1)


@pytest.fixture
def fleet() -> Fleet:
    result = Fleet()
    for target, model in ((A, "small"), (B, "large"), (C, "large")):
        result.add(target, capacity_blocks=10, model=model, page_size=1, exact=True, max_running_requests=None)
    return result


def eligible(fleet: Fleet, request: RoutingRequest) -> set[Target]:
    mask = filters.eligible(fleet, request)
    refused = filters.refusals(fleet, request)
    passed = {target for slot, target in fleet.items() if mask[slot]}
    assert passed == {target for slot, target in fleet.items() if slot not in refused}
    return passed


@pytest.mark.parametrize(
    ("asked", "passed"),
    [
        ({}, {A, B, C}),
        ({"model": "large"}, {B, C}),
        ({"pinned": C}, {C}),
        ({"model": "large", "pinned": C}, {C}),
        ({"excluded": frozenset({B, Target("gone")})}, {A, C}),
        ({"model": "large", "excluded": frozenset({B})}, {C}),
    ],
)
def test_who_passes(fleet: Fleet, request_of: Callable[..., RoutingRequest], asked: Any, passed: set[Target]) -> None:
    assert eligible(fleet, request_of(**asked)) == passed


@pytest.mark.parametrize(
    ("asked", "reason"),
    [
        ({"model": "huge"}, "no worker serves the model"),
        ({"pinned": Target("gone")}, "pinned target unavailable"),
        ({"pinned": A}, "pinned target unavailable"),
        ({"pinned": B, "excluded": frozenset({B})}, "pinned target unavailable"),
        ({"pinned": B, "model": "small"}, "pinned target unavailable"),
        ({"excluded": frozenset({B, C})}, "all excluded"),
        ({"model": "small"}, "all unavailable"),
    ],
)
def test_why_nobody_passes(fleet: Fleet, request_of: Callable[..., RoutingRequest], asked: Any, reason: str) -> None:
    fleet.columns["available"][fleet.slot(A)] = False
    with pytest.raises(NoTarget) as none:
        filters.eligible(fleet, request_of(**asked))
    assert none.value.reason == reason
    assert str(none.value).startswith(reason)


def test_an_empty_fleet_has_no_worker(request_of: Callable[..., RoutingRequest]) -> None:
    fleet = Fleet()
    with pytest.raises(NoTarget, match=r"^no worker$"):
        filters.eligible(fleet, request_of(model="large"))
    fleet.add(A, capacity_blocks=1, model="m", page_size=1, exact=True, max_running_requests=None)
    fleet.remove(A)
    with pytest.raises(NoTarget, match=r"^no worker$"):
        filters.eligible(fleet, request_of(model="m"))


def test_the_detail_names_what_was_in_the_way(fleet: Fleet, request_of: Callable[..., RoutingRequest]) -> None:
    with pytest.raises(NoTarget, match="no worker serves the model: 'huge'"):
        filters.eligible(fleet, request_of(model="huge"))
    with pytest.raises(NoTarget, match="all excluded: a/0, b/0, b/1"):
        filters.eligible(fleet, request_of(excluded=frozenset({A, B, C})))


def test_each_refused_target_has_its_own_reason(fleet: Fleet, request_of: Callable[..., RoutingRequest]) -> None:
    fleet.columns["available"][fleet.slot(B)] = False
    reasons = filters.refusals(fleet, request_of(model="large", excluded=frozenset({C})))
    assert reasons == {0: "serves another model", 1: "unavailable", 2: "excluded"}
