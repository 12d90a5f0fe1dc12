from collections import Counter

import numpy as np

from router.core import RoutingRequest, Scheduler, Target
from router.core.policy import create


def scheduler() -> Scheduler:
    result = Scheduler(create("round-robin"), 64)
    for rank in range(2):
        for model in ("a", "b"):
            result.add_target(Target(model, rank), capacity_tokens=6400, model=model)
    return result


def place(scheduler: Scheduler, number: int, model: str | None = None) -> Target:
    return scheduler.place(RoutingRequest(f"r{number}", np.empty(0, np.uint64), 10, model=model), 0.0).target


def test_everyone_has_a_turn_before_anyone_has_a_second() -> None:
    fleet = scheduler()
    turns = [place(fleet, number) for number in range(8)]
    assert turns[:4] == [Target("a", 0), Target("b", 0), Target("a", 1), Target("b", 1)]
    assert turns[4:] == turns[:4]


def test_alternating_models_do_not_starve_a_target() -> None:
    fleet = scheduler()
    turns = Counter(place(fleet, number, "ab"[number % 2]) for number in range(40))
    assert set(turns.values()) == {10}


def test_a_newcomer_goes_next() -> None:
    fleet = scheduler()
    for number in range(5):
        place(fleet, number)
    fleet.add_target(Target("new"), capacity_tokens=6400, model="a")
    assert place(fleet, 5) == Target("new")
