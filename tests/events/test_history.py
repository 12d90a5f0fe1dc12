"""Checkpoints and events at the broker: what comes back is what the rank held, or an error that says why not."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from events import messages, subjects
from events.bus import BusUnavailable
from events.bus.log import LogError
from events.bus.memory import MemoryBroker, MemoryBus
from events.bus.memory_log import MemoryLog
from events.history import History
from events.messages import BlocksRemoved, BlocksStored, KvEvents, SnapshotChunk, pack_hashes, unpack_hashes
from events.snapshot import SnapshotError

RANK = ("w", 0)
KV, CHECKPOINT = subjects.kv("n", *RANK), subjects.checkpoint("n", *RANK)


class Site:
    """A rank that publishes and writes checkpoints, and the history of its namespace."""

    def __init__(self):
        broker = MemoryBroker()
        self.bus = MemoryBus(broker)
        self.events = MemoryLog(self.bus, broker, "events", subjects.every("n", "kv"))
        self.checkpoints = MemoryLog(self.bus, broker, "checkpoints", subjects.every("n", "checkpoint"))
        self.history = History(self.events, self.checkpoints, "n")
        self.epoch, self.seq, self.held = 1, -1, set()
        self.chunk_blocks = 2

    async def __aenter__(self):
        await self.bus.open()
        await self.history.open()
        return self

    async def __aexit__(self, *error):
        await self.bus.close()

    async def change(self, *events, lose=False):
        self.seq += 1
        apply(self.held, events)
        if not lose:
            await self.bus.publish(KV, messages.encode(KvEvents(*RANK, self.epoch, self.seq, list(events))))

    async def store(self, *hashes, **options):
        await self.change(BlocksStored(packed(hashes)), **options)

    async def remove(self, *hashes, **options):
        await self.change(BlocksRemoved(packed(hashes)), **options)

    def chunks(self, position=0):
        held = sorted(self.held)
        parts = [held[i : i + self.chunk_blocks] for i in range(0, len(held), self.chunk_blocks)] or [[]]
        return [
            SnapshotChunk(*RANK, self.epoch, self.seq, n, len(parts), [BlocksStored(packed(part))], position)
            for n, part in enumerate(parts)
        ]

    async def recalled(self):
        """What a reader would hold, and the last event that it knows."""
        snapshot = await self.history.recall(*RANK)
        held = set()
        apply(held, snapshot.stored)
        for message in snapshot.following:
            apply(held, message.events)
        return held, (snapshot.epoch, snapshot.last)


def packed(hashes):
    return pack_hashes(np.array(list(hashes), np.uint64))


def apply(held, events):
    for event in events:
        hashes = set(unpack_hashes(event.hashes).tolist())
        held.difference_update(hashes) if isinstance(event, BlocksRemoved) else held.update(hashes)


async def test_a_checkpoint_and_what_follows():
    async with Site() as site:
        await site.store(1, 2, 3)
        await site.history.write(site.chunks)
        await site.store(4)
        await site.remove(1)
        assert await site.recalled() == ({2, 3, 4}, (1, 2))
        await site.history.write(site.chunks)
        assert len([kept async for kept in site.checkpoints.read(CHECKPOINT)]) == 2  # the first one is gone
        assert await site.recalled() == ({2, 3, 4}, (1, 2))


async def test_an_empty_rank_is_a_checkpoint_too():
    async with Site() as site:
        await site.history.write(site.chunks)
        assert await site.recalled() == (set(), (1, -1))


async def test_without_a_checkpoint_events_alone_say_nothing():
    async with Site() as site:
        await site.store(1)
        with pytest.raises(SnapshotError, match="no checkpoint"):
            await site.history.recall(*RANK)


async def test_a_checkpoint_half_written_leaves_the_one_before():
    async with Site() as site:
        await site.store(1, 2, 3, 4, 5)
        await site.history.write(site.chunks)
        await site.store(6)
        for chunk in site.chunks()[:2]:
            await site.checkpoints.append(CHECKPOINT, messages.encode(chunk))
        assert await site.recalled() == ({1, 2, 3, 4, 5, 6}, (1, 1))


async def test_a_gap_in_the_log_ends_what_is_known():
    async with Site() as site:
        await site.history.write(site.chunks)
        await site.store(1)
        await site.store(2, lose=True)
        await site.store(3)
        assert await site.recalled() == ({1}, (1, 0))


async def test_a_life_that_began_after_the_checkpoint_makes_it_worthless():
    async with Site() as site:
        await site.store(1)
        await site.history.write(site.chunks)
        site.epoch, site.seq, site.held = 2, -1, set()
        await site.store(9)
        with pytest.raises(SnapshotError, match="new life"):
            await site.history.recall(*RANK)
        await site.history.write(site.chunks)
        assert await site.recalled() == ({9}, (2, 0))


async def test_events_on_their_way_while_the_position_is_noted():
    """They are in the snapshot, and after the position: known twice, counted once."""
    async with Site() as site:
        late = []

        async def hold(subject, data):
            late.append(data)

        publish, site.bus.publish = site.bus.publish, hold
        await site.store(1)
        await site.remove(1)
        site.bus.publish = publish
        await site.history.write(site.chunks)
        for data in late:
            await site.bus.publish(KV, data)
        await site.store(2)
        assert await site.recalled() == ({2}, (1, 2))


async def test_what_others_publish_there_is_passed_over():
    async with Site() as site:
        await site.history.write(site.chunks)
        for data in (b"\xc1", messages.encode(KvEvents("w!", 0, 1, 0, []))):
            await site.bus.publish(KV, data)
            await site.bus.publish(CHECKPOINT, data)
        await site.store(1)
        assert await site.recalled() == ({1}, (1, 0))


async def test_nothing_is_recalled_from_logs_that_are_not_there():
    broker = MemoryBroker()
    async with MemoryBus(broker) as bus:
        log = MemoryLog(bus, broker, "log", "kv.>")
        with pytest.raises(LogError, match="not found"):
            await History(log, log, "n").recall(*RANK)
    with pytest.raises(BusUnavailable):
        await History(log, log, "n").recall(*RANK)


CHANGES = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(["store", "remove"]), st.sets(st.integers(1, 9), min_size=1, max_size=4)),
        st.just(("checkpoint", ())),
        st.tuples(st.just("part"), st.integers(0, 2)),
    ),
    max_size=30,
)


@settings(max_examples=100)
@given(CHANGES)
async def test_whatever_happened_what_comes_back_is_what_is_held(changes):
    async with Site() as site:
        await site.history.write(site.chunks)
        for what, value in changes:
            if what == "checkpoint":
                await site.history.write(site.chunks)
            elif what == "part":
                for chunk in site.chunks()[:value]:
                    await site.checkpoints.append(CHECKPOINT, messages.encode(chunk))
            else:
                await getattr(site, what)(*value)
        assert await site.recalled() == (site.held, (1, site.seq))
