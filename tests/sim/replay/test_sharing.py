"""Routers in virtual time that hear each other's bookings."""

import numpy as np

from router.core import RoutingRequest, Target
from router.core.policy import create
from sim.replay.sharing import SharingScheduler

A = Target("a")


def pair(lag_seconds):
    routers = [SharingScheduler(create("warm"), 4, seed=0, name=name, lag_seconds=lag_seconds) for name in "xy"]
    for router, other in zip(routers, reversed(routers), strict=True):
        router.others = [other]
        router.add_target(A, capacity_tokens=4000, model="m")
    return routers


def state(router):
    (only,) = router.targets()
    return len(only.requests), only.requests_elsewhere, only.prefill_tokens


def test_what_one_books_the_other_hears_after_the_lag_and_forgets_at_the_end():
    one, other = pair(lag_seconds=0.5)
    one.place(RoutingRequest("r", np.arange(1, 6, dtype=np.uint64), 21), 1.0)
    other.hear(1.4)
    assert (state(one), state(other)) == ((1, 0, 21), (0, 0, 0))
    other.hear(1.5)
    assert state(other) == (0, 1, 21)
    one.first_token("r", 0, 2.0)
    other.hear(2.5)
    assert state(other) == (0, 1, 0)
    one.free("r", 3.0)
    other.hear(3.5)
    assert state(one) == state(other) == (0, 0, 0)
    assert other.statistics().unknown_requests == 0


def test_a_decision_hears_first():
    one, other = pair(lag_seconds=0.5)
    for router in (one, other):
        router.add_target(Target("b"), capacity_tokens=4000, model="m")
    nothing = np.zeros(0, np.uint64)
    first = one.place(RoutingRequest("r", nothing, 1000), 1.0).target
    assert other.place(RoutingRequest("s", nothing, 1000), 1.5).target != first


def test_who_is_gone_meanwhile_is_not_missed():
    one, other = pair(lag_seconds=0.5)
    one.place(RoutingRequest("r", np.zeros(0, np.uint64), 20), 1.0)
    other.remove_target(A)
    one.first_token("r", 0, 1.1)
    one.free("r", 1.2)
    other.hear(9.0)
    assert other.statistics().requests_elsewhere == other.statistics().unknown_requests == 0
