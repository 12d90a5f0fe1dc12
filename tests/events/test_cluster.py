"""A bus and its logs over a cluster of three real servers, of which one after another dies, stops, or is cut off."""

from __future__ import annotations

import asyncio
import contextlib
import gc
from functools import partial

import pytest

from events.bus import BusError
from events.bus.jetstream import JetStreamLog
from events.bus.log import Limits
from events.bus.nats import PERSISTENCE, NatsBus

from .cluster import running

pytestmark = pytest.mark.timeout(120)


@pytest.fixture
async def cluster(tmp_path, monkeypatch):
    monkeypatch.setitem(PERSISTENCE, "ping_interval", 0.3)
    async with running(tmp_path) as cluster:
        yield cluster


def server_of(bus, cluster):
    return cluster.number_of(bus._client.connected_url.geturl())


def grew(items, before):
    return len(items) > before


async def heard(publisher, subject, seen, eventually):
    """Publish until something arrives: then both ends are there again."""
    before = len(seen)

    async def publish():
        while len(seen) == before:
            await publisher.publish(subject, b"?")
            await asyncio.sleep(0.02)

    await asyncio.wait_for(publish(), 30)


@pytest.fixture
def forgotten_sockets():
    """nats-py forgets the sockets of attempts that fail: they are found here, and not by whatever test comes next."""
    yield
    gc.collect()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.usefixtures("forgotten_sockets")
@pytest.mark.parametrize("violence", ["kill", "stop"])
async def test_clients_move_to_another_server(cluster, eventually, violence):
    seen, connects = [], []

    async def hear(message):
        seen.append(message.data)

    async def on_connect():
        connects.append(server_of(subscriber, cluster))

    subscriber = NatsBus(cluster.urls, "subscriber", on_connect=on_connect, connect_timeout_seconds=5)
    async with subscriber, NatsBus(",".join(cluster.urls[::-1]), "publisher", connect_timeout_seconds=5) as publisher:
        await subscriber.subscribe("x", hear)
        await heard(publisher, "x", seen, eventually)
        for _ in range(2):  # of three, one is always left
            victim, before = server_of(subscriber, cluster), len(connects)
            if violence == "kill":
                await cluster.kill(victim)
            else:
                cluster.stop(victim)
            await eventually(partial(grew, connects, before), 30)
            assert server_of(subscriber, cluster) != victim
            await heard(publisher, "x", seen, eventually)
            if violence == "kill":
                await cluster.start(victim)
            else:
                cluster.go_on(victim)
        assert subscriber.statistics().connected
        assert len(connects) == 3


async def opened(log):
    """Once the cluster has elected its leaders."""
    while True:
        try:
            await log.open()
        except BusError:
            await asyncio.sleep(0.1)
        else:
            return


async def appended(log, subject, data):
    """Tried until somebody says that it is kept."""
    while True:
        try:
            return await log.append(subject, data)
        except BusError:
            await asyncio.sleep(0.1)


async def test_what_was_acknowledged_survives_the_server_that_leads(cluster, monkeypatch):
    monkeypatch.setattr("events.bus.jetstream.TIMEOUT_SECONDS", 1.0)
    async with NatsBus(cluster.urls, connect_timeout_seconds=5) as bus:
        log = JetStreamLog(bus, "log", "kv.>", Limits(replicas=3))
        await asyncio.wait_for(opened(log), 40)
        sent = [b"before", b"without"]
        acknowledged = [await asyncio.wait_for(appended(log, "kv.0", sent[0]), 40)]
        info = await log._ask("$JS.API.STREAM.INFO.log", {})
        await cluster.kill(int(info["cluster"]["leader"].removeprefix("n")))
        acknowledged.append(await asyncio.wait_for(appended(log, "kv.0", sent[1]), 40))

        async def all_there():
            kept = {}
            while not set(acknowledged) <= kept.keys():
                with contextlib.suppress(BusError):
                    kept = {message.number: message.data async for message in log.read("kv.0")}
            return [kept[number] for number in acknowledged]

        assert await asyncio.wait_for(all_there(), 40) == sent
