"""One rank's mirror on a bus: batches, sizes, watermarks, and what happens to unreadable or lost events."""

from __future__ import annotations

import asyncio

import msgspec
import numpy as np
import pytest

from events import messages, subjects
from events.blocks import sequence_hashes
from events.bus import NoResponder
from events.bus.memory import MemoryBroker, MemoryBus
from events.messages import BlocksRemoved, BlocksStored, CacheCleared, SnapshotRequest, unpack_hashes
from workers.sglang import relay as relay_module
from workers.sglang.card import Chosen, describe
from workers.sglang.relay import RankRelay
from workers.sglang.subscription import Frame, Lost

from .fake_sglang import CLEARED, removed, stored, until

CARD = describe({"max_total_num_tokens": 1}, Chosen("http://h:1", "h:1", 16), 5).card


class Wire:
    """A bus, a relay on it, and a listener on the other side."""

    def __init__(self):
        broker = MemoryBroker()
        self.bus, self.listener = MemoryBus(broker), MemoryBus(broker)
        self.relay = RankRelay(self.bus, "default", CARD, 0)
        self.heard = []

    async def __aenter__(self):
        await self.bus.open()
        await self.listener.open()
        await self.listener.subscribe(subjects.every("default", "kv"), self._hear)
        await self.relay.open()
        return self

    async def __aexit__(self, *error):
        await self.relay.close()
        await self.listener.close()
        await self.bus.close()

    async def _hear(self, received):
        assert received.subject == "warmpath.default.kv.h_1.0"
        self.heard.append(messages.decode(received.data))

    async def hear(self, count):
        await until(lambda: len(self.heard) >= count)
        assert len(self.heard) == count
        return self.heard

    async def snapshot(self, worker_id="h:1", rank=0):
        request = messages.encode(SnapshotRequest(worker_id, rank))
        return [
            messages.decode(part) async for part in self.listener.request("warmpath.default.snapshot.h_1.0", request)
        ]


def frame(seq, *events, rank=0):
    return Frame(seq, msgspec.msgpack.encode([1.5, list(events), rank]))


def hashes(count):
    return sequence_hashes(np.arange(count * 16, dtype=np.uint32), 16).tolist()


def held(chunks):
    return [block for chunk in chunks for part in chunk.stored for block in unpack_hashes(part.hashes).tolist()]


async def test_what_waits_becomes_one_message_with_neighbours_joined():
    async with Wire() as wire:
        await wire.relay.relay(
            [
                frame(0, CLEARED),
                frame(1, stored([1], None, range(16))),
                frame(2, stored([2], 1, range(16, 32)), removed([2])),
                frame(3, removed([1])),
            ]
        )
        await wire.relay.relay([frame(4)])
        await wire.relay.relay([frame(5, stored([1], None, range(16)))])
        first, second = await wire.hear(2)
        assert (first.worker_id, first.rank, first.epoch, first.seq, second.seq) == ("h:1", 0, 5, 0, 1)
        assert [type(event) for event in first.events] == [CacheCleared, BlocksStored, BlocksRemoved]
        assert unpack_hashes(first.events[1].hashes).tolist() == hashes(2)
        assert unpack_hashes(first.events[2].hashes).tolist() == hashes(2)[::-1]
        assert first.published_at > 0


async def test_no_message_holds_more_than_its_share(monkeypatch):
    monkeypatch.setattr(relay_module, "MESSAGE_HASHES", 12)
    async with Wire() as wire:
        await wire.relay.relay([frame(0, stored(list(range(35)), None, range(35 * 16)))])
        heard = await wire.hear(4)
        assert [message.seq for message in heard] == [0, 1, 2, 3]
        sizes = [len(event.hashes) // 8 for message in heard for event in message.events]
        assert sizes == [10, 10, 10, 5]
        chunks = await wire.snapshot()
        assert [(chunk.seq, chunk.index, chunk.count) for chunk in chunks] == [(3, n, 4) for n in range(4)]
        assert held(chunks) == hashes(35)


async def test_history_is_held_but_not_published():
    async with Wire() as wire:
        await wire.relay.restore([frame(0, stored([1, 2], None, range(32)))])
        (chunk,) = await wire.snapshot()
        assert (chunk.seq, chunk.epoch, held([chunk])) == (-1, 5, hashes(2))
        await wire.relay.relay([frame(1, removed([2]))])
        (message,) = await wire.hear(1)
        assert message.seq == 0
        (chunk,) = await wire.snapshot()
        assert (chunk.seq, held([chunk])) == (0, hashes(1))


async def test_an_empty_snapshot_is_one_empty_chunk():
    async with Wire() as wire:
        (chunk,) = await wire.snapshot()
        assert (chunk.seq, chunk.index, chunk.count, chunk.stored) == (-1, 0, 1, [])
        assert wire.relay.statistics().snapshots == 1


async def test_a_snapshot_covers_what_is_applied_though_not_yet_published(monkeypatch):
    """Its watermark says so: a router drops the message when it comes."""
    async with Wire() as wire:
        publish, allowed = wire.bus.publish, asyncio.Event()

        async def slow(subject, data):
            await allowed.wait()
            await publish(subject, data)

        monkeypatch.setattr(wire.bus, "publish", slow)
        relaying = asyncio.ensure_future(wire.relay.relay([frame(0, stored([1], None, range(16)))]))
        await until(lambda: wire.relay.statistics().seq == 0)
        (chunk,) = await wire.snapshot()
        assert wire.heard == []
        assert (chunk.seq, held([chunk])) == (0, hashes(1))
        allowed.set()
        await relaying
        assert (await wire.hear(1))[0].seq == 0


@pytest.mark.parametrize("bad", [Lost(1, 4), Frame(1, b"\xc1")], ids=["lost", "unreadable"])
async def test_lost_or_unreadable_events_empty_the_mirror(bad, caplog):
    async with Wire() as wire:
        await wire.relay.relay([frame(0, stored([1], None, range(16))), bad, frame(5, stored([7], None, range(16)))])
        (message,) = await wire.hear(1)
        assert [type(event) for event in message.events] == [BlocksStored, CacheCleared, BlocksStored]
        assert held(await wire.snapshot()) == hashes(1)
        assert wire.relay.statistics().resets == 1
    assert any("emptied" in record.getMessage() for record in caplog.records)


async def test_a_batch_of_another_rank_is_counted_and_said():
    async with Wire() as wire:
        await wire.relay.relay([frame(0, stored([1], None, range(16)), rank=3)])
        assert wire.relay.statistics().other_ranks == 1
        await wire.hear(1)


@pytest.mark.parametrize(("worker_id", "rank"), [("h_1", 0), ("h:1", 1)])
async def test_a_snapshot_of_someone_else_is_refused(worker_id, rank):
    """Two worker ids may share a subject; better no answer than another's."""
    async with Wire() as wire:
        with pytest.raises(NoResponder):
            await wire.snapshot(worker_id, rank)


async def test_what_is_no_snapshot_request_is_refused():
    async with Wire() as wire:
        for data in (b"?", messages.encode(messages.KvEvents("h:1", 0, 5, 0, []))):
            with pytest.raises(NoResponder):
                [part async for part in wire.listener.request("warmpath.default.snapshot.h_1.0", data)]


async def test_after_close_nobody_answers():
    async with Wire() as wire:
        await wire.relay.close()
        await wire.relay.close()
        with pytest.raises(NoResponder):
            await wire.snapshot()
        assert repr(wire.relay) == "<RankRelay h:1/0 epoch=5 seq=-1>"
