"""What every bus must do: one suite over MemoryBus and NatsBus (with a real server)."""

from __future__ import annotations

import asyncio

import pytest

from events.bus import NoResponder


class Recorder:
    """A handler that keeps what it is given."""

    def __init__(self) -> None:
        self.messages: list[tuple[str, bytes]] = []

    async def __call__(self, message):
        self.messages.append(tuple(message))

    @property
    def data(self) -> list[bytes]:
        return [data for _, data in self.messages]


async def parts_of(bus, subject, data=b"", timeout_seconds=5.0):
    return [part async for part in bus.request(subject, data, timeout_seconds)]


@pytest.fixture
async def pair(network):
    """Two open buses that reach each other."""
    async with network(name="one") as one, network(name="two") as two:
        yield one, two


async def test_a_message_reaches_every_subscriber_of_both_buses(pair, eventually):
    one, two = pair
    here, there, elsewhere = Recorder(), Recorder(), Recorder()
    await one.subscribe("a.b", here)
    await two.subscribe("a.b", there)
    await two.subscribe("a.c", elsewhere)
    await one.publish("a.b", b"hello")
    await eventually(lambda: here.messages and there.messages)
    assert here.messages == there.messages == [("a.b", b"hello")]
    assert elsewhere.messages == []


async def test_messages_come_in_order(pair, eventually):
    one, two = pair
    seen = Recorder()
    await two.subscribe("numbers", seen)
    sent = [str(number).encode() for number in range(5000)]
    for data in sent:
        await one.publish("numbers", data)
    await eventually(lambda: len(seen.messages) >= len(sent))
    assert seen.data == sent
    assert one.statistics().published == two.statistics().received == 5000
    assert one.statistics().dropped == two.statistics().dropped == 0


async def test_a_handler_is_called_for_one_message_at_a_time(pair, eventually):
    one, two = pair
    running = finished = most = 0

    async def slow(message):
        nonlocal running, finished, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0)
        running -= 1
        finished += 1

    await two.subscribe("x", slow)
    for _ in range(20):
        await one.publish("x", b"")
    await eventually(lambda: finished == 20)
    assert most == 1


@pytest.mark.parametrize(
    ("pattern", "chosen"),
    [
        ("kv.w1.0", {"kv.w1.0"}),
        ("kv.*.0", {"kv.w1.0", "kv.w2.0"}),
        ("kv.w1.*", {"kv.w1.0", "kv.w1.1"}),
        ("kv.>", {"kv.w1.0", "kv.w1.1", "kv.w2.0", "kv.w2"}),
        ("*.w2", {"kv.w2"}),
        (">", {"kv.w1.0", "kv.w1.1", "kv.w2.0", "kv.w2", "kv", "load.w1.0"}),
    ],
)
async def test_patterns_choose_subjects(pair, eventually, pattern, chosen):
    one, two = pair
    seen, last = Recorder(), Recorder()
    await two.subscribe(pattern, seen)
    await two.subscribe("load.w1.0", last)
    for subject in ("kv.w1.0", "kv.w1.1", "kv.w2.0", "kv.w2", "kv", "load.w1.0"):
        await one.publish(subject, b"")
    await eventually(lambda: last.messages and len(seen.messages) >= len(chosen))
    assert {subject for subject, _ in seen.messages if not subject.startswith("_INBOX.")} == chosen


@pytest.mark.parametrize("subject", ["", ".", "a.", ".a", "a..b", "a b", "a.*", "a.>", "a\r\nPUB b 0"])
async def test_a_malformed_subject_is_refused(pair, subject):
    one, _ = pair
    with pytest.raises(ValueError, match="subject"):
        await one.publish(subject, b"")
    with pytest.raises(ValueError, match="subject"):
        await one.serve(subject, None)
    with pytest.raises(ValueError, match="subject"):
        await parts_of(one, subject)


@pytest.mark.parametrize("pattern", ["", ".", "a.", "a..b", "a b", "a*", "*a.b", "a>", "a.>.b", ">.a"])
async def test_a_malformed_pattern_is_refused(pair, pattern):
    one, _ = pair
    with pytest.raises(ValueError, match="pattern"):
        await one.subscribe(pattern, Recorder())


async def test_a_failing_handler_is_counted_and_delivery_goes_on(pair, eventually, caplog):
    one, two = pair
    seen = []

    async def fragile(message):
        seen.append(message.data)
        if message.data == b"bad":
            raise RuntimeError("boom")
        if message.data == b"worse":  # what awaiting a cancelled task raises
            raise asyncio.CancelledError

    await two.subscribe("x", fragile)
    for data in (b"bad", b"worse", b"good"):
        await one.publish("x", data)
    await eventually(lambda: b"good" in seen)
    assert seen == [b"bad", b"worse", b"good"]
    assert two.statistics().handler_errors == 2
    assert "boom" in caplog.text


