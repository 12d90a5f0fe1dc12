"""The adapter end to end: a fake SGLang with real sockets on one side, a bus and a registry on the other."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager

import msgspec
import numpy as np
import pytest

from events import messages
from events.blocks import sequence_hashes
from events.bus.memory import MemoryBroker, MemoryBus
from events.membership import RegistryError
from events.membership.memory import MemoryDirectory, MemoryRegistry
from events.messages import CacheCleared, KvEvents, KvMark, SnapshotRequest, Tier, WorkerLoad, unpack_hashes
from workers.sglang.adapter import Adapter, Pace
from workers.sglang.card import CardError, Chosen

from .fake_sglang import FakeServer, removed, stored, until

PACE = Pace(
    wait_seconds=0.02,
    watch_seconds=0.02,
    missed_watches=2,
    load_poll_seconds=0.02,
    replay_timeout_seconds=0.2,
    mark_seconds=0.02,
)
BLOCK = 64


def hashes(tokens):
    return sequence_hashes(np.array(tokens, np.uint32), BLOCK).tolist()


class Outside:
    """What a router sees: cards, events, loads, snapshots; and the adapter that causes them."""

    def __init__(self, server, registry=None, *, parity_probe=False, **pace):
        broker, self.directory = MemoryBroker(), MemoryDirectory()
        self.bus, self._bus = MemoryBus(broker), MemoryBus(broker)
        self.registry = registry or MemoryRegistry(self.directory)
        self.chosen = Chosen(server.url, "w:0", BLOCK)
        self.announced = []
        self.adapter = Adapter(
            self.chosen,
            self._bus,
            self.registry,
            pace=PACE._replace(**pace),
            parity_probe=parity_probe,
            announce=self.announced.append,
        )
        self.events, self.loads, self.marks = [], [], []

    async def __aenter__(self):
        await self.bus.open()
        await self._bus.open()
        await self.bus.subscribe("warmpath.default.>", self._hear)
        self.running = asyncio.create_task(self.adapter.run())
        return self

    async def __aexit__(self, *error):
        self.running.cancel()
        await asyncio.wait([self.running])
        await self._bus.close()
        await self.bus.close()

    async def _hear(self, received):
        if ".snapshot." in received.subject:
            return
        message = messages.decode(received.data)
        {KvEvents: self.events, KvMark: self.marks, WorkerLoad: self.loads}[type(message)].append(message)

    @property
    def card(self):
        return self.directory.cards.get("w:0")

    async def registered(self, after=0):
        """The card, once it is of a later epoch than `after`."""

        def there():
            if self.running.done():
                self.running.result()
            return self.card is not None and self.card.epoch > after

        await until(there)
        return self.card

    async def unregistered(self):
        await until(lambda: self.card is None)

    async def heard(self, count):
        await until(lambda: len(self.events) >= count)
        return self.events

    async def held(self, rank=0):
        """A snapshot's hashes by tier, and its watermark."""
        request = messages.encode(SnapshotRequest("w:0", rank))
        chunks = [messages.decode(p) async for p in self.bus.request(f"warmpath.default.snapshot.w_0.{rank}", request)]
        found = {tier: [] for tier in Tier}
        for chunk in chunks:
            for part in chunk.stored:
                found[part.tier] += unpack_hashes(part.hashes).tolist()
        return {tier.name: blocks for tier, blocks in found.items() if blocks}, (chunks[0].epoch, chunks[0].seq)


@asynccontextmanager
async def attached(**options):
    """A running server, and an adapter that has registered it."""
    async with FakeServer(**options) as server, Outside(server) as outside:
        await outside.registered()
        for rank in server.ranks if outside.card.kv_events else []:
            await rank.subscribed()
        yield server, outside


async def test_a_late_adapter_knows_all_that_happened_before():
    async with FakeServer() as server:
        await server.ranks[0].publish(stored([1, 2, 3, 4], None, range(64)))
        await server.ranks[0].publish(stored([1, 2, 3, 4], None, range(64), medium="CPU_PINNED"))
        await server.ranks[0].publish(stored([5, 6, 7, 8], 4, range(64, 128)))
        async with Outside(server) as outside:
            card = await outside.registered()
            await server.ranks[0].subscribed()
            held, watermark = await outside.held()
            assert held == {"DEVICE": hashes(range(128)), "HOST": hashes(range(64))}
            assert watermark == (card.epoch, -1)
            await server.ranks[0].publish(removed([8]))
            (message,) = await outside.heard(1)
            assert (message.epoch, message.seq) == (card.epoch, 0)
            assert unpack_hashes(message.events[0].hashes).tolist() == hashes(range(128))[1:]
            assert (await outside.held())[1] == (card.epoch, 0)


