"""A mirror that is wrong, doubted and built anew: over real ZMQ sockets, then over a real broker up to a router's index."""

from __future__ import annotations

import asyncio
import contextlib
from contextlib import asynccontextmanager

import numpy as np
import pytest

from events import messages, subjects
from events.blocks import sequence_hashes
from events.bus import BusError
from events.bus.broker import EmbeddedBroker
from events.bus.log import Limits
from events.bus.nats import NatsBus
from events.history import jetstream_history
from events.membership.memory import MemoryRegistry
from events.messages import CacheCleared, SnapshotRequest, unpack_hashes
from events.snapshot import SnapshotError
from router.core import RoutingRequest, Scheduler, Target
from router.core.policy import create
from router.metrics import Metrics
from router.service.accounting import COMPARED_REQUESTS, FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS, Accounting
from router.service.feed import EventFeed
from router.service.snapshots import AdapterSnapshots, HistorySnapshots
from workers.sglang.adapter import Adapter
from workers.sglang.card import Chosen
from workers.sglang.checkpoints import CheckpointPace
from workers.sglang.doubts import REST_SECONDS, Doubts
from workers.sglang.wire import EngineRemoved, EngineStored

from .fake_sglang import FakeServer, removed, stored, until
from .test_sglang_adapter import BLOCK, PACE, Outside, hashes

QUIET_SECONDS = 0.02
TARGET = Target("w:0", 0)
BATCHES = 4
GHOST_TOKENS = range(500, 500 + BLOCK + 1)
GHOSTS = set(hashes(GHOST_TOKENS))
"""The block that the engine does not hold, and the mirror comes to."""


async def doubt(bus):
    """What a router sends that does not believe the mirror."""
    request = messages.encode(SnapshotRequest(*TARGET, distrusted=True))
    return [part async for part in bus.request(subjects.snapshot("default", *TARGET), request)]


def relay_of(adapter):
    ((relay, _),) = adapter._ranks
    return relay


def counts(adapter):
    statistics = relay_of(adapter).statistics()
    return statistics.doubts, statistics.rebuilds, statistics.corrections, statistics.resets


def falsify(adapter):
    """Behind the adapter's back: a page that the engine does not hold, and one gone that it holds."""
    mirror = relay_of(adapter)._reader.mirror
    mirror.apply(EngineStored([99], None, np.array(GHOST_TOKENS[:BLOCK], np.uint32), BLOCK))
    mirror.apply(EngineRemoved([8]))


async def live(rank):
    """What an engine does in a while; afterwards it holds the first two blocks on the device, one in the host's memory."""
    await rank.publish(stored([1, 2, 3, 4], None, range(64)))
    await rank.publish(stored([5, 6, 7, 8], 4, range(64, 128)), stored([1, 2, 3, 4], None, range(64), medium="CPU"))
    await rank.publish(stored([9, 10, 11, 12], 8, range(128, 192)))
    await rank.publish(removed([12]))
    return {"DEVICE": hashes(range(128)), "HOST": hashes(range(64))}


@asynccontextmanager
async def lived(**options):
    """An adapter with a mirror that knows all that its engine did."""
    async with FakeServer(**options) as server, Outside(server, quiet_seconds=QUIET_SECONDS) as outside:
        await outside.registered()
        await server.ranks[0].subscribed()
        truth, relay = await live(server.ranks[0]), relay_of(outside.adapter)
        await until(lambda: relay.statistics().decoder.batches == BATCHES and outside.events[-1].seq == relay.seq)
        assert (await outside.held())[0] == truth
        yield server, outside, truth


