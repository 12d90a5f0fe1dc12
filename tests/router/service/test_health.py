"""Who is fit for new work, by what requests show; time is the test's, but for the wait outside, which is short."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import numpy as np
import pytest

from router.core import NoTarget, Part, RoutingRequest, Scheduler, Target
from router.core.policy import create
from router.dispatch.errors import EngineFailed, EngineTimeout
from router.metrics import Metrics
from router.service.health import HealthOptions, WorkerHealth

if TYPE_CHECKING:
    from collections.abc import Iterator

A, B = Target("a"), Target("b")
OPTIONS = HealthOptions(stall_seconds=10.0, first_seconds=0.01, longest_seconds=0.04, forgiven_after_seconds=60.0)


class Clinic:
    """Two targets, their health, and a clock."""

    def __init__(self) -> None:
        self.now = 100.0
        self.answers = True
        self.asked = 0
        self.stalled: list[Target] = []
        self.numbers = iter(range(1000))
        self.metrics = Metrics()
        self.scheduler = Scheduler(create("warm"), 64, seed=1)
        for target in (A, B):
            self.scheduler.add_target(target, capacity_tokens=64_000, model="m")
        self.health = WorkerHealth(
            self.scheduler,
            self.metrics,
            ask=self.ask,
            on_stall=self.stalled.append,
            clock=lambda: self.now,
            options=OPTIONS,
        )

    async def ask(self, target: Target) -> bool:
        self.asked += 1
        return self.answers

    def prove(self, target: Target) -> None:
        """Let it answer a request."""
        request_id = self.place(target)
        self.scheduler.first_token(request_id, 0, self.now)
        self.health.sweep()
        self.scheduler.free(request_id, self.now)

    def place(self, target: Target, tokens: int = 100, *, opaque: bool = False) -> str:
        request_id = f"r{next(self.numbers)}"
        hashes = np.zeros(0, np.uint64)
        self.scheduler.place(RoutingRequest(request_id, hashes, tokens, pinned=target, opaque=opaque), self.now)
        return request_id

    def available(self, target: Target) -> bool:
        return next(state.available for state in self.scheduler.targets() if state.target == target)

    def counted(self, name: str, **labels: str) -> float:
        return self.metrics.registry.get_sample_value(f"warmpath_{name}_total", labels) or 0.0


@pytest.fixture
def clinic() -> Iterator[Clinic]:
    clinic = Clinic()
    yield clinic
    clinic.health.close()


async def test_after_a_failure_one_request_proves_it(clinic: Clinic, eventually) -> None:
    clinic.health.failed(A, EngineFailed("answered 500"))
    clinic.health.failed(A, EngineFailed("the same event, seen by another request"))
    assert (clinic.available(A), clinic.available(B)) == (False, True)
    assert clinic.health.reason(A) == "out: answered 500"
    await eventually(lambda: clinic.available(A))
    assert clinic.health.reason(A) == "on probation: answered 500"
    probe = clinic.place(A)
    with pytest.raises(NoTarget):
        clinic.place(A)
    clinic.scheduler.first_token(probe, 0, clinic.now)
    assert clinic.available(A)
    assert clinic.health.reason(A) is None
    assert clinic.counted("ejections", reason="failed") == 1
    assert clinic.counted("health_checks", result="passed") == 1


async def test_a_probe_whose_client_leaves_makes_room_for_another(clinic: Clinic, eventually) -> None:
    clinic.health.failed(A, EngineTimeout("silent"))
    await eventually(lambda: clinic.available(A))
    probe = clinic.place(A)
    clinic.scheduler.free(probe, clinic.now, failed=True)
    assert clinic.available(A)
    assert "on probation" in (clinic.health.reason(A) or "")
    clinic.place(A)
    assert not clinic.available(A)


async def test_a_server_that_does_not_answer_stays_out(clinic: Clinic, eventually) -> None:
    clinic.answers = False
    clinic.health.failed(A, EngineFailed("refused"))
    await eventually(lambda: clinic.asked >= 3)
    assert not clinic.available(A)
    clinic.answers = True
    await eventually(lambda: clinic.available(A))


async def test_who_comes_and_goes_stays_away_ever_longer_and_is_forgiven_for_being_well(
    clinic: Clinic, eventually
) -> None:
    async def relapse() -> float:
        clinic.health.failed(A, EngineFailed("again"))
        seconds = clinic.health._patients[A].out_seconds
        await eventually(lambda: clinic.available(A))
        return seconds

    assert [await relapse() for _ in range(4)] == [0.01, 0.02, 0.04, 0.04]
    clinic.scheduler.first_token(clinic.place(A), 0, clinic.now)
    clinic.now += OPTIONS.forgiven_after_seconds - 1
    assert await relapse() == 0.04
    clinic.scheduler.first_token(clinic.place(A), 0, clinic.now)
    clinic.now += OPTIONS.forgiven_after_seconds
    assert await relapse() == 0.01


def silence(clinic: Clinic, seconds: float) -> None:
    """Time in which nothing shows, looked at every second."""
    for _ in range(int(seconds)):
        clinic.now += 1
        clinic.health.sweep()


async def test_accepted_and_no_token_is_a_stall(clinic: Clinic) -> None:
    clinic.prove(A)
    clinic.place(A)
    silence(clinic, 10)
    clinic.place(A)  # a new request is no sign of life
    assert clinic.available(A)
    silence(clinic, 1)
    assert not clinic.available(A)
    assert clinic.stalled == [A]
    assert clinic.health.reason(A) == "out: 2 request(s), and nothing for 11 s"
    assert clinic.counted("ejections", reason="stalled") == 1


async def test_a_worker_that_never_answered_has_more_time(clinic: Clinic) -> None:
    clinic.place(A)
    silence(clinic, 60)
    assert clinic.stalled == []
    silence(clinic, 1)
    assert clinic.stalled == [A]


async def test_tokens_that_stop_coming_are_a_stall(clinic: Clinic) -> None:
    request = clinic.place(A)
    clinic.scheduler.first_token(request, 0, clinic.now)
    for tokens in range(30):
        clinic.scheduler.progress(request, tokens)
        silence(clinic, 1)
    assert clinic.available(A)
    silence(clinic, 11)
    assert clinic.stalled == [A]


async def test_one_request_that_moves_speaks_for_all(clinic: Clinic) -> None:
    clinic.place(A)
    for _ in range(30):
        clinic.scheduler.first_token(clinic.place(A), 0, clinic.now)
        silence(clinic, 9)
    assert clinic.stalled == []


async def test_a_long_prefill_is_no_stall(clinic: Clinic) -> None:
    clinic.prove(A)
    clinic.place(A, tokens=80_000)  # 10 s at the rate assumed
    silence(clinic, 39)
    assert clinic.stalled == []
    silence(clinic, 3)
    assert clinic.stalled == [A]


async def test_what_shows_nothing_before_its_end_is_no_stall_and_hides_none(clinic: Clinic) -> None:
    whole = clinic.place(A, opaque=True)
    clinic.now += 1000
    clinic.health.sweep()
    assert clinic.available(A)
    clinic.place(A)
    clinic.scheduler.free(whole, clinic.now)
    clinic.now += 1000
    clinic.health.sweep()
    assert not clinic.available(A)


async def test_an_idle_worker_is_well_however_long(clinic: Clinic) -> None:
    request = clinic.place(A)
    clinic.scheduler.free(request, clinic.now)
    silence(clinic, 1000)
    clinic.place(A)
    silence(clinic, 10)
    assert clinic.stalled == []


async def test_a_stalled_worker_that_moves_again_is_back_at_once(clinic: Clinic) -> None:
    clinic.answers = False
    request = clinic.place(A)
    clinic.scheduler.first_token(request, 0, clinic.now)
    silence(clinic, 12)
    assert not clinic.available(A)
    clinic.scheduler.progress(request, 5)
    clinic.health.sweep()
    assert clinic.available(A)
    assert clinic.health.reason(A) is None


async def test_a_worker_that_left_is_forgotten(clinic: Clinic) -> None:
    clinic.health.failed(A, EngineFailed("answered 500"))
    clinic.place(B)
    for target in (A, B):
        clinic.health.forget(target)
        clinic.scheduler.remove_target(target)
    assert clinic.health.reason(A) is None
    assert clinic.health.out() == 0
    await asyncio.sleep(3 * OPTIONS.first_seconds)
    assert clinic.asked == 0


async def test_a_decode_side_proves_itself_by_delivering(clinic: Clinic, eventually) -> None:
    """It has no first token of its own to show: an end that is none of its faults does."""
    decode = Target("d")
    clinic.scheduler.add_target(decode, capacity_tokens=64_000, model="m", part=Part.DECODE)
    clinic.health.failed(decode, EngineFailed("cut"))
    await eventually(lambda: clinic.available(decode))
    for failed in (True, False):
        request = RoutingRequest("r", np.zeros(0, np.uint64), 100, part=Part.DECODE)
        clinic.scheduler.place(request, clinic.now)
        clinic.scheduler.free("r", clinic.now, failed=failed)
        assert (clinic.health.reason(decode) is None) is not failed


async def test_a_prefill_side_may_wait_for_its_decode_side(clinic: Clinic) -> None:
    """A decode worker without memory to spare keeps it silent: no fault of its own."""
    prefill = Target("p")
    clinic.scheduler.add_target(prefill, capacity_tokens=64_000, model="m", part=Part.PREFILL)
    clinic.scheduler.place(RoutingRequest("r", np.zeros(0, np.uint64), 100, part=Part.PREFILL), clinic.now)
    clinic.place(A)
    clinic.now += 100 * OPTIONS.stall_seconds
    clinic.health.sweep()
    assert clinic.stalled == [A]
    assert clinic.health.reason(prefill) is None
