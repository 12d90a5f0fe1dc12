"""Two routers that count each other's requests, however many messages are lost between them."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from events import messages
from events.bus import Received
from events.bus.memory import MemoryBroker, MemoryBus
from events.messages import RequestBooked, RouterChanges, RouterStatement
from router.core import RoutingRequest, Scheduler, Target
from router.core.policy import create
from router.service import replicas as replicas_module
from router.service.replicas import Replicas

if TYPE_CHECKING:
    import pytest

    from router.core import TargetState

BLOCK_SIZE = 4
TARGETS = (Target("w0"), Target("w1"))


class Wire(MemoryBus):
    """A bus that keeps what is sent, for the test to deliver or to lose."""

    def __init__(self) -> None:
        super().__init__(MemoryBroker())
        self.sent: deque[bytes] = deque()

    async def publish(self, subject: str, data: bytes) -> None:
        self.sent.append(data)


class Router:
    """A scheduler and its replicas, with time and network in the test's hands."""

    def __init__(self, name: str) -> None:
        self.now = 0.0
        self.wire = Wire()
        self.scheduler = Scheduler(create("warm"), BLOCK_SIZE, seed=1)
        for target in TARGETS:
            self.scheduler.add_target(target, capacity_tokens=4000, model="m")
        self.replicas = Replicas(self.wire, self.scheduler, namespace="n", clock=lambda: self.now, router_id=name)
        self.scheduler.observers = [self.replicas]

    def place(self, request_id: str, tokens: int = 41) -> Target:
        hashes = np.arange(1, tokens // BLOCK_SIZE + 1, dtype=np.uint64)
        return self.scheduler.place(RoutingRequest(request_id, hashes, tokens), self.now).target

    async def hear(self, data: bytes) -> None:
        await self.replicas._hear(Received("s", data))

    async def say(self) -> list[bytes]:
        await self.replicas._send_waiting()
        return self.taken()

    async def state(self) -> list[bytes]:
        await self.replicas._send_statement()
        return self.taken()

    def taken(self) -> list[bytes]:
        sent = list(self.wire.sent)
        self.wire.sent.clear()
        return sent

    def states(self) -> dict[Target, TargetState]:
        return {state.target: state for state in self.scheduler.targets()}


async def acquainted() -> tuple[Router, Router]:
    """Two routers that have heard of each other."""
    a, b = Router("a"), Router("b")
    for data in await a.state():
        await b.hear(data)
    for data in await b.state():
        await a.hear(data)
    return a, b


async def test_what_one_books_loads_the_other_and_is_freed_there() -> None:
    a, b = await acquainted()
    target = a.place("r")
    for data in await a.say():
        await b.hear(data)
    mine, theirs = a.states()[target], b.states()[target]
    assert (theirs.requests, theirs.requests_elsewhere) == ([], 1)
    assert (theirs.prefill_tokens, theirs.decode_blocks, theirs.context_tokens) == (41, 10, 41)
    assert (mine.prefill_tokens, mine.decode_blocks, mine.context_tokens) == (41, 10, 41)
    assert theirs.predicted_blocks == mine.predicted_blocks == 10  # the prompt is on its way there, for both
    a.scheduler.first_token("r", 0, 1.0)
    for data in await a.say():
        await b.hear(data)
    assert b.states()[target].prefill_tokens == 0
    a.scheduler.free("r", 2.0)
    for data in await a.say():
        await b.hear(data)
    assert b.states()[target].requests_elsewhere == b.states()[target].context_tokens == 0
    assert b.scheduler.statistics().unknown_requests == b.replicas.statistics().healed == 0
    assert b.scheduler.statistics().expected_cached_tokens == 0  # accuracy is counted by who decided


async def test_a_router_knows_what_crosses_its_bookings_and_what_was_only_made_up_for() -> None:
    a, b = await acquainted()
    for number in range(50):
        a.now = b.now = float(number)
        a.place(f"r{number}")
        b.place(f"r{number}")
        a.now = b.now = number + 0.003
        for data in await a.say():
            await b.hear(data)
        await b.say()  # lost
        for data in await b.state():
            await a.hear(data)
    assert b.replicas.statistics().unheard > 0.8
    assert a.replicas.statistics().unheard == 0
    await b.hear(messages.encode(RouterStatement("a", 999, 0, 1, [], leaving=True)))
    assert b.replicas.statistics()[1:4] == (0, 0, 0)  # others, bookings, unheard: alone


async def test_two_routers_do_not_choose_the_same_idle_worker() -> None:
    a, b = await acquainted()
    first = a.place("r")
    for data in await a.say():
        await b.hear(data)
    hashes = np.arange(1001, 1011, dtype=np.uint64)
    assert b.scheduler.place(RoutingRequest("s", hashes, 41), b.now).target != first


async def test_nothing_but_statements_is_said_while_nobody_listens() -> None:
    a = Router("a")
    a.place("r")
    assert await a.say() == []
    (statement,) = [messages.decode(data) for data in await a.state()]
    assert isinstance(statement, RouterStatement)
    assert [said.request_id for said in statement.booked] == ["r"]


async def test_the_own_echo_is_ignored() -> None:
    a, _ = await acquainted()
    a.place("r")
    for data in [*await a.say(), *await a.state()]:
        await a.hear(data)
    assert a.scheduler.statistics().requests_elsewhere == 0
    assert a.replicas.statistics().others == 1


async def test_a_worker_that_leaves_takes_its_bookings_from_both() -> None:
    a, b = await acquainted()
    target = a.place("r")
    for data in await a.say():
        await b.hear(data)
    a.scheduler.remove_target(target)
    for data in await a.say():
        await b.hear(data)
    assert b.scheduler.statistics().requests_elsewhere == 0


async def test_a_booking_on_a_worker_not_seen_yet_comes_with_the_next_statement() -> None:
    a, b = await acquainted()
    b.scheduler.remove_target(TARGETS[0])
    b.scheduler.remove_target(TARGETS[1])
    a.place("r")
    for data in await a.say():
        await b.hear(data)
    assert b.replicas.statistics().unknown_targets == 1
    for target in TARGETS:
        b.scheduler.add_target(target, capacity_tokens=4000, model="m")
    for data in await a.state():
        await b.hear(data)
    assert b.scheduler.statistics().requests_elsewhere == 1


async def test_a_router_that_falls_silent_is_forgotten_with_all_it_had(caplog: pytest.LogCaptureFixture) -> None:
    a, b = await acquainted()
    a.place("r")
    for data in await a.say():
        await b.hear(data)
    b.replicas._expire(replicas_module.EXPIRY_SECONDS)
    assert b.scheduler.statistics().requests_elsewhere == 1
    b.replicas._expire(replicas_module.EXPIRY_SECONDS + 0.1)
    assert b.scheduler.statistics().requests_elsewhere == b.replicas.statistics().others == 0
    assert b.replicas.statistics().expired == 1


async def test_a_statement_in_parts_counts_when_it_is_complete() -> None:
    _, b = await acquainted()
    said = [RequestBooked(f"r{n}", "w0", 0, 10, 10) for n in range(4)]
    first, second = (RouterStatement("a", 7, part, 2, said[2 * part : 2 * part + 2]) for part in range(2))
    await b.hear(messages.encode(first))
    assert b.scheduler.statistics().requests_elsewhere == 0
    await b.hear(messages.encode(RouterStatement("a", 8, 0, 2, said[:1])))  # the rest of 7 was lost
    await b.hear(messages.encode(second))
    assert b.scheduler.statistics().requests_elsewhere == 0
    await b.hear(messages.encode(RouterStatement("a", 9, 0, 1, said)))
    assert b.scheduler.statistics().requests_elsewhere == 4


async def test_a_router_with_another_block_size_is_load_all_the_same() -> None:
    _, b = await acquainted()
    change = RequestBooked("r", "w0", 0, 10, 10, hashes=bytes(8 * 100))
    await b.hear(messages.encode(RouterChanges("a", [change])))
    await b.hear(b"nonsense")
    assert b.states()[TARGETS[0]].prefill_tokens == 10
    assert b.replicas.statistics().misfits == 2


REQUESTS = st.integers(0, 5)
STEP = st.tuples(st.sampled_from(["place", "first", "free", "leave", "say"]), REQUESTS)


@given(st.lists(st.tuples(STEP, st.booleans()), max_size=40))
@settings(max_examples=150)
def test_whatever_is_lost_a_statement_heals(history: list[tuple[tuple[str, int], bool]]) -> None:
    async def run() -> None:
        a, b = await acquainted()
        for (step, number), delivered in history:
            request_id, a.now = f"r{number}", a.now + 1
            if step == "place" and not a.scheduler.is_booked(request_id):
                a.place(request_id, 10 + number)
            elif step == "first":
                a.scheduler.first_token(request_id, None, a.now)
            elif step == "free":
                a.scheduler.free(request_id, a.now)
            elif step == "leave":
                a.scheduler.remove_target(TARGETS[0])
                a.scheduler.add_target(TARGETS[0], capacity_tokens=4000, model="m")
            for data in await a.say():
                if delivered:
                    await b.hear(data)
        for data in await a.state():
            await b.hear(data)
        for target in TARGETS:
            mine, theirs = a.states()[target], b.states()[target]
            assert theirs.requests_elsewhere == len(mine.requests)
            assert theirs.context_tokens == mine.context_tokens
            assert theirs.prefill_tokens == mine.prefill_tokens
        b.scheduler._check()

    asyncio.run(run())


async def test_over_a_bus_they_find_each_other_and_part(eventually) -> None:
    broker = MemoryBroker()
    a, b = Router("a"), Router("b")
    async with MemoryBus(broker) as bus_a, MemoryBus(broker) as bus_b:
        for router, bus in ((a, bus_a), (b, bus_b)):
            router.replicas._bus = bus
            router.scheduler.observers.clear()
            await router.replicas.open()
        await eventually(lambda: a.replicas.statistics().others == b.replicas.statistics().others == 1)
        a.place("r")
        await eventually(lambda: b.scheduler.statistics().requests_elsewhere == 1)
        await a.replicas.close()
        await eventually(lambda: b.replicas.statistics().others == b.scheduler.statistics().requests_elsewhere == 0)
        await b.replicas.close()
