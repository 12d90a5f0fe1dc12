"""Who may get requests: joining, leaving, refusal, quarantine."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from events.bus.memory import MemoryBroker, MemoryBus
from events.membership import Role, WorkerCard
from events.membership.memory import MemoryDirectory, MemoryRegistry
from router.core import Paths, Scheduler, Target
from router.core.policy import create
from router.dispatch.errors import EngineAborted, EngineFailed, EngineUnreachable, RendezvousFailed
from router.metrics import Metrics
from router.service import quarantine as quarantine_module
from router.service.feed import EventFeed
from router.service.quarantine import Quarantine
from router.service.roster import Roster

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

CARD = WorkerCard(
    worker_id="w0", epoch=1, model="m", endpoint="http://w0", ranks=2, capacity_tokens=6400, context_tokens=4000
)


class Site:
    """A roster over a directory, and a registry to register in."""

    def __init__(self, feed: bool) -> None:
        directory = MemoryDirectory()
        self.there = MemoryRegistry(directory)
        self.scheduler = Scheduler(create("warm"), 64)
        self.bus = MemoryBus(MemoryBroker())
        self.feed = (
            EventFeed(self.bus, self.scheduler, namespace="n", metrics=Metrics(), clock=lambda: 0.0) if feed else None
        )
        self.paths = Paths(self.scheduler)
        loop = asyncio.get_running_loop()
        self.quarantine = Quarantine[Target](self.scheduler.set_available, loop)
        self.apart = Quarantine[tuple[Target, Target]](
            lambda pair, together: self.paths.set_together(*pair, together), loop
        )
        registries = [MemoryRegistry(directory)]
        self.roster = Roster(registries, self.scheduler, self.feed, self.quarantine, self.apart, block_size=64)

    @property
    def targets(self) -> set[Target]:
        return {state.target for state in self.scheduler.targets()}

    def available(self, target: Target) -> bool:
        return next(state.available for state in self.scheduler.targets() if state.target == target)

    def worker(self, worker_id: str) -> dict[str, Any]:
        return next(worker for worker in self.roster.workers() if worker["worker_id"] == worker_id)


@asynccontextmanager
async def site(*, feed: bool = False) -> AsyncIterator[Site]:
    result = Site(feed)
    running = asyncio.create_task(result.roster.run())
    async with result.bus:
        yield result
        if result.feed is not None:
            await result.feed.close()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running


async def test_every_rank_of_a_worker_is_a_target_until_it_leaves(eventually) -> None:
    async with site() as s:
        await s.there.register(CARD)
        await eventually(lambda: s.targets == {Target("w0", 0), Target("w0", 1)})
        assert s.roster.models() == ["m"]
        assert s.roster.context_tokens("m") == 4000
        assert s.roster.endpoint(Target("w0", 1)) == "http://w0"
        assert s.roster.ready_workers() == 1
        await s.there.unregister("w0")
        await eventually(lambda: s.targets == set())
        assert s.roster.models() == []
        assert s.roster.context_tokens("m") is None


async def test_a_restarted_worker_is_a_new_one(eventually) -> None:
    async with site() as s:
        await s.there.register(CARD)
        await eventually(lambda: len(s.targets) == 2)
        await s.there.register(msgspec.structs.replace(CARD, epoch=2, ranks=1, endpoint="http://elsewhere"))
        await eventually(lambda: s.targets == {Target("w0", 0)})
        assert s.roster.endpoint(Target("w0", 0)) == "http://elsewhere"


async def test_another_block_size_is_refused_with_the_reason(eventually) -> None:
    async with site(feed=True) as s:
        await s.there.register(msgspec.structs.replace(CARD, block_size=16))
        await s.there.register(msgspec.structs.replace(CARD, worker_id="w1"))
        await eventually(lambda: s.roster.refused_workers() == 1 and s.targets == {Target("w1", 0), Target("w1", 1)})
        assert "blocks of 16 tokens" in s.worker("w0")["refused"]
        assert s.roster.models() == ["m"]
        await s.there.register(CARD)  # put right
        await eventually(lambda: len(s.targets) == 4 and s.roster.refused_workers() == 0)


PREFILL = msgspec.structs.replace(
    CARD, worker_id="p0", role=Role.PREFILL, context_tokens=9000, bootstrap_host="p0", bootstrap_port=8998
)
DECODE = msgspec.structs.replace(CARD, worker_id="d0", role=Role.DECODE, prefix_cache=False)


async def test_a_prefill_worker_that_cannot_be_met_is_refused(eventually) -> None:
    async with site() as s:
        await s.there.register(msgspec.structs.replace(PREFILL, bootstrap_port=None))
        await eventually(lambda: s.roster.refused_workers() == 1)
        assert "bootstrap port" in s.worker("p0")["refused"]
        assert s.targets == set()


async def test_a_model_is_served_by_a_pair_and_not_by_half_of_one(eventually) -> None:
    async with site() as s:
        await s.there.register(PREFILL)
        await eventually(lambda: len(s.targets) == 2)
        assert s.roster.models() == []
        await s.there.register(DECODE)
        await eventually(lambda: s.roster.models() == ["m"])
        assert s.roster.context_tokens("m") == 4000  # both must take it
        assert s.roster.bootstrap(Target("p0", 1)) == ("p0", 8998)
        assert {state.target.worker_id: state.part for state in s.scheduler.targets()} == {
            "p0": "prefill",
            "d0": "decode",
        }
        assert not s.worker("d0")["prefix_cache"]


async def test_a_pair_that_fails_is_kept_apart_and_comes_back(eventually, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quarantine_module, "FIRST_SECONDS", 0.05)
    async with site() as s:
        for card in (PREFILL, DECODE):
            await s.there.register(card)
        await eventually(lambda: len(s.targets) == 4)
        pair = Target("p0", 0), Target("d0", 1)
        s.roster.failed_together(*pair, RendezvousFailed("handshake failed"))
        assert s.worker("p0")["ranks"][0]["apart_from"] == ["d0/1"]
        assert s.roster.pairs_apart() == (1, 1)
        assert s.paths.statistics(0.0).pairs_apart == 1
        assert all(s.available(target) for target in s.targets)
        await eventually(lambda: s.paths.statistics(0.0).pairs_apart == 0)


async def test_who_fails_with_two_others_rests_alone(eventually) -> None:
    async with site() as s:
        for card in (PREFILL, DECODE):
            await s.there.register(card)
        await eventually(lambda: len(s.targets) == 4)
        for rank in (0, 1):
            s.roster.failed_together(Target("p0", 0), Target("d0", rank), RendezvousFailed("bootstrap failed"))
        assert {target for target in s.targets if not s.available(target)} == {Target("p0", 0)}
        await s.there.register(msgspec.structs.replace(PREFILL, epoch=2))
        await eventually(lambda: s.roster.pairs_apart() == (0, 2))  # another process: nothing is held against it


async def test_block_sizes_do_not_matter_where_events_do_not(eventually) -> None:
    async with site(feed=False) as s:
        await s.there.register(msgspec.structs.replace(CARD, block_size=16))
        await eventually(lambda: len(s.targets) == 2)


async def test_a_worker_whose_ranks_are_not_in_step_is_not_ready(eventually) -> None:
    async with site(feed=True) as s:
        await s.there.register(CARD)  # nobody answers its snapshot requests
        await eventually(lambda: len(s.targets) == 2)
        assert s.roster.ready_workers() == 0
        await s.there.register(msgspec.structs.replace(CARD, worker_id="w1", kv_events=False))
        await eventually(lambda: s.roster.ready_workers() == 1)


async def test_a_failing_target_rests_and_comes_back(eventually, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quarantine_module, "FIRST_SECONDS", 0.05)
    async with site() as s:
        await s.there.register(CARD)
        await eventually(lambda: len(s.targets) == 2)
        first, second = Target("w0", 0), Target("w0", 1)
        s.roster.failed(first, EngineFailed("answered 500"))
        assert (s.available(first), s.available(second)) == (False, True)
        assert "500" in s.worker("w0")["ranks"][0]["quarantined"]
        await eventually(lambda: s.available(first))
        assert s.quarantine.reason(first) is None


async def test_a_worker_that_cannot_be_reached_rests_with_all_its_ranks(eventually) -> None:
    async with site() as s:
        await s.there.register(CARD)
        await eventually(lambda: len(s.targets) == 2)
        s.roster.failed(Target("w0", 0), EngineUnreachable("connection refused"))
        assert not any(s.available(target) for target in s.targets)
        await s.there.register(msgspec.structs.replace(CARD, epoch=2))  # it came back: no memory of it
        await eventually(lambda: all(s.available(target) for target in s.targets))


async def test_a_request_given_up_by_the_engine_is_no_offence(eventually) -> None:
    async with site() as s:
        await s.there.register(CARD)
        await eventually(lambda: len(s.targets) == 2)
        s.roster.failed(Target("w0", 0), EngineAborted("drained"))
        s.roster.failed(Target("gone", 0), EngineFailed("late"))
        assert all(s.available(target) for target in s.targets)


def test_each_failure_doubles_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    scheduler = Scheduler(create("warm"), 64)
    target = Target("w0", 0)
    scheduler.add_target(target, capacity_tokens=6400, model="m")
    clock = FakeLoop()
    ward = Quarantine(scheduler.set_available, clock)  # type: ignore[arg-type]
    rests = []
    for _ in range(7):
        ward.failed(target, EngineFailed("again"))
        ward.failed(target, EngineFailed("the same event, seen by another request"))
        rests.append(clock.run_next())
    assert rests == [1, 2, 4, 8, 16, 30, 30]
    clock.now += quarantine_module.FORGIVEN_AFTER_SECONDS + 1
    ward.failed(target, EngineFailed("much later"))
    assert clock.run_next() == 1


class FakeLoop:
    """Time that passes when it is told to."""

    def __init__(self) -> None:
        self.now = 0.0
        self.due: list[tuple[float, Any, tuple[Any, ...]]] = []

    def time(self) -> float:
        return self.now

    def call_later(self, seconds: float, call: Any, *arguments: Any) -> None:
        self.due.append((seconds, call, arguments))

    def run_next(self) -> float:
        ((seconds, call, arguments),) = self.due
        self.due.clear()
        self.now += seconds
        call(*arguments)
        return seconds
