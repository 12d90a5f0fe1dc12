"""Order, exactly once: live and replay sockets over real ZMQ, with every fault that an engine is known to have."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager

import pytest
import zmq.asyncio

from workers.sglang.subscription import EngineRestarted, Frame, RankSubscription

from . import captures
from .fake_sglang import CLEARED, END, FakeRank, free_ports


@pytest.fixture
async def context():
    context = zmq.asyncio.Context()
    yield context
    context.destroy(linger=0)


@asynccontextmanager
async def publisher(context, **options):
    port, replay_port = free_ports(2)
    options = {"replay_port": replay_port} | options
    rank = FakeRank(context, port, **options)
    try:
        yield rank
    finally:
        await rank.close()


@asynccontextmanager
async def subscriber(context, rank, **options):
    replay = f"tcp://127.0.0.1:{rank.replay_port}" if rank.replay_port else None
    async with RankSubscription(context, f"tcp://127.0.0.1:{rank.port}", replay, rank.topic, **options) as subscription:
        await rank.subscribed()
        yield subscription


class Place:
    """Two ports at which one engine after another publishes: each with a context of its own, that frees them at once."""

    def __init__(self, replay=True):
        self._ports = free_ports(2) if replay else [*free_ports(1), None]
        self._context = None

    async def engine(self, seq=0, history=()):
        """End the last one, and begin the next."""
        await self.close()
        self._context = zmq.asyncio.Context()
        self._rank = FakeRank(self._context, *self._ports)
        self._rank.seq, self._rank.history = seq, list(history)
        return self._rank

    async def close(self):
        if self._context is not None:
            await self._rank.close()
            self._context.destroy(linger=0)


@pytest.fixture
async def place():
    place = Place()
    yield place
    await place.close()


async def take(subscription, count):
    """The next `count` deliveries."""
    taken = []
    while len(taken) < count:
        taken += await asyncio.wait_for(subscription.receive(), 5)
    assert len(taken) == count, taken
    return taken


def numbers(deliveries):
    return [delivery.seq if isinstance(delivery, Frame) else tuple(delivery) for delivery in deliveries]


@pytest.mark.parametrize("keeps_topic", [True, False])
async def test_a_late_subscriber_gets_history_then_what_follows(context, keeps_topic):
    async with publisher(context, topic="kv@w0", keeps_topic=keeps_topic) as rank:
        for _ in range(5):
            await rank.publish(CLEARED)
        async with subscriber(context, rank) as subscription:
            assert numbers(await subscription.history()) == [0, 1, 2, 3, 4]
            for _ in range(3):
                await rank.publish(CLEARED)
            assert numbers(await take(subscription, 3)) == [5, 6, 7]
            assert subscription.statistics()[:3] == (8, 5, 0)


async def test_what_replay_and_live_both_bring_comes_once(context):
    async with publisher(context) as rank, subscriber(context, rank) as subscription:
        for _ in range(4):
            await rank.publish(CLEARED)
        assert numbers(await subscription.history()) == [0, 1, 2, 3]
        await rank.publish(CLEARED)
        assert numbers(await take(subscription, 1)) == [4]
        assert subscription.statistics().duplicates == 4


async def test_a_gap_is_filled_from_replay(context):
    async with publisher(context) as rank, subscriber(context, rank) as subscription:
        assert await subscription.history() == []
        await rank.publish(CLEARED, live=False)
        await rank.publish(CLEARED, live=False)
        await rank.publish(CLEARED)
        assert numbers(await take(subscription, 3)) == [0, 1, 2]
        await rank.publish(CLEARED, live=False)
        await rank.publish(CLEARED)
        assert numbers(await take(subscription, 2)) == [3, 4]
        assert rank.requests == [0, 0, 2]
        assert subscription.statistics() == (5, 5, 0, 2, 0, 0, 0, 0, 0)


async def test_a_gap_that_replay_has_forgotten_is_named(context):
    async with publisher(context) as rank, subscriber(context, rank) as subscription:
        await rank.publish(CLEARED)
        await subscription.history()
        await rank.publish(CLEARED, live=False, kept=False)
        await rank.publish(CLEARED, live=False)
        await rank.publish(CLEARED)
        assert numbers(await take(subscription, 3)) == [(1, 1), 2, 3]
        assert subscription.statistics().lost == 1


async def test_history_may_begin_late(context):
    async with publisher(context) as rank:
        await rank.publish(CLEARED, kept=False)
        await rank.publish(CLEARED)
        async with subscriber(context, rank) as subscription:
            assert numbers(await subscription.history()) == [(0, 0), 1]
            assert rank.requests == [0, 0, 0]  # a dropped reply looks the same: it asks again
            assert subscription.statistics().lost == 1


async def test_without_replay_it_begins_with_what_comes_and_gaps_are_named(context, caplog):
    async with publisher(context, replay_port=None) as rank:
        await rank.publish(CLEARED)
        async with subscriber(context, rank) as subscription:
            assert await subscription.history() == []
            await rank.publish(CLEARED)
            await rank.publish(CLEARED, live=False)
            await rank.publish(CLEARED)
            assert numbers(await take(subscription, 4)) == [(0, 0), 1, (2, 2), 3]
    assert any("replay_endpoint" in record.getMessage() for record in caplog.records)


async def test_a_replay_socket_that_stays_silent_is_given_up(context, caplog):
    async with publisher(context, answers=False) as rank:
        await rank.publish(CLEARED)
        async with subscriber(context, rank, replay_timeout_seconds=0.1) as subscription:
            assert await subscription.history() == []
            await rank.publish(CLEARED)
            assert numbers(await take(subscription, 2)) == [(0, 0), 1]
            assert subscription.statistics().failed_replays == 2
    assert any("did not finish the replay" in record.getMessage() for record in caplog.records)


@pytest.mark.parametrize("drops", [{0}, {0, 1, 5}, {3}, {3, 4, 9}, {9}, {END}, {7, END}])
async def test_what_a_replay_drops_is_asked_for_again(context, drops):
    async with publisher(context) as rank:
        for _ in range(10):
            await rank.publish(CLEARED)
        rank.drops = drops
        async with subscriber(context, rank, replay_timeout_seconds=0.1) as subscription:
            history = numbers(await subscription.history())
            await rank.publish(CLEARED)
            rest = numbers(await take(subscription, 11 - len(history)))
            assert history + rest == list(range(11))
            assert subscription.statistics().lost == 0


async def test_numbers_that_begin_again_are_another_engine_though_its_clock_is_behind(context):
    async with publisher(context) as rank, subscriber(context, rank) as subscription:
        for _ in range(3):
            await rank.publish(CLEARED, ts=100.0)
        await subscription.history()
        rank.seq = 1
        await rank.publish(CLEARED, ts=99.0)
        with pytest.raises(EngineRestarted, match="began again at event 1, 3 was due"):
            await take(subscription, 1)


@pytest.mark.parametrize("events", [1, 2, 3, 5], ids=lambda events: f"{events} published again")
async def test_another_engine_is_found_whatever_its_number_is_when_it_is_heard_again(context, place, events):
    """Behind what was due, just that, or beyond it: its numbers alone would look like the first engine's."""
    rank = await place.engine()
    async with subscriber(context, rank) as subscription:
        for _ in range(2):
            await rank.publish(CLEARED, ts=100.0)
        await subscription.history()
        taking = asyncio.ensure_future(take(subscription, 10))  # ZMQ subscribes again only while somebody reads
        rank = await place.engine()
        for number in range(events - 1):
            await rank.publish(CLEARED, ts=50.0 + number)
        await rank.subscribed()
        await rank.publish(CLEARED, ts=99.0)
        with pytest.raises(EngineRestarted):
            await taking
        assert subscription.statistics().disconnects == 1