async def test_marks_say_where_the_events_stand():
    async with attached() as (server, outside):
        await until(lambda: outside.marks)
        assert (outside.marks[0].epoch, outside.marks[0].seq) == (outside.card.epoch, -1)
        await server.ranks[0].publish(stored([7], 6, range(16)))  # its parent is not known
        await server.ranks[0].publish(stored([1, 2, 3, 4], None, range(64)), live=False)
        await server.ranks[0].publish(removed([4]))
        await until(lambda: outside.marks[-1].seq == 0)
        mark = outside.marks[-1]
        assert (mark.orphans, mark.gaps, mark.lost, mark.resets) == (1, 1, 0, 0)


async def test_every_rank_has_its_own_cache():
    async with attached(ranks=3, topic="kv@w") as (server, outside):
        assert outside.card.ranks == 3
        await server.ranks[2].publish(stored([1, 2, 3, 4], None, range(64)))
        (message,) = await outside.heard(1)
        assert message.rank == 2
        assert [(await outside.held(rank))[0] for rank in range(3)] == [{}, {}, {"DEVICE": hashes(range(64))}]


async def test_a_gap_is_filled_before_anything_later_is_said():
    async with attached() as (server, outside):
        await server.ranks[0].publish(stored([1, 2, 3, 4], None, range(64)), live=False)
        await server.ranks[0].publish(removed([4]))
        await outside.heard(1)
        assert (await outside.held())[0] == {}
        (rank,) = outside.adapter.statistics().ranks
        assert (rank.subscription.gaps, rank.subscription.lost) == (1, 0)
        assert rank.relay.mirror.unknown_removals == 0


async def test_what_cannot_be_filled_empties_the_mirror_in_the_same_epoch():
    async with attached(replay=False) as (server, outside):
        rank = server.ranks[0]
        await rank.publish(stored([1, 2, 3, 4], None, range(64)))
        await outside.heard(1)
        await rank.publish(removed([4]), live=False)
        await rank.publish(stored([11, 12, 13, 14], None, range(5, 69)))
        _, message = await outside.heard(2)
        assert isinstance(message.events[0], CacheCleared)
        assert (message.epoch, message.seq) == (outside.card.epoch, 1)
        assert (await outside.held())[0] == {"DEVICE": hashes(range(5, 69))}
        assert outside.adapter.statistics().ranks[0].relay.resets == 1


async def test_an_engine_that_begins_again_is_a_new_worker_of_the_same_name():
    async with attached() as (server, outside):
        first = outside.card
        await server.ranks[0].publish(stored([1, 2, 3, 4], None, range(64)))
        await outside.heard(1)
        rank = server.ranks[0]
        rank.seq, rank.history = 0, []
        await rank.publish(stored([11, 12, 13, 14], None, range(5, 69)))
        second = await outside.registered(after=first.epoch)
        held, watermark = await outside.held()
        assert held == {"DEVICE": hashes(range(5, 69))}
        assert watermark == (second.epoch, -1)
        assert outside.adapter.statistics().lives == 2


async def test_an_engine_that_dies_is_withdrawn_and_one_that_comes_back_is_registered_anew(caplog):
    async with FakeServer() as server, Outside(server) as outside:
        first = await outside.registered()
        await server.ranks[0].subscribed()
        await server.ranks[0].publish(stored([1, 2, 3, 4], None, range(64)))
        await outside.heard(1)
        await server.die()
        await outside.unregistered()
        await until(lambda: outside.adapter.statistics().ranks == [])
        assert "waiting" in repr(outside.adapter)
        await server.start()
        second = await outside.registered(after=first.epoch)
        assert msgspec.structs.replace(second, epoch=first.epoch) == first
        assert (await outside.held())[0] == {}
        assert [card.epoch for card in outside.announced] == [first.epoch, second.epoch]
    assert any("worker w:0 left: 2 times in a row" in record.getMessage() for record in caplog.records)


async def test_an_engine_that_is_not_up_yet_is_waited_for(caplog):
    caplog.set_level("INFO")
    server = FakeServer()
    async with Outside(server) as outside:
        await until(lambda: any("waiting for the engine" in record.getMessage() for record in caplog.records))
        assert outside.card is None
        async with server:
            await outside.registered()
            assert "/health" not in server.asked


async def test_without_events_the_card_says_so_and_the_log_names_the_flag(caplog):
    async with attached(events=False) as (_, outside):
        assert not outside.card.kv_events
        await until(lambda: outside.loads)
    said = [record for record in caplog.records if "--kv-events-config" in record.getMessage()]
    assert len(said) == 1


async def test_load_is_polled_where_it_is_not_published():
    async with attached(ranks=2) as (_, outside):
        await until(lambda: {load.rank for load in outside.loads} == {0, 1})
        load = next(load for load in outside.loads if load.rank == 1)
        assert isinstance(load, WorkerLoad)
        assert (load.worker_id, load.epoch, load.running_requests) == ("w:0", outside.card.epoch, 2)
        assert load.waiting_uncached_tokens is None
        assert load.reported_at > 0


