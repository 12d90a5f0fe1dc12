"""One suite for every log, in memory and in a real NATS server with JetStream."""

from __future__ import annotations

import pytest
import pytest_asyncio

from events.bus import BusUnavailable
from events.bus.broker import EmbeddedBroker
from events.bus.jetstream import JetStreamLog
from events.bus.log import Limits, LogError
from events.bus.memory import MemoryBroker, MemoryBus
from events.bus.memory_log import MemoryLog
from events.bus.nats import NatsBus


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def jetstream_url(tmp_path_factory):
    async with EmbeddedBroker(store_dir=tmp_path_factory.mktemp("jetstream")) as broker:
        yield broker.url


@pytest.fixture(params=["memory", "nats"])
def log_url(request):
    """None: in memory."""
    return request.getfixturevalue("jetstream_url") if request.param == "nats" else None


class Place:
    """A bus, and logs on it; names are the test's own, as the server is the session's."""

    def __init__(self, url, name):
        self._broker = MemoryBroker()
        self.bus = NatsBus(url) if url else MemoryBus(self._broker)
        self.root = "".join(c if c.isalnum() else "_" for c in name)

    def log(self, name="log", pattern="kv.>", **limits):
        name, pattern, limits = f"{self.root}-{name}", f"{self.root}.{pattern}", Limits(**limits)
        if isinstance(self.bus, NatsBus):
            return JetStreamLog(self.bus, name, pattern, limits)
        return MemoryLog(self.bus, self._broker, name, pattern, limits)

    def subject(self, name):
        return f"{self.root}.{name}"


@pytest_asyncio.fixture
async def place(log_url, request):
    place = Place(log_url, request.node.name)
    async with place.bus:
        yield place


async def kept(log, subject, after=0):
    return [message async for message in log.read(subject, after)]


async def test_what_anybody_publishes_is_kept_in_order_and_read_by_subject(place):
    log = place.log()
    await log.open()
    assert await log.last() == 0
    for number in range(5):
        await place.bus.publish(place.subject(f"kv.{number % 2}"), str(number).encode())
    await place.bus.publish(place.subject("other"), b"not kept")
    number = await log.append(place.subject("kv.0"), b"appended")
    assert number == await log.last() == 6
    assert await kept(log, place.subject("kv.0")) == [(1, b"0"), (3, b"2"), (5, b"4"), (6, b"appended")]
    assert await kept(log, place.subject("kv.0"), after=3) == [(5, b"4"), (6, b"appended")]
    assert await kept(log, place.subject("kv.0"), after=6) == []
    assert await kept(log, place.subject("kv.9")) == []


async def test_to_open_again_keeps_what_is_there_and_changes_the_limits(place):
    log = place.log()
    await log.open()
    await log.append(place.subject("kv.0"), b"1")
    await log.open()
    other = place.log(max_bytes=64_000)
    await other.open()
    assert await kept(other, place.subject("kv.0")) == [(1, b"1")]
    for _ in range(20):
        await other.append(place.subject("kv.0"), bytes(10_000))
    assert 1 < len(await kept(log, place.subject("kv.0"))) < 7


async def test_the_oldest_go_first_and_numbers_stay(place):
    log = place.log(max_bytes=5000)
    await log.open()
    for number in range(30):
        await log.append(place.subject("kv.0"), bytes(1000 + number))
    messages = await kept(log, place.subject("kv.0"))
    assert 1 <= len(messages) <= 5
    assert [message.number for message in messages] == list(range(31 - len(messages), 31))


async def test_a_trimmed_subject_begins_later_and_others_stay(place):
    log = place.log()
    await log.open()
    numbers = [await log.append(place.subject(f"kv.{n % 2}"), b"%d" % n) for n in range(6)]
    await log.trim(place.subject("kv.0"), numbers[4])
    assert await kept(log, place.subject("kv.0")) == [(5, b"4")]
    assert len(await kept(log, place.subject("kv.1"))) == 3


async def test_many_and_large_messages(place, monkeypatch):
    """More than one batch, by number and by size."""
    monkeypatch.setattr("events.bus.jetstream.BATCH_MESSAGES", 7)
    monkeypatch.setattr("events.bus.jetstream.BATCH_BYTES", 300_000)
    log = place.log()
    await log.open()
    sizes = [100_000 if n % 10 == 0 else n for n in range(60)]
    for size in sizes:
        await place.bus.publish(place.subject("kv.0"), bytes(size))
    await log.append(place.subject("kv.0"), b"")
    assert [len(data) for _, data in await kept(log, place.subject("kv.0"))] == [*sizes, 0]


async def test_a_log_that_was_never_opened_is_an_error(place):
    log = place.log("absent", "absent.>")
    with pytest.raises(LogError, match="absent"):
        await log.last()


async def test_a_closed_bus_is_unavailable(place):
    log = place.log()
    await log.open()
    await place.bus.close()
    for work in (log.open(), log.last(), log.append("x", b""), log.trim("x", 1), anext(log.read("x"))):
        with pytest.raises(BusUnavailable):
            await work
    assert "kv.>" in repr(log)


async def test_a_server_without_jetstream_is_said_with_the_flag(nats_url):
    async with NatsBus(nats_url) as bus:
        with pytest.raises(LogError, match="--jetstream"):
            await JetStreamLog(bus, "log", "kv.>").open()


async def test_limits_that_the_server_cannot_keep_are_an_error(jetstream_url):
    async with NatsBus(jetstream_url) as bus:
        with pytest.raises(LogError, match="replicas"):
            await JetStreamLog(bus, "three", "three.>", Limits(replicas=3)).open()


async def test_what_is_kept_survives_the_server(tmp_path):
    async with EmbeddedBroker(store_dir=tmp_path) as broker, NatsBus(broker.url) as bus:
        log = JetStreamLog(bus, "log", "kv.>")
        await log.open()
        await log.append("kv.0", b"1")
    async with EmbeddedBroker(store_dir=tmp_path) as broker, NatsBus(broker.url) as bus:
        assert await kept(JetStreamLog(bus, "log", "kv.>"), "kv.0") == [(1, b"1")]
