"""RankStream against a network that drops, duplicates and reorders, and engines that restart; snapshots from their chunks."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from events.messages import (
    BlocksRemoved,
    BlocksStored,
    CacheCleared,
    KvEvents,
    SnapshotChunk,
    pack_hashes,
    unpack_hashes,
)
from events.snapshot import SnapshotError, assemble
from events.stream import RankStream


def message(seq, epoch=1, events=()):
    return KvEvents("w", 0, epoch, seq, list(events))


def seqs(messages):
    return [message.seq for message in messages]


def live_stream(epoch=1, watermark=-1, **options):
    stream = RankStream(**options)
    assert stream.adopt(epoch, watermark) == []
    assert stream.live
    return stream


def test_a_stream_starts_fenced_and_buffers():
    stream = RankStream()
    assert stream.needs_snapshot
    assert stream.offer(message(0)) == []
    assert stream.statistics().buffered == 1
    assert repr(stream) == "<RankStream epoch 1, fenced, 1 buffered>"


def test_a_snapshot_makes_it_live_and_what_followed_the_watermark_is_applied():
    stream = RankStream()
    for seq in range(3, 8):
        stream.offer(message(seq))
    assert seqs(stream.adopt(1, watermark=4)) == [5, 6, 7]
    assert stream.live
    assert not stream.needs_snapshot
    assert seqs(stream.offer(message(8))) == [8]
    statistics = stream.statistics()
    assert (statistics.applied, statistics.superseded, statistics.resyncs) == (4, 2, 1)
    assert repr(stream) == "<RankStream epoch 1, live, next 9>"


def test_a_gap_fences_and_the_next_snapshot_heals():
    stream = live_stream()
    assert seqs(stream.offer(message(0))) == [0]
    assert stream.offer(message(2)) == []
    assert stream.needs_snapshot
    assert stream.offer(message(3)) == []
    assert seqs(stream.adopt(1, watermark=1)) == [2, 3]
    assert stream.live
    assert stream.statistics().gaps == 1


def test_a_gap_after_the_watermark_needs_another_snapshot():
    stream = RankStream()
    for seq in (5, 6, 8):
        stream.offer(message(seq))
    assert seqs(stream.adopt(1, watermark=4)) == [5, 6]
    assert stream.needs_snapshot
    assert stream.statistics().gaps == 1
    assert stream.adopt(1, watermark=8) == []
    assert stream.live


def test_a_snapshot_older_than_what_was_applied_needs_another():
    """It took back what is not in any buffer."""
    stream = live_stream()
    for seq in range(5):
        stream.offer(message(seq))
    assert stream.adopt(1, watermark=2) == []
    assert stream.needs_snapshot


def test_a_snapshot_ahead_of_the_messages_makes_them_duplicates():
    stream = live_stream(watermark=9)
    assert stream.offer(message(8)) == stream.offer(message(9)) == []
    assert seqs(stream.offer(message(10))) == [10]
    assert stream.statistics().duplicates == 2


def test_duplicates_are_dropped_live_and_fenced():
    stream = RankStream()
    assert stream.offer(message(0)) == stream.offer(message(0)) == []
    assert seqs(stream.adopt(1, watermark=-1)) == [0]
    assert stream.offer(message(0)) == []
    assert stream.statistics().duplicates == 2


def test_a_new_epoch_fences_even_from_its_first_message():
    """What an adapter that restarted holds before its first event is not known."""
    stream = live_stream(epoch=1)
    assert stream.offer(message(0, epoch=2)) == []
    assert stream.needs_snapshot
    assert stream.epoch == 2
    assert seqs(stream.adopt(2, watermark=-1)) == [0]
    assert stream.statistics().epochs == 2


def test_an_old_epoch_is_dropped():
    stream = live_stream(epoch=2)
    assert stream.offer(message(0, epoch=1)) == []
    assert stream.live
    assert stream.statistics().stale == 1


def test_what_was_buffered_of_an_epoch_that_ended_is_stale():
    stream = RankStream()
    stream.offer(message(0, epoch=1))
    stream.offer(message(1, epoch=1))
    stream.offer(message(0, epoch=2))
    assert stream.statistics().stale == 2
    assert stream.statistics().buffered == 1


def test_a_snapshot_of_an_old_epoch_is_refused():
    stream = live_stream(epoch=2)
    assert not stream.accepts(1)
    assert stream.adopt(1, watermark=100) == []
    assert stream.needs_snapshot
    assert stream.epoch == 2
    assert stream.statistics().refused == 1


def test_a_full_buffer_pushes_out_the_oldest():
    stream = RankStream(buffer_messages=3)
    for seq in range(10):
        stream.offer(message(seq))
    assert stream.statistics().overflowed == 7
    assert seqs(stream.adopt(1, watermark=6)) == [7, 8, 9]
    assert stream.live


def test_a_snapshot_that_misses_what_was_pushed_out_needs_another():
    stream = RankStream(buffer_messages=3)
    for seq in range(10):
        stream.offer(message(seq))
    assert stream.adopt(1, watermark=5) == []
    assert stream.needs_snapshot


def test_what_was_published_and_did_not_come_is_a_gap():
    stream = live_stream()
    stream.offer(message(0))
    assert not stream.lacks(1, 0)
    assert stream.lacks(1, 1)
    stream.missed(1, 1)
    assert stream.needs_snapshot
    assert stream.statistics().gaps == 1
    assert not stream.lacks(1, 1)  # a snapshot is on its way
    assert stream.adopt(1, watermark=0) == []
    assert stream.needs_snapshot  # it must hold event 1
    assert stream.adopt(1, watermark=1) == []
    assert stream.live


def test_a_mark_of_a_new_epoch_begins_it_and_one_of_an_old_epoch_says_nothing():
    stream = live_stream(epoch=2)
    assert not stream.lacks(1, 99)
    stream.missed(1, 99)
    assert stream.live
    assert stream.lacks(3, -1)
    stream.missed(3, -1)
    assert (stream.epoch, stream.live) == (3, False)


def test_an_epoch_that_is_known_from_the_start_makes_older_ones_stale():
    stream = RankStream(epoch=5)
    assert stream.offer(message(0, epoch=4)) == []
    assert not stream.accepts(4)
    assert stream.statistics().stale == 1


def test_fence_stops_until_the_next_snapshot():
    stream = live_stream()
    stream.fence()
    assert stream.offer(message(0)) == []
    assert seqs(stream.adopt(1, watermark=-1)) == [0]


# A reader of the stream against the truth

BLOCKS = st.frozensets(st.integers(0, 9), max_size=3)


def hashes(blocks):
    return pack_hashes(np.array(sorted(blocks), np.uint64))


def apply(state, messages):
    for received in messages:
        for event in received.events:
            match event:
                case BlocksStored():
                    state |= set(unpack_hashes(event.hashes).tolist())
                case BlocksRemoved():
                    state -= set(unpack_hashes(event.hashes).tolist())
                case CacheCleared():
                    state.clear()


class Reader(RuleBasedStateMachine):
    """Whenever the stream is live, what the reader applied is what the worker held after the last event known of."""

    def __init__(self):
        super().__init__()
        self.stream = RankStream(buffer_messages=4)
        self.applied: set[int] = set()
        self.truth: set[int] = set()
        self.epoch, self.seq = 1, -1
        self.history = {(1, -1): frozenset()}
        self.network: list[KvEvents] = []
        self.snapshots: list[tuple[int, int, frozenset[int]]] = []

    @rule(stored=BLOCKS, removed=BLOCKS, cleared=st.booleans())
    def publish(self, stored, removed, cleared):
        self.seq += 1
        events = [CacheCleared()] * cleared + [BlocksStored(hashes(stored)), BlocksRemoved(hashes(removed))]
        self.network.append(message(self.seq, self.epoch, events))
        apply(self.truth, self.network[-1:])
        self.history[self.epoch, self.seq] = frozenset(self.truth)

    @rule(held=BLOCKS)
    def restart(self, held):
        self.epoch, self.seq, self.truth = self.epoch + 1, -1, set(held)
        self.history[self.epoch, -1] = frozenset(held)

    @precondition(lambda self: self.network)
    @rule()
    def deliver_next(self):
        apply(self.applied, self.stream.offer(self.network.pop(0)))

    @precondition(lambda self: self.network)
    @rule(data=st.data(), again=st.booleans())
    def deliver_any(self, data, again):
        index = data.draw(st.integers(0, len(self.network) - 1))
        received = self.network[index] if again else self.network.pop(index)
        apply(self.applied, self.stream.offer(received))

    @precondition(lambda self: self.network)
    @rule()
    def lose(self):
        self.network.pop(0)

    @rule()
    def fence(self):
        self.stream.fence()

    @rule()
    def mark(self):
        if self.stream.lacks(self.epoch, self.seq):
            self.stream.missed(self.epoch, self.seq)
        assert self.stream.needs_snapshot or (self.stream.epoch, self.stream._next - 1) == (self.epoch, self.seq)

    @rule()
    def take_snapshot(self):
        self.snapshots.append((self.epoch, self.seq, frozenset(self.truth)))

    @precondition(lambda self: self.snapshots)
    @rule(newest=st.booleans())
    def deliver_snapshot(self, newest):
        self.adopt(*self.snapshots.pop(-1 if newest else 0))

    def adopt(self, epoch, watermark, held):
        self.applied = set(held)
        apply(self.applied, self.stream.adopt(epoch, watermark))

    @invariant()
    def live_means_true(self):
        self.stream._check()
        if self.stream.live:
            assert self.applied == self.history[self.stream.epoch, self.stream._next - 1]

    def teardown(self):
        while self.network:
            self.deliver_next()
        self.adopt(self.epoch, self.seq, self.truth)
        assert self.stream.live
        assert self.applied == self.truth


TestReader = Reader.TestCase
TestReader.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)


# Snapshots

BLOCK_LISTS = st.lists(
    st.lists(st.binary(min_size=8, max_size=8).map(BlocksStored), max_size=3), min_size=1, max_size=6
)


def chunked(parts, epoch=7, seq=41):
    return [SnapshotChunk("w", 1, epoch, seq, index, len(parts), stored) for index, stored in enumerate(parts)]


@given(BLOCK_LISTS, st.randoms(use_true_random=False))
def test_a_snapshot_is_put_together_from_chunks_in_any_order(parts, random):
    chunks = chunked(parts)
    random.shuffle(chunks)
    snapshot = assemble(chunks)
    assert snapshot.stored == [stored for part in parts for stored in part]
    assert (snapshot.worker_id, snapshot.rank, snapshot.epoch, snapshot.watermark) == ("w", 1, 7, 41)


@pytest.mark.parametrize(
    ("chunks", "reason"),
    [
        ([], "holds no snapshot chunk"),
        (chunked([[], [], []])[:2], r"has chunks \[0, 1\], want 0 to 2"),
        (chunked([[], []])[1:], r"has chunks \[1\], want 0 to 1"),
        (chunked([[], []]) + chunked([[], []])[:1], "chunk 0 came twice"),
        (chunked([[], []])[:1] + chunked([[], []], seq=42)[1:], "different snapshots"),
        (chunked([[], []])[:1] + chunked([[], []], epoch=8)[1:], "different snapshots"),
        ([SnapshotChunk("w", 1, 7, 41, 5, 1, [])], r"has chunks \[5\], want 0 to 0"),
        ([SnapshotChunk("w", 1, 7, 41, 0, 2**60, [])], r"has chunks \[0\]"),
    ],
)
def test_what_is_no_whole_snapshot_is_refused(chunks, reason):
    with pytest.raises(SnapshotError, match=reason):
        assemble(chunks)
