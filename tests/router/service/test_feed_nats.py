"""The write path over a real NATS server that dies, stops, or is cut off: the index comes to hold what the adapter holds."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import time
from contextlib import AsyncExitStack, asynccontextmanager

import pytest

from events.bus.broker import EmbeddedBroker
from events.bus.log import Limits
from events.bus.nats import PERSISTENCE, NatsBus
from events.history import jetstream_history
from events.messages import BlocksStored, SnapshotChunk
from router.core import Scheduler
from router.core.policy import create
from router.metrics import Metrics
from router.service import feed as feed_module
from router.service.feed import EventFeed
from router.service.snapshots import AdapterSnapshots, HistorySnapshots
from tests.events.proxy import Proxy
from tests.router.service.test_feed import NAMESPACE, TARGET, FakeAdapter, packed

SETTLE_SECONDS = 30.0


@pytest.fixture(autouse=True)
def _hurry(monkeypatch):
    monkeypatch.setattr(feed_module, "MARK_GRACE_SECONDS", 0.05)
    monkeypatch.setattr(feed_module, "SILENT_SECONDS", 1.0)
    monkeypatch.setattr(feed_module, "LISTEN_SECONDS", 0.05)
    monkeypatch.setitem(PERSISTENCE, "ping_interval", 0.2)
    monkeypatch.setitem(PERSISTENCE, "flush_timeout", 0.1)


class Router:
    """A feed and its scheduler on a bus of their own."""

    def __init__(self, url, *, durable=False, **bus):
        self.metrics, self.scheduler = Metrics(), Scheduler(create("warm"), 64)
        self.bus = NatsBus(url, "router", wait_for_server=False, **bus)
        sources = [AdapterSnapshots(self.bus, NAMESPACE)]
        if durable:
            sources.insert(0, HistorySnapshots(jetstream_history(self.bus, NAMESPACE, Limits())))
        self.feed = EventFeed(
            self.bus,
            self.scheduler,
            namespace=NAMESPACE,
            metrics=self.metrics,
            clock=time.monotonic,
            sources=sources,
        )
        self.bus.on_connect = self.feed.resynchronise

    async def __aenter__(self):
        await self.bus.open()
        await self.feed.open()
        self.scheduler.add_target(TARGET, capacity_tokens=2**20, model="m", exact=False)
        self.feed.follow(TARGET, epoch=1)
        return self

    async def __aexit__(self, *error):
        await self.feed.close()
        await self.bus.close()

    def holds(self, blocks):
        (state,) = self.scheduler.targets()
        return state.exact and set(self.scheduler._index.held(0).tolist()) == set(blocks)

    def count(self, name, **labels):
        return self.metrics.registry.get_sample_value(name, labels) or 0.0


@asynccontextmanager
async def adapter_at(url, **bus):
    """An adapter that says marks, as the real one does."""
    adapter = FakeAdapter(NatsBus(url, "adapter", wait_for_server=False, **bus))

    async def marks():
        while True:
            await adapter.mark()
            await asyncio.sleep(0.05)

    async with adapter.bus:
        await adapter.open()
        saying = asyncio.create_task(marks())
        yield adapter
        saying.cancel()
        await asyncio.wait([saying])


@asynccontextmanager
async def site(broker, *, adapter_url=None, router_url=None, adapter_bus=None, router_bus=None):
    async with AsyncExitStack() as parts:
        adapter = await parts.enter_async_context(adapter_at(adapter_url or broker.url, **(adapter_bus or {})))
        router = await parts.enter_async_context(Router(router_url or broker.url, **(router_bus or {})))
        yield adapter, router


@pytest.fixture
async def broker():
    async with EmbeddedBroker() as broker:
        yield broker


async def kill(broker):
    os.kill(broker.pid, signal.SIGKILL)
    await asyncio.to_thread(os.waitid, os.P_PID, broker.pid, os.WEXITED | os.WNOWAIT)


@pytest.mark.parametrize("buffer_bytes", [8 * 2**20, 300], ids=["all is buffered", "most is dropped"])
async def test_a_broker_that_dies_and_comes_back(broker, eventually, buffer_bytes):
    async with site(broker, adapter_bus={"buffer_bytes": buffer_bytes}) as (adapter, router):
        await adapter.store(1, 2, 3)
        await eventually(lambda: router.holds(adapter.held), SETTLE_SECONDS)
        await kill(broker)
        await eventually(lambda: not adapter.bus.connected, SETTLE_SECONDS)
        for block in range(10, 20):
            await adapter.store(block)
        await adapter.remove(1)
        await broker.start()
        await eventually(lambda: router.holds(adapter.held), SETTLE_SECONDS)
        assert (adapter.bus.statistics().dropped > 0) is (buffer_bytes == 300)


async def test_a_broker_that_stands_still_longer_than_its_clients_wait(broker, eventually):
    async with site(broker) as (adapter, router):
        await adapter.store(1)
        await eventually(lambda: router.holds(adapter.held), SETTLE_SECONDS)
        os.kill(broker.pid, signal.SIGSTOP)
        await eventually(lambda: not adapter.bus.connected and not router.bus.connected, SETTLE_SECONDS)
        await adapter.clear()
        await adapter.store(2)
        os.kill(broker.pid, signal.SIGCONT)
        await eventually(lambda: router.holds(adapter.held), SETTLE_SECONDS)


@pytest.fixture
def forgotten_sockets():
    """nats-py forgets the sockets of attempts that fail: they are found here, and not by whatever test comes next."""
    yield
    gc.collect()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.usefixtures("forgotten_sockets")
@pytest.mark.parametrize("how", ["cut", "stall"])
@pytest.mark.parametrize("side", ["adapter", "router"])
async def test_one_side_that_is_cut_off(broker, eventually, side, how):
    async with Proxy(broker.port) as proxy:
        urls = {f"{side}_url": proxy.url, f"{side}_bus": {"buffer_bytes": 300}}
        async with site(broker, **urls) as (adapter, router):
            await adapter.store(1, 2)
            await eventually(lambda: router.holds(adapter.held), SETTLE_SECONDS)
            await eventually(lambda: router.feed.statistics(TARGET).mark is not None, SETTLE_SECONDS)
            getattr(proxy, how)()
            cut_off = adapter.bus if side == "adapter" else router.bus
            await eventually(lambda: not cut_off.connected, SETTLE_SECONDS)
            for block in range(10, 20):
                await adapter.store(block)
            await adapter.remove(1)  # the last word: nothing later would show that it is missing
            if side == "adapter":
                await eventually(lambda: router.feed.statistics(TARGET).silent, SETTLE_SECONDS)
                assert not router.holds(adapter.held)
            proxy.mend()
            await eventually(lambda: router.holds(adapter.held), SETTLE_SECONDS)


async def test_a_router_that_is_too_slow(broker, eventually):
    """Its queue overflows, in the middle and at the end; it says so and catches up."""
    async with site(broker, router_bus={"queue_bytes": 3000}) as (adapter, router):
        await adapter.store(1)
        await eventually(lambda: router.holds(adapter.held), SETTLE_SECONDS)
        for _ in range(3):
            for block in range(200):
                await (adapter.store if block % 2 else adapter.remove)(block)
            await adapter.bus.flush()
            time.sleep(0.05)  # the whole process stands still, its router included
        await eventually(lambda: router.bus.statistics().dropped > 0, SETTLE_SECONDS)
        await eventually(lambda: router.holds(adapter.held), SETTLE_SECONDS)
        assert router.count("warmpath_gaps_total", hop="bus") > 0


async def test_a_router_that_starts_anew_asks_nobody(tmp_path, eventually):
    """The broker died in between as well, and the adapter is gone by the time that the router is there."""
    broker = EmbeddedBroker(store_dir=tmp_path)
    await broker.start()
    try:
        async with adapter_at(broker.url) as adapter:
            await eventually(lambda: adapter.bus.connected)
            history = jetstream_history(adapter.bus, NAMESPACE, Limits())
            await history.open()
            await adapter.store(1, 2, 3)

            def chunks(position):
                stored = [BlocksStored(packed(adapter.held))]
                return [SnapshotChunk(*TARGET, adapter.epoch, adapter.seq, 0, 1, stored, position)]

            await history.write(chunks)
            await adapter.store(4)
            await adapter.remove(1)
            await adapter.bus.flush()
            held = list(adapter.held)
        await kill(broker)
        await broker.start()
        async with Router(broker.url, durable=True) as router:
            await eventually(lambda: router.holds(held), SETTLE_SECONDS)
            assert router.count("warmpath_resyncs_total", source="history") == 1
            assert router.count("warmpath_resyncs_total", source="adapter") == 0
    finally:
        await broker.stop()
