"""Bookings that cross one another, and routers that keep apart from what they cannot see."""

from __future__ import annotations

import math
import random
from typing import TYPE_CHECKING

import numpy as np
import pytest

from events.blocks import NO_HASHES
from router.core import Part, RoutingRequest, Scheduler, Target
from router.core.policy import create, names
from router.core.unheard import MOST_AHEAD, Unheard

if TYPE_CHECKING:
    from router.core import Placement

LAG = 0.003
BLOCK_SIZE = 4


def scheduler(policy: str = "warm", targets: int = 4, seed: int = 1) -> Scheduler:
    result = Scheduler(create(policy), BLOCK_SIZE, seed=seed)
    for number in range(targets):
        result.add_target(Target("w", number), capacity_tokens=400_000, model="m")
    return result


def request(request_id: str, tokens: int = 1000, **fields: object) -> RoutingRequest:
    return RoutingRequest(request_id, NO_HASHES, tokens, **fields)  # type: ignore[arg-type]


def in_bursts(rank: int, routers: int, policy: str = "warm", others: int = 8) -> Scheduler:
    """A router that has learned that so many bookings of others cross each of its own; nothing is in flight."""
    result = scheduler(policy)
    result.share(rank, routers, LAG)
    for number in range(100):
        mine = f"r{number}"
        result.place(request(mine), float(number))
        for other in range(others):
            result.book_elsewhere("x", request(f"x/{number}/{other}"), Target("w", other % 4), 1000, number + LAG)
        for request_id in (mine, *(f"x/{number}/{other}" for other in range(others))):
            result.first_token(request_id, 0, number + 0.2)
            result.free(request_id, number + 0.2)
    return result


# ---- what crosses


@pytest.mark.parametrize(
    ("heard_after", "crossed"), [(0.0, 1), (LAG, 1), (2 * LAG - 1e-9, 1), (2 * LAG, 0), (1.0, 0)], ids=str
)
def test_what_is_heard_within_twice_the_lag_has_crossed(heard_after: float, crossed: int) -> None:
    unheard = Unheard(LAG)
    for number in range(200):
        unheard.heard(number - 0.1)  # long known, then
        unheard.placed(100, 100, float(number))
        unheard.heard(number + heard_after)
    assert unheard.is_expected(1000.0) == bool(crossed)
    assert unheard.expected == pytest.approx(crossed, abs=1e-3)


def test_without_a_lag_nothing_crosses() -> None:
    unheard = Unheard(0.0)
    for _ in range(20):
        unheard.placed(100, 100, 1.0)
        unheard.heard(1.0)
    assert unheard.expected == 0


def test_each_router_imagines_more_than_the_one_before() -> None:
    unheard = Unheard(LAG)
    for number in range(200):
        unheard.placed(100, 100, float(number))
        for _ in range(8):
            unheard.heard(number + LAG)
    assert unheard.is_expected(1000.0)
    ahead = []
    for rank in range(4):
        unheard.stand(rank, 4)
        ahead.append(unheard.ahead())
    assert ahead == pytest.approx([0, 2, 4, 6], abs=0.01)


def test_there_is_a_bound_on_imagination() -> None:
    unheard = Unheard(LAG)
    unheard.stand(1, 2)
    unheard.placed(100, 100, 0.0)
    for _ in range(100_000):
        unheard.heard(LAG)
    assert unheard.is_expected(1.0)
    assert unheard.ahead() == MOST_AHEAD


def test_nothing_is_imagined_of_others_before_a_request_of_ours_shows_how_large_they_are() -> None:
    unheard = Unheard(LAG)
    unheard.expected = 5.0
    assert not unheard.is_expected(0.0)
    unheard.placed(100, 100, 0.0)
    assert unheard.is_expected(0.0)