async def test_load_that_is_published_is_not_polled():
    async with attached(load_stream=True) as (server, outside):
        while not outside.loads:
            await server.load.send_multipart([b"load", bytes(8), msgspec.msgpack.encode(["Nothing"])])
            await server.load.send_multipart(
                [b"load", bytes(8), msgspec.msgpack.encode(["LoadStat", 3, 1, 48, 2048, 0])]
            )
            await asyncio.sleep(0.01)
        assert (outside.loads[0].running_requests, outside.loads[0].used_tokens) == (3, 48)
        assert "/v1/loads" not in server.asked


async def test_an_unknown_load_is_said_once_and_counted(caplog):
    async with FakeServer() as server:
        server.loads = None
        async with Outside(server) as outside:
            await until(lambda: outside.adapter.statistics().failed_loads > 2)
            assert outside.loads == []
    assert len([record for record in caplog.records if "load is not known" in record.getMessage()]) == 1


class WatchfulRegistry(MemoryRegistry):
    """Does something before it lets a card go."""

    def __init__(self, directory):
        super().__init__(directory)
        self.before_unregister = None

    async def unregister(self, worker_id):
        if self.before_unregister:
            await self.before_unregister()
        await super().unregister(worker_id)


async def test_stopping_withdraws_first():
    """While the card is being withdrawn, events still flow: no router may send to what nobody follows."""
    async with FakeServer() as server:
        directory = MemoryDirectory()
        registry = WatchfulRegistry(directory)
        async with Outside(server, registry) as outside:
            outside.directory = directory
            await outside.registered()
            await server.ranks[0].subscribed()

            async def one_more():
                await server.ranks[0].publish(stored([1, 2, 3, 4], None, range(64)))
                await outside.heard(1)
                assert (await outside.held())[0] == {"DEVICE": hashes(range(64))}

            registry.before_unregister = one_more
            outside.running.cancel()
            with pytest.raises(asyncio.CancelledError):
                await outside.running
            assert outside.card is None
            assert len(outside.events) == 1


async def test_a_registry_that_takes_nothing_ends_the_adapter():
    async with FakeServer() as server:
        registry = MemoryRegistry()
        await registry.close()
        async with Outside(server, registry) as outside:
            with pytest.raises(RegistryError):
                await asyncio.wait_for(outside.running, 5)


async def test_a_server_that_says_nonsense_ends_the_adapter():
    async with FakeServer(max_total_num_tokens="many") as server, Outside(server) as outside:
        with pytest.raises(CardError, match="max_total_num_tokens"):
            await asyncio.wait_for(outside.running, 5)


async def test_it_registers_only_once_every_rank_answers():
    async with FakeServer(ranks=2) as server:
        server.silent_ranks = {1}
        async with Outside(server) as outside:
            await until(lambda: len(server.probed) >= 4)
            assert outside.card is None
            server.silent_ranks = set()
            await outside.registered()
            asked = len(server.probed)
            assert {body["routed_dp_rank"] for body in server.probed} == {0, 1}
            await until(lambda: server.asked.count("/ready") > 5)
            assert len(server.probed) == asked  # never again
            assert not {"/health", "/health_generate"} & set(server.asked)


async def test_a_server_that_takes_no_requests_any_more_is_withdrawn():
    async with attached() as (server, outside):
        server.ready_status = 503
        await outside.unregistered()
        server.ready_status = 200
        await outside.registered()


async def test_a_withdrawn_worker_stays_away_and_its_events_go_on():
    async with attached() as (server, outside):
        assert await outside.adapter.withdraw()
        assert outside.card is None
        await server.ranks[0].publish(stored([1, 2, 3, 4], None, range(64)))
        await outside.heard(1)
        assert not await outside.adapter.withdraw()
        assert outside.card is None


async def test_a_card_has_what_the_server_says_of_its_model(tmp_path):
    template = tmp_path / "t.jinja"
    template.write_text("{{ messages }}")
    said = {"tool_call_parser": "hermes", "chat_template": str(template), "lora_paths": ["sql=/x"]}
    async with FakeServer(**said) as server, Outside(server) as outside:
        card = await outside.registered()
    assert (card.tool_call_parser, card.chat_template, card.named_template) == ("hermes", "{{ messages }}", None)
    assert card.adapters == ("sql",)


async def test_adapters_that_come_and_go_are_on_the_card():
    async with FakeServer(enable_lora=True) as server, Outside(server, adapters_poll_seconds=0.02) as outside:
        epoch = (await outside.registered()).epoch
        server.adapters = ["sql", "law"]
        await until(lambda: outside.card.adapters == ("law", "sql"))
        server.adapters = ["law"]
        await until(lambda: outside.card.adapters == ("law",))
        assert outside.card.epoch == epoch
        assert len(outside.announced) == 1