async def test_a_wrong_mirror_is_built_anew_from_all_that_the_engine_did(caplog):
    async with lived() as (server, outside, truth):
        falsify(outside.adapter)
        before = (await outside.held())[0]
        assert set(before["DEVICE"]) >= GHOSTS
        assert before != truth
        heard = len(outside.events)
        await doubt(outside.bus)
        (message,) = (await outside.heard(heard + 1))[heard:]
        held, watermark = await outside.held()
        assert held == truth
        assert watermark == (outside.card.epoch, message.seq)
        cleared, *stores = message.events
        assert isinstance(cleared, CacheCleared)
        assert {store.tier.name: unpack_hashes(store.hashes).tolist() for store in stores} == truth
        assert counts(outside.adapter) == (1, 1, 1, 0)
        await server.ranks[0].publish(removed([8]))  # and it goes on
        await outside.heard(heard + 2)
        assert (await outside.held())[0]["DEVICE"] == hashes(range(64))
        await until(lambda: outside.marks[-1].rebuilds == 1)
        assert outside.marks[-1].corrections == 1
    said = [record.getMessage() for record in caplog.records if "built anew" in record.getMessage()]
    assert len(said) == 1
    assert (
        "from all of the engine's events: 1 blocks were believed and are not held, 1 held and not believed" in said[0]
    )


async def test_a_mirror_that_is_right_stays_and_nobody_hears_of_it():
    async with lived() as (server, outside, truth):
        heard = len(outside.events)
        await doubt(outside.bus)
        await until(lambda: counts(outside.adapter) == (1, 1, 0, 0))
        assert (await outside.held())[0] == truth
        await server.ranks[0].publish(removed([8]))
        (message,) = (await outside.heard(heard + 1))[heard:]
        assert unpack_hashes(message.events[0].hashes).tolist() == hashes(range(128))[1:]


@pytest.mark.parametrize(
    ("forgotten", "left"),
    [
        (1, {"DEVICE": hashes(range(128))[1:], "HOST": hashes(range(64))}),
        (2, {}),  # pages after one that the replay does not name
        (3, {}),
    ],
)
async def test_a_replay_that_reaches_back_no_more_leaves_what_it_brings_and_it_begins_anew(forgotten, left):
    async with lived() as (server, outside, _):
        falsify(outside.adapter)
        heard, rank = len(outside.events), server.ranks[0]
        rank.history = rank.history[forgotten:]
        await doubt(outside.bus)
        await until(lambda: counts(outside.adapter)[:3] == (1, 1, 0))
        assert (await outside.held())[0] == left
        assert isinstance((await outside.heard(heard + 1))[heard].events[0], CacheCleared)
        assert counts(outside.adapter)[3] == 1
        heard = len(outside.events)
        await rank.publish(stored([30, 31, 32, 33], None, range(2000, 2064)))
        await outside.heard(heard + 1)
        assert hashes(range(2000, 2064))[0] in (await outside.held())[0]["DEVICE"]


@pytest.mark.parametrize("replay", [False, True], ids=["none", "silent"])
async def test_without_a_replay_the_mirror_begins_anew(replay):
    async with lived(replay=replay) as (server, outside, _):
        falsify(outside.adapter)
        server.ranks[0].answers = False
        await doubt(outside.bus)
        await until(lambda: counts(outside.adapter) == (1, 1, 0, 1))
        assert (await outside.held())[0] == {}
        await until(lambda: isinstance(outside.events[-1].events[0], CacheCleared))


async def test_many_routers_that_doubt_at_once_have_it_built_once():
    async with lived() as (_, outside, truth):
        falsify(outside.adapter)
        await asyncio.gather(*(doubt(outside.bus) for _ in range(5)))
        await until(lambda: counts(outside.adapter)[1])
        await doubt(outside.bus)
        assert (await outside.held())[0] == truth
        assert counts(outside.adapter) == (6, 1, 1, 0)
        assert not relay_of(outside.adapter).doubted