async def test_another_engine_that_says_nothing_is_found_after_a_while(context, place):
    rank = await place.engine()
    async with subscriber(context, rank, quiet_seconds=0.02) as subscription:
        await rank.publish(CLEARED, ts=100.0)
        await subscription.history()
        await place.engine()
        with pytest.raises(EngineRestarted, match="another engine: it has not published event 0"):
            await take(subscription, 2)


async def test_a_broken_connection_to_the_same_engine_costs_nothing(context, place):
    rank = await place.engine()
    async with subscriber(context, rank) as subscription:
        await rank.publish(CLEARED)
        await subscription.history()
        await rank.publish(CLEARED)
        assert numbers(await take(subscription, 1)) == [1]
        taking = asyncio.ensure_future(take(subscription, 2))
        rank = await place.engine(rank.seq, rank.history)
        await rank.publish(CLEARED)  # nobody hears it
        await rank.subscribed()
        await rank.publish(CLEARED)
        assert numbers(await taking) == [2, 3]
        statistics = subscription.statistics()
        assert (statistics.disconnects, statistics.lost) == (1, 0)


async def test_a_broken_connection_without_replay_begins_anew(context):
    place = Place(replay=False)
    rank = await place.engine()
    async with subscriber(context, rank) as subscription:
        await subscription.history()
        await rank.publish(CLEARED)
        await take(subscription, 1)
        taking = asyncio.ensure_future(take(subscription, 1))
        rank = await place.engine(rank.seq)
        await rank.subscribed()
        await rank.publish(CLEARED)
        with pytest.raises(EngineRestarted, match="was away"):
            await taking
    await place.close()


