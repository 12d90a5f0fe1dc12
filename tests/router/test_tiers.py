"""A cache tier in host memory, end to end: what the engine evicts from the device is still seen, scored, and loaded back."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

import aiohttp
import numpy as np
import pytest

from events.bus.memory import MemoryBroker, MemoryBus
from events.membership.memory import MemoryDirectory, MemoryRegistry
from router.core import Scheduler, Target
from router.core.policy import create
from router.core.policy.warm import HOST_COST, WORK_WEIGHT
from router.dispatch.dispatcher import Dispatcher
from router.dispatch.engine import EngineClient
from router.dispatch.request import TokenRequest
from router.metrics import Metrics
from router.service.feed import EventFeed
from router.service.quarantine import Quarantine
from router.service.roster import Roster
from sim.engine import StepTiming
from sim.worker import FakeWorker, WorkerConfig
from workers.sglang.adapter import Adapter, Pace
from workers.sglang.card import Chosen

if TYPE_CHECKING:
    from router.core import Decision

BLOCK = 64
PACE = Pace(wait_seconds=0.02)


def prompt(seed: int, count: int = 1280) -> np.ndarray[Any, Any]:
    return ((np.arange(count) * 7 + seed * 331) % 1900 + 50).astype(np.uint32)


class Site:
    """Workers with adapters on one bus, and the part of a router that decides and dispatches."""

    def __init__(self, workers: list[FakeWorker], scheduler: Scheduler, dispatcher: Dispatcher) -> None:
        self.workers, self.scheduler, self.dispatcher = workers, scheduler, dispatcher
        self.targets = [Target(f"w{index}") for index in range(len(workers))]

    async def run(self, name: str, ids: np.ndarray[Any, Any]) -> tuple[Target, int]:
        """Who answered, and the tokens that were cached there."""
        outputs = [output async for output in self.dispatcher.run(TokenRequest(name, "m", ids, 2))]
        return outputs[-1].target, outputs[-1].cached_tokens

    def decision(self, ids: np.ndarray[Any, Any]) -> Decision:
        return self.dispatcher.explain(ids, "m").first

    def blocks(self, ids: np.ndarray[Any, Any], target: Target) -> tuple[int, int]:
        """Leading blocks on a target's device, and further ones on its host."""
        row = next(row for row in self.decision(ids).candidates if row.target == target)
        return row.device_blocks, row.host_blocks


@pytest.fixture
async def there() -> Any:
    """Two workers with 2,048 tokens on the device and four times that on the host."""
    async with AsyncExitStack() as parts:
        timing = StepTiming(speed=20.0)
        config = WorkerConfig(
            max_total_tokens=2048,
            enable_hierarchical_cache=True,
            hicache_ratio=4.0,
            timing=timing,
            decode_log_interval=1,
        )
        workers = [await parts.enter_async_context(FakeWorker(config)) for _ in range(2)]
        broker, directory, metrics = MemoryBroker(), MemoryDirectory(), Metrics()
        loop = asyncio.get_running_loop()
        scheduler = Scheduler(create("warm"), BLOCK, seed=1)
        bus = await parts.enter_async_context(MemoryBus(broker))
        feed = EventFeed(bus, scheduler, namespace="default", metrics=metrics, clock=loop.time)
        await feed.open()
        parts.push_async_callback(feed.close)
        quarantine = Quarantine[Target](scheduler.set_available, loop)
        apart = Quarantine[tuple[Target, Target]](lambda pair, together: None, loop)
        roster = Roster([MemoryRegistry(directory)], scheduler, feed, quarantine, apart, block_size=BLOCK)
        running = [asyncio.create_task(roster.run())]
        for index, worker in enumerate(workers):
            own = await parts.enter_async_context(MemoryBus(broker))
            chosen = Chosen(worker.url, f"w{index}", BLOCK, "m")
            adapter = Adapter(chosen, own, MemoryRegistry(directory), pace=PACE, parity_probe=False)
            running.append(asyncio.create_task(adapter.run()))
        engine = EngineClient()
        parts.push_async_callback(engine.close)
        dispatcher = Dispatcher(scheduler, engine, roster, metrics, block_size=BLOCK, clock=loop.time)
        parts.push_async_callback(dispatcher.close)
        async with asyncio.timeout(40):
            while roster.ready_workers() < 2:
                await asyncio.sleep(0.01)
        yield Site(workers, scheduler, dispatcher)
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)


async def test_what_the_device_let_go_is_found_on_the_host(there: Site, eventually) -> None:  # type: ignore[no-untyped-def]
    ids = prompt(0)
    holder, _ = await there.run("cold", ids)
    other = next(target for target in there.targets if target != holder)
    await eventually(lambda: there.blocks(ids, holder) == (20, 0))  # on both tiers: the faster one counts
    there.scheduler.set_available(other, available=False)
    await there.run("filler", prompt(1))  # pushes it out of the device
    there.scheduler.set_available(other, available=True)
    await eventually(lambda: there.blocks(ids, holder) == (0, 20))
    state = next(state for state in there.scheduler.targets() if state.target == holder)
    assert state.host_blocks == 40
    # The holder's host tier is worth more than computing it elsewhere, and is charged for what loading takes.
    scores = {row.target: row.score for row in there.decision(ids).candidates}
    rate = next(row.prefill_rate for row in there.decision(ids).candidates)
    assert scores[holder] == pytest.approx((1 + 20 * BLOCK * HOST_COST) * WORK_WEIGHT / rate, rel=0.1)
    assert scores[other] == pytest.approx(1280 * WORK_WEIGHT / rate, rel=0.1)
    assert await there.run("again", ids) == (holder, 1264)
    engine = there.workers[there.targets.index(holder)].ranks[0].engine
    assert engine.statistics().cached_tokens == 1264
    await eventually(lambda: there.blocks(ids, holder) == (20, 0))  # loaded back


async def test_a_prefix_on_a_device_beats_the_same_on_a_host(there: Site, eventually) -> None:  # type: ignore[no-untyped-def]
    ids = prompt(0)
    for index, target in enumerate(there.targets):
        there.scheduler.set_available(there.targets[1 - index], available=False)
        await there.run(f"warm {target}", ids)
        if index == 0:
            await there.run("filler", prompt(1))
        there.scheduler.set_available(there.targets[1 - index], available=True)
    await eventually(lambda: [there.blocks(ids, target) for target in there.targets] == [(0, 20), (20, 0)])
    assert there.decision(ids).chosen == there.targets[1]


async def test_the_engine_says_which_tier_it_was(there: Site) -> None:
    worker = there.workers[0]
    async with aiohttp.ClientSession() as session:
        for ids in (prompt(0), prompt(1), prompt(0)):
            body = {"input_ids": ids.tolist(), "sampling_params": {"max_new_tokens": 1}}
            async with session.post(f"{worker.url}/generate", json=body) as reply:
                details = (await reply.json())["meta_info"]["cached_tokens_details"]
    assert details == {"device": 0, "host": 1264}
