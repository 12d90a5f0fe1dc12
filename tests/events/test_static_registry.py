"""Servers without an adapter: there while they answer, gone when they do not."""

from __future__ import annotations

import asyncio
from contextlib import aclosing

import pytest

from events.membership import Joined, Left, Listed, RegistryError, WorkerCard
from events.membership.static import StaticRegistry
from sim.worker import FakeWorker, WorkerConfig

DEAD = "http://127.0.0.1:9"  # the discard port: nobody listens


async def test_servers_that_answer_are_there_without_events() -> None:
    async with FakeWorker(WorkerConfig(dp_size=2, page_size=16)) as worker:
        cards = await StaticRegistry([worker.url, DEAD]).cards()
        (card,) = cards.values()
        assert (card.endpoint, card.ranks, card.page_size, card.kv_events) == (worker.url, 2, 16, False)


async def test_a_server_that_dies_leaves_and_a_new_one_joins_with_a_new_epoch() -> None:
    worker = FakeWorker(WorkerConfig())
    await worker.start()
    registry = StaticRegistry([worker.url], poll_seconds=0.01)
    async with aclosing(registry.watch()) as changes, asyncio.timeout(20):
        first = await anext(changes)
        assert isinstance(first, Joined)
        assert await anext(changes) == Listed(1)
        await worker.stop()
        assert await anext(changes) == Left(first.card.worker_id)
        again = FakeWorker(WorkerConfig(port=int(worker.url.rpartition(":")[2])))
        await again.start()
        second = await anext(changes)
        assert isinstance(second, Joined)
        assert second.card.epoch > first.card.epoch
        await again.stop()


async def test_nobody_registers_there() -> None:
    registry = StaticRegistry([])
    with pytest.raises(RegistryError, match="w0"):
        await registry.register(
            WorkerCard(worker_id="w0", epoch=1, model="m", endpoint=DEAD, capacity_tokens=1, context_tokens=1)
        )
    await registry.unregister("w0")
    assert registry.statistics().registered == 0


async def test_closing_ends_the_watch() -> None:
    registry = StaticRegistry([], poll_seconds=60)
    watch = registry.watch()
    assert await anext(watch) == Listed(0)
    watching = asyncio.create_task(anext(watch, None))
    await asyncio.sleep(0)
    await registry.close()
    async with asyncio.timeout(5):
        assert await watching is None