async def test_the_last_event_before_a_silence_is_missed_and_found(context):
    async with publisher(context) as rank, subscriber(context, rank, quiet_seconds=0.02) as subscription:
        await rank.publish(CLEARED)
        await subscription.history()
        await rank.publish(CLEARED, live=False)
        assert numbers(await take(subscription, 1)) == [1]
        assert subscription.statistics().late == 1


async def test_an_engine_that_does_not_answer_is_asked_less_and_less_often(context, monkeypatch):
    monkeypatch.setattr("workers.sglang.subscription.LONGEST_QUIET_SECONDS", 0.04)
    async with publisher(context) as rank:
        options = {"quiet_seconds": 0.01, "replay_timeout_seconds": 0.02}
        async with subscriber(context, rank, **options) as subscription:
            await rank.publish(CLEARED)
            await subscription.history()
            rank.answers = False
            while subscription.statistics().failed_replays < 4:
                assert await subscription.receive() == []
            assert subscription._patience == 0.04
            rank.answers = True
            await rank.publish(CLEARED, live=False)
            assert numbers(await take(subscription, 1)) == [1]
            assert subscription._patience == 0.01


@pytest.mark.parametrize("drops", [set(), {0, 1}, {3}, {5, END}], ids=["none", "two", "one", "the end"])
async def test_all_that_was_delivered_comes_once_more(context, drops):
    async with publisher(context) as rank:
        for _ in range(3):
            await rank.publish(CLEARED)
        async with subscriber(context, rank, replay_timeout_seconds=0.1) as subscription:
            delivered = await subscription.history()
            for _ in range(3):
                await rank.publish(CLEARED)
            delivered += await take(subscription, 3)
            await rank.publish(CLEARED)  # on its way, and not delivered yet
            rank.drops = drops
            assert await subscription.whole() == delivered
            assert numbers(await take(subscription, 1)) == [6]
            assert subscription.statistics().lost == 0


async def test_what_the_engine_has_forgotten_of_it_is_named(context):
    async with publisher(context) as rank, subscriber(context, rank, replay_timeout_seconds=0.1) as subscription:
        assert await subscription.whole() == []
        await subscription.history()
        for _ in range(6):
            await rank.publish(CLEARED)
        await take(subscription, 6)
        rank.history = [kept for kept in rank.history if kept[0] in {2, 4}]
        assert numbers(await subscription.whole()) == [(0, 1), 2, (3, 3), 4, (5, 5)]
        rank.answers = False
        assert numbers(await subscription.whole()) == [(0, 5)]
        assert subscription.statistics().lost == 0  # all were delivered in their time


