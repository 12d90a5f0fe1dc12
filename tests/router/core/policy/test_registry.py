import logging
from importlib.metadata import EntryPoint
from random import Random
from typing import Any

import numpy as np
import pytest

from router.core import policy
from router.core.policy import Policy


class Backwards(Policy):
    name = "backwards"

    def score(self, fleet: Any, request: Any, chance: Random) -> Any:
        return -np.arange(len(fleet.eligible), dtype=np.float64)


def install(monkeypatch: pytest.MonkeyPatch, **points: str) -> None:
    found = [EntryPoint(name.replace("_", "-"), value, policy.ENTRY_POINTS) for name, value in points.items()]
    monkeypatch.setattr(policy, "entry_points", lambda group: found if group == policy.ENTRY_POINTS else [])


@pytest.mark.parametrize("name", policy.names())
def test_a_policy_has_the_name_that_it_is_found_by(name: str) -> None:
    assert name in policy.names()
    assert policy.create(name).name == name


def test_an_unknown_name_lists_those_there_are() -> None:
    with pytest.raises(
        ValueError,
        match="no policy 'wram'; there are warm, linear, cache-aware, lmetric, two-choices, affinity, least-loaded, power-of-two",
    ):
        policy.create("wram")


def test_an_unknown_option_lists_those_there_are() -> None:
    with pytest.raises(ValueError, match="'warm' has no option heat; its options: none"):
        policy.create("warm", heat=3)
    with pytest.raises(
        ValueError, match=r"'linear' has no option heat; its options: overlap_score_credit, .*temperature"
    ):
        policy.create("linear", heat=3)


def test_a_users_policy_comes_from_its_entry_point(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, mine=f"{__name__}:Backwards")
    monkeypatch.setattr(EntryPoint, "load", lambda _: Backwards)  # this module cannot be imported by name
    assert policy.names()[-1] == "mine"
    assert isinstance(policy.create("mine"), Backwards)


@pytest.mark.parametrize("value", ["no_such_module_anywhere:Policy", "router.core.request:NoSuchClass"])
def test_a_broken_entry_point_says_what_is_wrong(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    install(monkeypatch, mine=value)
    with pytest.raises(ValueError, match=f"policy 'mine': cannot load {value}"):
        policy.create("mine")


def test_only_policies_are_policies(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, mine="router.core.request:Target")
    with pytest.raises(ValueError, match=r"router.core.request:Target is no subclass of router.core.policy.Policy"):
        policy.create("mine")


def test_a_taken_name_is_ignored_aloud(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    install(monkeypatch, warm="somewhere.other:Warm")
    with caplog.at_level(logging.WARNING):
        assert type(policy.create("warm")).__module__ == "router.core.policy.warm"
    assert "somewhere.other:Warm is ignored" in caplog.text


def test_a_policy_shows_its_options() -> None:
    assert repr(policy.create("round-robin")) == "RoundRobin()"
    assert "temperature=0.5" in repr(policy.create("linear", temperature=0.5))