def test_a_stranger_has_the_root_mean_square_of_our_sizes() -> None:
    unheard = Unheard(LAG)
    for _ in range(1000):
        unheard.placed(10, 50, 0.0)
        unheard.placed(90, 100, 0.0)
    request, uncached_tokens = unheard.stranger(Part.WHOLE)
    assert uncached_tokens == pytest.approx(math.sqrt((10**2 + 90**2) / 2), abs=1)
    assert request.prompt_tokens == pytest.approx(math.sqrt((50**2 + 100**2) / 2), abs=1)


def test_a_decode_side_has_nothing_to_prefill() -> None:
    unheard = Unheard(LAG)
    unheard.placed(0, 50, 0.0)
    request, uncached_tokens = unheard.stranger(Part.DECODE)
    assert (request.prompt_tokens, request.part, uncached_tokens) == (50, Part.DECODE, 0)


# ---- what a scheduler makes of it


def history(fleet: Scheduler, seed: int) -> list[Placement]:
    """Placements among those of another router, many at a time."""
    draw, placements = random.Random(seed), []
    for number in range(150):
        now = number // 10 * 0.1
        tokens = draw.randrange(10, 3000)
        hashes = np.arange(1, draw.randrange(1, tokens // BLOCK_SIZE + 1), dtype=np.uint64)
        placements.append(fleet.place(RoutingRequest(f"r{number}", hashes, tokens), now))
        target = Target("w", draw.randrange(4))
        fleet.book_elsewhere("x", request(f"x/{number}", tokens), target, tokens, now + 0.001)
        if number >= 20:
            for request_id in (f"r{number - 20}", f"x/{number - 20}"):
                fleet.first_token(request_id, None, now + 0.002)
                fleet.free(request_id, now + 0.002)
    return placements


@pytest.mark.parametrize("policy", names())
def test_one_router_alone_decides_as_if_never_told(policy: str) -> None:
    alone, told, was_one_of_two = scheduler(policy), scheduler(policy), scheduler(policy)
    told.share(0, 1, LAG)
    was_one_of_two.share(1, 2, LAG)
    was_one_of_two.share(0, 1, LAG)
    expected = history(alone, seed=5)
    assert history(told, seed=5) == history(was_one_of_two, seed=5) == expected
    assert told.statistics().unheard_bookings == 0


@pytest.mark.parametrize("policy", ["random", "round-robin", "two-choices", "power-of-two"])
def test_policies_that_do_not_compare_all_targets_by_load_decide_as_ever(policy: str) -> None:
    sharing = scheduler(policy)
    sharing.share(1, 2, LAG)
    assert history(sharing, seed=5) == history(scheduler(policy), seed=5)
    assert sharing.statistics().unheard_bookings > 1


@pytest.mark.parametrize("policy", ["warm", "linear", "least-loaded"])
def test_a_burst_is_spread_by_routers_that_do_not_see_each_other(policy: str) -> None:
    routers = [in_bursts(rank, 4, policy, others=3) for rank in range(4)]
    blind = [scheduler(policy) for _ in range(4)]
    for router in (*routers, *blind):  # one target is ahead of the others: all of them see the same best one
        for number in range(1, 4):
            busy = request(f"x/busy/{number}", 100 * number)
            router.book_elsewhere("x", busy, Target("w", number), 100 * number, 200.0, just_now=False)
    apart = {router.place(request("burst"), 300.0).target for router in routers}
    assert len({router.place(request("burst"), 300.0).target for router in blind}) == 1
    assert len(apart) >= 3


def test_what_is_cached_still_counts() -> None:
    router = in_bursts(1, 2)
    chain = np.arange(1, 2001, dtype=np.uint64)
    router.store(Target("w", 3), chain)
    assert router.place(RoutingRequest("burst", chain, 8001), 300.0).target == Target("w", 3)


def test_routers_with_other_slots_keep_apart_all_the_same() -> None:
    """Ties are broken by name: slots depend on who came when."""
    chosen = set()
    for rank in range(4):
        router = in_bursts(rank, 4, others=3)
        for number in range(rank):
            router.remove_target(Target("w", number))
        for number in reversed(range(rank)):
            router.add_target(Target("w", number), capacity_tokens=400_000, model="m")
        chosen.add(router.place(request("burst"), 300.0).target)
    assert len(chosen) >= 3


def test_an_explanation_foresees_the_same() -> None:
    router = in_bursts(3, 4)
    explained = router.explain(request("burst"), 300.0)
    placement = router.place(request("burst"), 300.0)
    assert explained.chosen == placement.target
    assert [row.score for row in explained.candidates if row.chosen] == [placement.score]


def test_imagined_requests_are_neither_booked_nor_predicted() -> None:
    router = in_bursts(3, 4)
    placement = router.place(request("burst"), 300.0)
    assert placement.predicted_ttft_seconds == pytest.approx(1000 / router.targets()[0].prefill_rate)
    assert sum(state.prefill_tokens for state in router.targets()) == 1000
    router._check()


def test_bookings_made_up_for_do_not_count_as_crossing() -> None:
    router = scheduler()
    router.share(1, 2, LAG)
    router.place(request("r"), 1.0)
    for number in range(100):
        router.book_elsewhere("x", request(f"x/{number}"), Target("w"), 1000, 1.0, just_now=False)
    router.place(request("s"), 2.0)
    assert router.statistics().unheard_bookings == 0


def test_decode_sides_are_foreseen_apart_from_prefill_sides() -> None:
    router = Scheduler(create("warm"), BLOCK_SIZE, seed=1)
    for part in (Part.PREFILL, Part.DECODE):
        for number in range(2):
            router.add_target(Target(part.value, number), capacity_tokens=400_000, model="m", part=part)
    router.share(1, 2, LAG)
    for number in range(50):
        router.place(request(f"r{number}", part=Part.DECODE), float(number))
        for other in range(2):
            router.book_elsewhere("x", request(f"x/{number}/{other}"), Target("decode", other), 0, number + LAG)
        for request_id in (f"r{number}", f"x/{number}/0", f"x/{number}/1"):
            router.free(request_id, number + 0.5)
    assert router.statistics().unheard_bookings == pytest.approx(2, abs=0.3)
    router.book_elsewhere("x", request("x/busy", 900), Target("decode", 1), 0, 100.0, just_now=False)
    assert router.place(request("burst", part=Part.DECODE), 200.0).target == Target("decode", 1)
    router.book_elsewhere("x", request("x/busy too", 900), Target("prefill", 1), 900, 200.0, just_now=False)
    assert router.place(request("burst too", part=Part.PREFILL), 200.0).target == Target("prefill", 0)


def test_a_booking_that_does_not_fit_and_is_made_anew_crosses_once() -> None:
    router = scheduler()
    router.share(0, 2, LAG)
    router.place(request("mine"), 0.0)
    misfit = RoutingRequest("x/1", np.arange(1, 9, dtype=np.uint64), 1)
    with pytest.raises(ValueError, match="8 hashes"):
        router.book_elsewhere("x", misfit, Target("w", 0), 1, LAG)
    router.book_elsewhere("x", request("x/1", 1), Target("w", 0), 1, LAG)
    once = scheduler()
    once.share(0, 2, LAG)
    once.place(request("mine"), 0.0)
    once.book_elsewhere("x", request("x/1", 1), Target("w", 0), 1, LAG)
    for each in (router, once):
        each.place(request("later"), 1.0)
    assert router.statistics().unheard_bookings == once.statistics().unheard_bookings > 0


@pytest.mark.parametrize(("rank", "routers"), [(-1, 2), (2, 2), (0, 0)])
def test_there_is_no_such_rank(rank: int, routers: int) -> None:
    with pytest.raises(ValueError, match="rank must be in"):
        scheduler().share(rank, routers, LAG)
