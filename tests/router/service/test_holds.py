"""What one router's administrator holds back, all routers hold back: the order goes to the adapter, and back by the card."""

from __future__ import annotations

import asyncio
import logging
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING

from events.bus.memory import MemoryBroker, MemoryBus
from events.membership.memory import MemoryDirectory, MemoryRegistry
from router.core import Scheduler, Target
from router.core.policy import create
from router.service.holds import HoldOrders
from router.service.quarantine import Quarantine
from router.service.roster import Roster
from tests.workers.fake_sglang import FakeServer, until
from workers.sglang.adapter import Adapter, Pace
from workers.sglang.card import Chosen

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    import pytest

PACE = Pace(wait_seconds=0.02, watch_seconds=0.02, missed_watches=2, load_poll_seconds=0.02)
REASON = "generation is paused"


class Place:
    """A broker, a registry, and who meets there."""

    def __init__(self, parts: AsyncExitStack) -> None:
        self.broker, self.directory = MemoryBroker(), MemoryDirectory()
        self.parts = parts

    async def bus(self) -> MemoryBus:
        return await self.parts.enter_async_context(MemoryBus(self.broker))

    async def adapter(self, url: str) -> None:
        adapter = Adapter(Chosen(url, "w", 64), await self.bus(), MemoryRegistry(self.directory), pace=PACE)
        self.background(asyncio.create_task(adapter.run()))

    async def router(self) -> Roster:
        scheduler, loop = Scheduler(create("warm"), 64), asyncio.get_running_loop()
        ward, apart = (Quarantine(lambda *_: None, loop) for _ in range(2))
        tell = HoldOrders(await self.bus(), "default").send
        roster = Roster([MemoryRegistry(self.directory)], scheduler, None, ward, apart, block_size=64, tell_others=tell)
        self.background(asyncio.create_task(roster.run()))
        return roster

    def background(self, task: asyncio.Task[None]) -> None:
        async def end() -> None:
            task.cancel()
            await asyncio.wait([task])

        self.parts.push_async_callback(end)


@asynccontextmanager
async def place() -> AsyncIterator[tuple[Place, FakeServer]]:
    async with AsyncExitStack() as parts, FakeServer(events=False) as server:
        yield Place(parts), server


def available(roster: Roster) -> bool:
    return next(state.available for state in roster._scheduler.targets() if state.target == Target("w", 0))


async def test_all_routers_hold_back_whom_one_does() -> None:
    async with place() as (here, server):
        await here.adapter(server.url)
        first, second = await here.router(), await here.router()
        await until(lambda: first.cards() and second.cards())
        await first.hold("w", REASON)
        assert not available(first)
        await until(lambda: not available(second))
        late = await here.router()
        await until(late.cards)
        assert not available(late)
        assert late.workers()[0]["held"] == (REASON,)
        await second.release("w", REASON)
        await until(lambda: available(first) and available(late))


async def test_an_engine_that_begins_again_is_not_held_back() -> None:
    async with place() as (here, server):
        await here.adapter(server.url)
        router = await here.router()
        await until(router.cards)
        epoch = router.cards()["w"].epoch
        await router.hold("w", REASON)
        await server.die()
        await until(lambda: not router.cards())
        await server.start()
        await until(lambda: router.cards() and router.cards()["w"].epoch > epoch)
        assert available(router)


async def test_a_worker_without_an_adapter_is_held_back_here_alone_and_that_is_said(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with place() as (here, server):
        await here.adapter(server.url)
        router = await here.router()
        await until(router.cards)
        router._tell_others = HoldOrders(await here.bus(), "elsewhere").send
        with caplog.at_level(logging.WARNING):
            await router.hold("w", REASON)
        assert not available(router)
        assert "other routers do not hear of it" in caplog.text