async def test_another_engine_is_found_when_all_is_asked_for_once_more(context):
    async with publisher(context) as rank, subscriber(context, rank) as subscription:
        await rank.publish(CLEARED, ts=1.0)
        await subscription.history()
        rank.seq, rank.history = 0, []
        await rank.publish(CLEARED, ts=2.0, live=False)
        with pytest.raises(EngineRestarted, match="has not published event 0"):
            await subscription.whole()


async def test_without_replay_all_of_it_is_gone(context):
    async with publisher(context, replay_port=None) as rank, subscriber(context, rank) as subscription:
        await rank.publish(CLEARED)
        await take(subscription, 1)
        assert numbers(await subscription.whole()) == [(0, 0)]


async def test_malformed_messages_are_counted_and_left_out(context):
    async with publisher(context) as rank, subscriber(context, rank) as subscription:
        await subscription.history()
        await rank.send(b"", b"short", b"payload")
        await rank.send(b"", b"alone")
        await rank.publish(CLEARED)
        assert numbers(await take(subscription, 1)) == [0]
        assert subscription.statistics().malformed == 2


async def test_what_waits_comes_together(context):
    async with publisher(context) as rank, subscriber(context, rank) as subscription:
        await subscription.history()
        for _ in range(20):
            await rank.publish(CLEARED)
        received = []
        calls = 0
        while len(received) < 20:
            received += await asyncio.wait_for(subscription.receive(), 5)
            calls += 1
        assert numbers(received) == list(range(20))
        assert calls < 20


async def test_a_publisher_that_comes_later_is_found(context, monkeypatch):
    monkeypatch.setattr("workers.sglang.subscription.CONNECT_TIMEOUT_SECONDS", 0.05)
    port, replay_port = free_ports(2)
    subscription = RankSubscription(
        context, f"tcp://127.0.0.1:{port}", f"tcp://127.0.0.1:{replay_port}", replay_timeout_seconds=0.05
    )
    async with subscription:
        assert await subscription.history() == []
        rank = FakeRank(context, port, replay_port)
        try:
            receiving = asyncio.ensure_future(subscription.receive())
            while not receiving.done():
                await rank.publish(CLEARED)
                await asyncio.wait([receiving], timeout=0.02)
            assert isinstance((await receiving)[0], Frame)
        finally:
            await rank.close()


async def test_replies_of_every_version(context):
    for golden in captures.document("golden_by_version.json"):
        port, replay_port = free_ports(2)
        router = context.socket(zmq.ROUTER)
        router.bind(f"tcp://127.0.0.1:{replay_port}")
        pub = context.socket(zmq.PUB)
        pub.bind(f"tcp://127.0.0.1:{port}")
        replies = [[bytes.fromhex(part) for part in reply] for reply in golden["replay_frames_hex"]]
        subscription = RankSubscription(context, f"tcp://127.0.0.1:{port}", f"tcp://127.0.0.1:{replay_port}", "kv")
        async with subscription:
            history = asyncio.ensure_future(subscription.history())
            client, *request = await asyncio.wait_for(router.recv_multipart(), 5)
            assert request == [b"", bytes(8)]
            for reply in replies:
                await router.send_multipart([client, *reply])
            assert await history == [Frame(0, replies[0][-1])], golden["version"]
            assert subscription.statistics().failed_replays == 0
        router.close(linger=0)
        pub.close(linger=0)


async def test_repr_and_unreachable_statistics(context):
    (port,) = free_ports(1)
    subscription = RankSubscription(context, f"tcp://127.0.0.1:{port}", None)
    assert repr(subscription) == f"<RankSubscription tcp://127.0.0.1:{port} next=0>"
    assert set(subscription.statistics()) == {0}
    await subscription.__aexit__(None, None, None)
