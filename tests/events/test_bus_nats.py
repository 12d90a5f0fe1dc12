"""NatsBus when its server is away, dies, comes back, or is stuck."""

from __future__ import annotations

import asyncio
import os
import signal

import pytest

from events.bus import BusUnavailable, NoResponder
from events.bus.broker import EmbeddedBroker
from events.bus.nats import PERSISTENCE, NatsBus


class Recorder:
    def __init__(self) -> None:
        self.data: list[bytes] = []

    async def __call__(self, message):
        self.data.append(message.data)


@pytest.fixture
async def broker():
    """A server of the test's own, to do violence to."""
    async with EmbeddedBroker() as broker:
        yield broker


@pytest.fixture
async def port(broker):
    """A port on which nothing listens, but a server can be started."""
    await broker.stop()
    return broker.port


async def crash(broker):
    """Kill -9; it is gone when this returns."""
    os.kill(broker.pid, signal.SIGKILL)
    await asyncio.to_thread(os.waitid, os.P_PID, broker.pid, os.WEXITED | os.WNOWAIT)


async def stop(broker):
    """SIGSTOP; every thread of it stands still when this returns."""
    os.kill(broker.pid, signal.SIGSTOP)
    await asyncio.to_thread(os.waitid, os.P_PID, broker.pid, os.WSTOPPED | os.WNOWAIT)


async def test_no_server_is_said_with_url_and_reason(port):
    bus = NatsBus(f"nats://user:secret@127.0.0.1:{port}", connect_timeout_seconds=0.3)
    with pytest.raises(
        BusUnavailable, match=rf"no NATS server at nats://127\.0\.0\.1:{port}: .*Connect call failed"
    ) as raised:
        await bus.open()
    assert "secret" not in str(raised.value)
    assert not bus.statistics().connected
    assert bus.statistics().connection_errors >= 1


@pytest.mark.parametrize("url", ["http://localhost:4222", "nats://", "", "nats://:4222"])
def test_a_url_that_is_none_is_refused(url):
    with pytest.raises(ValueError, match="NATS server"):
        NatsBus(url)


async def test_without_waiting_it_connects_when_the_server_comes(port, eventually):
    seen, connects = Recorder(), []

    async def on_connect():
        connects.append(bus.statistics().connected)

    bus = NatsBus(f"nats://127.0.0.1:{port}", wait_for_server=False, on_connect=on_connect)
    async with bus:
        assert not bus.statistics().connected
        await bus.subscribe("x", seen)
        for number in range(100):
            await bus.publish("x", str(number).encode())
        with pytest.raises(NoResponder, match="not connected"):
            await anext(bus.request("svc", b""))
        async with EmbeddedBroker(port):
            await eventually(lambda: len(seen.data) == 100)
            assert seen.data == [str(number).encode() for number in range(100)]
            await eventually(lambda: connects == [True])
            assert bus.statistics().connected
            assert bus.statistics().reconnects == 0
            assert bus.statistics().dropped == 0


async def test_flush_without_a_server_is_unavailable(port):
    async with NatsBus(f"127.0.0.1:{port}", connect_timeout_seconds=0.1, wait_for_server=False) as bus:
        with pytest.raises(BusUnavailable, match=f"127.0.0.1:{port}"):
            await bus.flush()


async def test_what_the_buffer_cannot_hold_is_dropped_and_counted(port, eventually):
    seen = Recorder()
    bus = NatsBus(f"nats://127.0.0.1:{port}", wait_for_server=False, buffer_bytes=10_000)
    async with bus:
        await bus.subscribe("x", seen)
        for number in range(100):
            await bus.publish("x", str(number).encode())
        statistics = bus.statistics()
        assert 0 < statistics.published < 100
        assert statistics.published + statistics.dropped == 100
        async with EmbeddedBroker(port):
            await eventually(lambda: len(seen.data) == statistics.published)
            assert seen.data == [str(number).encode() for number in range(statistics.published)]


async def test_what_is_still_buffered_at_close_counts_as_dropped(port):
    bus = NatsBus(f"nats://127.0.0.1:{port}", wait_for_server=False)
    async with bus:
        await bus.publish("x", b"")
    assert bus.statistics().dropped == 1