async def test_what_the_engine_does_meanwhile_is_not_lost(monkeypatch):
    """The doubted mirror serves until the new one stands; events wait, and follow."""
    async with lived() as (server, outside, truth):
        falsify(outside.adapter)
        ((relay, subscription),) = outside.adapter._ranks
        whole, asked, allowed = subscription.whole, asyncio.Event(), asyncio.Event()

        async def slow():
            asked.set()
            await allowed.wait()
            return await whole()

        monkeypatch.setattr(subscription, "whole", slow)
        await doubt(outside.bus)
        await asked.wait()
        await server.ranks[0].publish(stored([20, 21, 22, 23], None, range(1000, 1064)))
        assert set((await outside.held())[0]["DEVICE"]) >= GHOSTS
        allowed.set()
        fresh = hashes(range(1000, 1064))
        await until(lambda: relay.holds(fresh))
        assert set((await outside.held())[0]["DEVICE"]) == {*truth["DEVICE"], *fresh}
        assert counts(outside.adapter) == (1, 1, 1, 0)


async def test_another_engine_is_found_by_a_doubt_too():
    async with lived() as (server, outside, _):
        first = outside.card
        server.ranks[0].history = [(seq, b"\x93\x00\x90\x00") for seq in range(BATCHES)]
        await doubt(outside.bus)
        await outside.registered(after=first.epoch)


def test_doubts_soon_after_a_mirror_was_built_are_of_the_one_before():
    now = 100.0
    doubts = Doubts(clock=lambda: now)
    assert not doubts.pending
    doubts.add()
    doubts.add()
    assert (doubts.pending, doubts.count, repr(doubts)) == (True, 2, "<Doubts: 2, pending>")
    doubts.settle()
    now += REST_SECONDS - 1
    doubts.add()
    assert (doubts.pending, doubts.count) == (False, 3)
    now += 1
    doubts.add()
    assert doubts.pending


class Router:
    """A router's write path on a connection of its own, and the look at whether its hits come true."""

    def __init__(self, url, *, durable=False):
        self.bus, self.now, self.asked = NatsBus(url, "router"), 0.0, 0
        self.metrics, self.scheduler = Metrics(), Scheduler(create("warm"), BLOCK)
        sources = [AdapterSnapshots(self.bus, "default")]
        if durable:
            sources.insert(0, HistorySnapshots(jetstream_history(self.bus, "default", Limits())))
        self.feed = EventFeed(
            self.bus,
            self.scheduler,
            namespace="default",
            metrics=self.metrics,
            clock=lambda: self.now,
            sources=sources,
        )
        self.accounting = Accounting(self.scheduler, self.feed, self.metrics, lambda: self.now)

    async def __aenter__(self):
        await self.bus.open()
        await self.feed.open()
        self.scheduler.add_target(TARGET, capacity_tokens=2**20, model="m", exact=False)
        self.feed.follow(TARGET)
        return self

    async def __aexit__(self, *error):
        await self.feed.close()
        await self.bus.close()

    def ask(self, tokens, truth):
        """One request from placement to end; how many cached tokens were promised. The engine has what it has."""
        self.asked += 1
        name, blocks = str(self.asked), sequence_hashes(np.array(tokens, np.uint32), BLOCK)
        placement = self.scheduler.place(RoutingRequest(name, blocks, len(tokens)), self.now)
        hits = [block in truth["DEVICE"] for block in blocks.tolist()]
        self.scheduler.first_token(name, BLOCK * sum(hits), self.now)
        self.scheduler.free(name, self.now)
        return placement.cached_tokens

    def ask_often(self, tokens, truth):
        for _ in range(COMPARED_REQUESTS):
            self.ask(tokens, truth)
        self.accounting.look()

    def believes(self, truth):
        """In step, and holding just that."""
        statistics, held = self.feed.statistics(TARGET), self.scheduler.held(TARGET)
        believed = {tier.name: set(blocks.tolist()) for tier, blocks in held.items() if len(blocks)}
        return statistics.live and believed == {tier: set(blocks) for tier, blocks in truth.items()}

    def count(self, name, **labels):
        return self.metrics.registry.get_sample_value(name, labels)