async def test_nothing_comes_after_cancel(pair, eventually):
    one, two = pair
    cancelled, other = Recorder(), Recorder()
    subscription = await two.subscribe("x", cancelled)
    await two.subscribe("x", other)
    await one.publish("x", b"1")
    await eventually(lambda: cancelled.messages)
    await subscription.cancel()
    await subscription.cancel()
    await one.publish("x", b"2")
    await eventually(lambda: other.data == [b"1", b"2"])
    assert cancelled.data == [b"1"]


async def test_cancel_interrupts_a_running_handler(pair, eventually):
    one, two = pair
    entered, left = asyncio.Event(), asyncio.Event()

    async def stuck(message):
        entered.set()
        try:
            await asyncio.Event().wait()
        finally:
            left.set()

    subscription = await two.subscribe("x", stuck)
    await one.publish("x", b"")
    await asyncio.wait_for(entered.wait(), 10)
    await subscription.cancel()
    assert left.is_set()


async def test_a_handler_may_cancel_its_own_subscription(pair, eventually):
    one, two = pair
    seen, other = [], Recorder()

    async def once(message):
        await subscription.cancel()
        seen.append(message.data)

    subscription = await two.subscribe("x", once)
    await two.subscribe("x", other)
    for data in (b"1", b"2"):
        await one.publish("x", data)
    await eventually(lambda: len(other.messages) == 2 and seen)
    assert seen == [b"1"]


async def test_a_slow_subscriber_loses_messages_and_they_are_counted(network, eventually, caplog):
    gate = asyncio.Event()
    seen = []

    async def slow(message):
        await gate.wait()
        seen.append(int(message.data))

    async with network(name="one") as one, network(name="two", queue_bytes=10_000) as two:
        await two.subscribe("x", slow)
        for number in range(500):
            await one.publish("x", str(number).encode())
        await eventually(lambda: two.statistics().received + two.statistics().dropped == 500)
        kept, dropped = two.statistics().received, two.statistics().dropped
        assert dropped > 400
        gate.set()
        await eventually(lambda: len(seen) == kept)
        assert seen == sorted(set(seen))
        assert one.statistics().dropped == 0
    assert caplog.text.count("too slow") == 1


async def test_many_subscribers(pair, eventually):
    one, two = pair
    recorders = [Recorder() for _ in range(200)]
    for recorder in recorders:
        await two.subscribe("x.*", recorder)
    for number in range(10):
        await one.publish(f"x.{number}", b"")
    await eventually(lambda: all(len(recorder.messages) == 10 for recorder in recorders))


async def test_a_request_gets_the_parts_in_order(pair):
    one, two = pair

    async def answer(data):
        return (data + str(number).encode() for number in range(3))

    await two.serve("svc", answer)
    assert await parts_of(one, "svc", b"part ") == [b"part 0", b"part 1", b"part 2"]


@pytest.mark.parametrize("parts", [[], [b""], [b"", b"x", b""]])
async def test_answers_may_be_empty(pair, parts):
    one, two = pair

    async def answer(data):
        return parts

    await two.serve("svc", answer)
    assert await parts_of(one, "svc") == parts


async def test_a_large_answer_and_a_part_larger_than_any_message(pair):
    one, two = pair
    large = [bytes([number]) * 700_000 for number in range(10)] + [b"x" * 3_000_000]

    async def answer(data):
        return large

    await two.serve("svc", answer)
    assert await parts_of(one, "svc") == large


async def test_concurrent_requests_get_their_own_answers(pair):
    one, two = pair

    async def answer(data):
        await asyncio.sleep(0)
        return [data] * 3

    await two.serve("svc", answer)
    questions = [str(number).encode() for number in range(100)]
    answers = await asyncio.gather(*(parts_of(one, "svc", question) for question in questions))
    assert answers == [[question] * 3 for question in questions]


async def test_a_slow_answer_does_not_hold_up_others(pair):
    one, two = pair
    gate = asyncio.Event()

    async def answer(data):
        if data == b"slow":
            await gate.wait()
        return [data]

    await two.serve("svc", answer)
    slow = asyncio.create_task(parts_of(one, "svc", b"slow", timeout_seconds=20))
    assert await parts_of(one, "svc", b"quick") == [b"quick"]
    assert not slow.done()
    gate.set()
    assert await slow == [b"slow"]


async def test_no_responder_is_said_at_once(pair):
    one, _ = pair
    with pytest.raises(NoResponder, match="nowhere: nobody serves it"):
        await parts_of(one, "nowhere", timeout_seconds=3600)


async def test_no_responder_after_the_server_cancelled(pair, eventually):
    one, two = pair

    async def answer(data):
        return [b"here"]

    serving = await two.serve("svc", answer)
    assert await parts_of(one, "svc") == [b"here"]
    await serving.cancel()
    await two.flush()
    with pytest.raises(NoResponder, match="nobody"):
        await parts_of(one, "svc", timeout_seconds=3600)