async def test_a_crash_of_the_server_is_survived(broker, eventually):
    seen, connects = Recorder(), []

    async def on_connect():
        connects.append(subscriber.statistics().reconnects)

    async def answer(data):
        return [data, data]

    subscriber = NatsBus(broker.url, "subscriber", on_connect=on_connect)
    async with subscriber, NatsBus(broker.url, "publisher") as publisher:
        await subscriber.subscribe("x.*", seen)
        await subscriber.serve("svc", answer)
        await publisher.publish("x.1", b"before")
        await eventually(lambda: seen.data)
        await crash(broker)
        await eventually(lambda: not publisher.statistics().connected and not subscriber.statistics().connected)
        for number in range(1000):
            await publisher.publish("x.1", str(number).encode())
        during = Recorder()
        await subscriber.subscribe("x.>", during)
        async with EmbeddedBroker(broker.port):
            await eventually(lambda: subscriber.statistics().connected and publisher.statistics().connected)
            await publisher.publish("x.1", b"after")
            await eventually(lambda: b"after" in seen.data and b"after" in during.data)
            # one that connects first sends before the other listens: at most once, but never out of order
            assert seen.data == sorted(seen.data, key=_place)
            assert [part async for part in publisher.request("svc", b"?")] == [b"?", b"?"]
            await eventually(lambda: connects == [0, 1])
            assert subscriber.statistics().reconnects == publisher.statistics().reconnects == 1
            assert publisher.statistics().dropped == 0
        await eventually(lambda: not publisher.statistics().connected)


def _place(data: bytes) -> int:
    return {b"before": -1, b"after": 1_000_000}.get(data, int(data) if data.isdigit() else 0)


async def test_what_a_bus_buffers_reaches_its_own_subscriber_in_full(broker, eventually):
    seen = Recorder()
    async with NatsBus(broker.url) as bus:
        await bus.subscribe("x", seen)
        await crash(broker)
        await eventually(lambda: not bus.statistics().connected)
        sent = [str(number).encode() for number in range(2000)]
        for data in sent:
            await bus.publish("x", data)
        async with EmbeddedBroker(broker.port):
            await eventually(lambda: len(seen.data) >= len(sent))
        assert seen.data == sent


async def test_a_request_ends_when_the_connection_is_lost(broker, eventually):
    asked = asyncio.Event()

    async def silent(data):
        asked.set()
        await asyncio.Event().wait()

    async def ask():
        return [part async for part in bus.request("svc", b"", timeout_seconds=3600)]

    async with NatsBus(broker.url) as bus:
        await bus.serve("svc", silent)
        request = asyncio.create_task(ask())
        await asyncio.wait_for(asked.wait(), 10)
        await crash(broker)
        with pytest.raises(NoResponder, match="connection was lost"):
            await request


async def test_a_server_that_is_stopped_and_goes_on(broker, eventually):
    """The flush that times out must not make the client deaf once the server goes on."""
    seen = Recorder()
    async with NatsBus(broker.url, connect_timeout_seconds=0.5) as bus:
        await bus.subscribe("x", seen)
        await stop(broker)
        await bus.publish("x", b"1")
        with pytest.raises(BusUnavailable, match="no answer"):
            await bus.flush()
        os.kill(broker.pid, signal.SIGCONT)
        await bus.publish("x", b"2")
        await bus.flush()
        await eventually(lambda: seen.data == [b"1", b"2"])
        assert bus.statistics().reconnects == 0


async def test_a_stuck_server_makes_publish_wait_a_little_and_then_drop(broker, eventually, monkeypatch):
    monkeypatch.setitem(PERSISTENCE, "flush_timeout", 0.2)
    seen = Recorder()
    async with NatsBus(broker.url, buffer_bytes=1_000_000) as bus:
        await bus.subscribe("x", seen)
        await stop(broker)
        for _ in range(200):
            await bus.publish("x", bytes(100_000))
        statistics = bus.statistics()
        assert statistics.dropped > 0
        assert statistics.published + statistics.dropped == 200
        assert statistics.connection_errors <= 3  # one for each time that it waited
        os.kill(broker.pid, signal.SIGCONT)
        await eventually(lambda: len(seen.data) == statistics.published)


async def test_a_stuck_server_does_not_hold_up_close(broker, monkeypatch):
    monkeypatch.setattr("events.bus.nats.CLOSE_SECONDS", 0.2)
    monkeypatch.setitem(PERSISTENCE, "flush_timeout", 0.2)
    async with NatsBus(broker.url, connect_timeout_seconds=0.3, buffer_bytes=1_000_000) as bus:
        await stop(broker)
        while not bus.statistics().dropped:
            await bus.publish("x", bytes(100_000))
    assert not bus.statistics().connected


async def test_a_protocol_error_starts_a_new_connection(broker, eventually):
    """After an error of its own kind, nats-py ends its client for good."""
    seen = Recorder()
    async with NatsBus(broker.url) as bus:
        await bus.subscribe("x", seen)
        bus._client._transport.write(b"NONSENSE\r\n")
        await eventually(lambda: bus.statistics().reconnects == 1)
        await bus.publish("x", b"back")
        await eventually(lambda: seen.data == [b"back"])


async def test_it_can_be_closed_at_any_moment_of_connecting(broker):
    """nats-py swallows a cancellation that meets a finished step of its handshake."""
    for moments in range(60):
        bus = NatsBus(broker.url, wait_for_server=False)
        await bus.open()
        for _ in range(moments):
            await asyncio.sleep(0)
        async with asyncio.timeout(5):
            await bus.close()
        assert not bus.connected