@asynccontextmanager
async def adapter_at(url, server, *, durable=False):
    registry = MemoryRegistry()
    async with NatsBus(url, "adapter") as bus:
        history = jetstream_history(bus, "default", Limits()) if durable else None
        pace = PACE._replace(quiet_seconds=QUIET_SECONDS)
        chosen = Chosen(server.url, "w:0", BLOCK)
        adapter = Adapter(chosen, bus, registry, pace=pace, parity_probe=False, history=history)
        running = asyncio.create_task(adapter.run())
        await until(lambda: adapter.statistics().card)
        yield adapter
        running.cancel()
        await asyncio.wait([running])
    await registry.close()


async def test_promises_that_a_wrong_mirror_makes_come_true_again_for_every_router(eventually):
    async with (
        EmbeddedBroker() as broker,
        FakeServer() as server,
        adapter_at(broker.url, server) as adapter,
        Router(broker.url) as first,
        Router(broker.url) as second,
    ):
        await server.ranks[0].subscribed()
        truth = await live(server.ranks[0])
        await eventually(lambda: first.believes(truth) and second.believes(truth))
        falsify(adapter)
        lie = {"DEVICE": [truth["DEVICE"][0], *GHOSTS], "HOST": truth["HOST"]}
        second.feed.distrust(TARGET)
        first.feed.distrust(TARGET)
        await eventually(lambda: first.believes(lie) and second.believes(lie))
        first.ask_often(GHOST_TOKENS, truth)
        await eventually(lambda: first.believes(lie))  # the snapshot is of the same mirror
        first.now += FIRST_PAUSE_SECONDS
        assert first.ask(GHOST_TOKENS, truth) == BLOCK
        first.ask_often(GHOST_TOKENS, truth)
        await eventually(lambda: first.believes(truth) and second.believes(truth))
        assert [first.count("warmpath_hit_resyncs_total", depth=depth) for depth in ("index", "mirror")] == [1, 1]
        await eventually(lambda: second.count("warmpath_mirror_corrections_total") == 1)
        first.now += LONGEST_PAUSE_SECONDS
        assert first.ask(GHOST_TOKENS, truth) == 0
        first.ask_often(range(129), truth)
        assert repr(first.accounting) == "<Accounting, 0 alarms, 0 doubts>"


async def test_a_checkpoint_of_a_wrong_mirror_is_not_believed_and_replaced(tmp_path, eventually, monkeypatch):
    pace = CheckpointPace(look_seconds=0.01, changed_seconds=0.0)
    monkeypatch.setattr("workers.sglang.checkpoints.CheckpointPace", lambda: pace)
    async with (
        EmbeddedBroker(store_dir=tmp_path) as broker,
        FakeServer() as server,
        adapter_at(broker.url, server, durable=True) as adapter,
        Router(broker.url, durable=True) as router,
    ):
        history = jetstream_history(router.bus, "default", Limits())

        async def keeps(blocks):
            kept = None
            while kept != blocks:
                with contextlib.suppress(SnapshotError, BusError):  # none is written yet
                    stored = (await history.recall(*TARGET)).stored
                    kept = {part.tier.name: unpack_hashes(part.hashes).tolist() for part in stored}
                await asyncio.sleep(0.01)

        await server.ranks[0].subscribed()
        truth = await live(server.ranks[0])
        await eventually(lambda: router.believes(truth))
        falsify(adapter)
        await server.ranks[0].publish(removed([1, 2, 3, 4], medium="CPU"))
        del truth["HOST"]
        lie = {"DEVICE": [truth["DEVICE"][0], *GHOSTS]}
        await asyncio.wait_for(keeps(lie), 10)
        router.feed.distrust(TARGET)
        await eventually(lambda: router.believes(lie))
        assert router.count("warmpath_resyncs_total", source="history")
        before = router.count("warmpath_resyncs_total", source="adapter") or 0
        router.feed.distrust(TARGET, mirror=True)
        await eventually(lambda: router.believes(truth))
        assert router.count("warmpath_resyncs_total", source="adapter") == before + 1
        await asyncio.wait_for(keeps(truth), 10)