async def test_a_failing_server_is_said_to_the_requester(pair):
    one, two = pair

    async def fails(data):
        raise RuntimeError("no snapshot yet")

    async def fails_later(data):
        def parts():
            yield b"first"
            raise RuntimeError("gone")

        return parts()

    await two.serve("svc", fails)
    await two.serve("later", fails_later)
    with pytest.raises(NoResponder, match="no snapshot yet"):
        await parts_of(one, "svc", timeout_seconds=3600)
    with pytest.raises(NoResponder, match="gone"):
        await parts_of(one, "later", timeout_seconds=3600)
    assert two.statistics().handler_errors == 2


async def test_a_silent_server_times_out(pair):
    one, two = pair

    async def silent(data):
        await asyncio.Event().wait()

    await two.serve("svc", silent)
    with pytest.raises(NoResponder, match=r"no answer for 0.05 s"):
        await parts_of(one, "svc", timeout_seconds=0.05)


async def test_the_timeout_is_per_part(pair):
    one, two = pair
    released = asyncio.Event()

    async def answer(data):
        return [b"1", b"2"]

    await two.serve("svc", answer)
    answer_parts = one.request("svc", b"", timeout_seconds=5)
    assert await anext(answer_parts) == b"1"
    released.set()
    assert await anext(answer_parts) == b"2"
    with pytest.raises(StopAsyncIteration):
        await anext(answer_parts)


async def test_a_plain_subscriber_is_no_server(pair):
    one, two = pair
    seen = Recorder()
    await two.subscribe("svc", seen)
    with pytest.raises(NoResponder, match="no answer"):
        await parts_of(one, "svc", b"question", timeout_seconds=0.05)
    assert seen.data == [b"question"]


async def test_of_two_servers_one_answers(pair):
    one, two = pair
    asked = []

    async def answer(data):
        asked.append(data)
        return [b"answer"]

    await one.serve("svc", answer)
    await two.serve("svc", answer)
    assert await parts_of(one, "svc") == [b"answer"]
    assert len(asked) == 1


async def test_a_message_that_is_no_request_is_ignored_by_a_server(pair, eventually):
    one, two = pair
    asked = []

    async def answer(data):
        asked.append(data)
        return []

    await two.serve("svc", answer)
    await one.publish("svc", b"not a request")
    assert await parts_of(one, "svc", b"a request") == []
    assert asked == [b"a request"]


async def test_a_message_over_the_limit_is_dropped_and_counted(pair, eventually):
    one, two = pair
    seen = Recorder()
    await two.subscribe("x", seen)
    await one.publish("x", b"x" * 2_000_000)
    await one.publish("x", b"small")
    await eventually(lambda: seen.messages)
    assert seen.data == [b"small"]
    assert one.statistics().dropped == 1
    assert one.statistics().published == 1


async def test_open_and_close_are_idempotent(network):
    bus = network()
    await bus.open()
    await bus.open()
    assert bus.statistics().connected
    await bus.close()
    await bus.close()
    assert not bus.statistics().connected


async def test_a_closed_bus_drops_counts_and_has_no_responders(network):
    bus = network()
    seen = Recorder()
    async with bus:
        await bus.subscribe("x", seen)
    await bus.publish("x", b"late")
    assert bus.statistics().dropped == 1
    assert seen.messages == []
    with pytest.raises(NoResponder, match="not connected"):
        await parts_of(bus, "svc")


async def test_close_ends_a_request_that_waits(network, eventually):
    asked = asyncio.Event()

    async def silent(data):
        asked.set()
        await asyncio.Event().wait()

    async with network(name="two") as two:
        one = network(name="one")
        await one.open()
        await two.serve("svc", silent)
        request = asyncio.create_task(parts_of(one, "svc", timeout_seconds=3600))
        await asked.wait()
        await one.close()
        with pytest.raises(NoResponder, match="closed"):
            await request


async def test_what_was_published_before_close_arrives(network, eventually):
    seen = Recorder()
    async with network(name="two") as two:
        await two.subscribe("x", seen)
        async with network(name="one") as one:
            for _ in range(1000):
                await one.publish("x", b"1 kB" * 256)
        await eventually(lambda: len(seen.messages) == 1000)


async def test_subscriptions_made_before_open_begin_with_it(network, eventually):
    seen = Recorder()
    bus = network()
    await bus.subscribe("x", seen)
    async with bus:
        await bus.publish("x", b"1")
        await eventually(lambda: seen.messages)


async def test_on_connect_is_called_and_may_fail(network, eventually, caplog):
    called = asyncio.Event()

    async def greet():
        called.set()
        raise RuntimeError("cannot greet")

    async with network(on_connect=greet) as bus:
        await asyncio.wait_for(called.wait(), 10)
        await eventually(lambda: bus.statistics().handler_errors == 1)
        assert bus.statistics().connected
    assert "cannot greet" in caplog.text


async def test_a_bus_says_what_it_is(pair):
    one, _ = pair
    subscription = await one.subscribe("kv.>", Recorder())
    assert "one, connected, 1 subscriptions" in repr(one)
    assert repr(subscription) == "<Delivery kv.>, 0 queued>"
    await subscription.cancel()
    assert repr(subscription) == "<Delivery kv.>, cancelled>"
