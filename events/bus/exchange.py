"""What every bus does above bare messages: deliver in order, ask and answer. A transport below it only carries envelopes."""

from __future__ import annotations

import abc
import asyncio
import logging
import uuid
from typing import TYPE_CHECKING

from events.bus import Bus, BusStatistics, NoResponder, Received, Subscription
from events.bus.answer import Inbox, Responder
from events.bus.counts import Counts
from events.bus.delivery import Delivery, Envelope
from events.bus.pattern import Pattern, check_subject

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterable

logger = logging.getLogger(__name__)

QUEUE_BYTES = 64 * 1024 * 1024


class Exchange(Bus):
    """The common half of all buses."""

    def __init__(self, name: str, queue_bytes: int, on_connect: Callable[[], Awaitable[None]] | None) -> None:
        self.name = name
        self.on_connect = on_connect
        """Called after each connect, the first included, when all subscriptions stand: messages may have been missed before."""
        self._queue_bytes = queue_bytes
        self._counts = Counts(name)
        self._inbox = Inbox(f"_INBOX.{uuid.uuid4().hex}")
        self._deliveries: dict[Delivery, None] = {}  # an ordered set
        self._came = asyncio.Event()
        self._greeter: asyncio.Task[None] | None = None

    # What a transport gives

    @abc.abstractmethod
    async def _send(self, envelope: Envelope) -> bool:
        """Carry an envelope as far as possible without waiting for subscribers. False: dropped, and counted."""

    @abc.abstractmethod
    async def _attach(self, delivery: Delivery) -> None:
        """Begin to offer a delivery its messages."""

    @abc.abstractmethod
    async def _detach(self, delivery: Delivery) -> None:
        """Offer it nothing more."""

    @property
    @abc.abstractmethod
    def connected(self) -> bool:
        """Whether the broker is there."""

    # What is the same for all

    async def publish(self, subject: str, data: bytes) -> None:
        """Send to all current subscribers. O(size).

        :raises ValueError: the subject is malformed.
        """
        if await self._send(Envelope(check_subject(subject), data)):
            self._counts.published += 1

    async def subscribe(self, pattern: str, handler: Callable[[Received], Awaitable[None]]) -> Subscription:
        """Call `handler` for each message, one at a time, in order. Connected: it misses nothing published after this returns.

        :raises ValueError: the pattern is malformed.
        """

        async def hand(message: Envelope) -> None:
            await handler(Received(message.subject, message.data))

        return await self._deliver(Pattern(pattern), hand, self._forget)

    async def serve(self, subject: str, answer: Callable[[bytes], Awaitable[Iterable[bytes]]]) -> Subscription:
        """Answer requests, several at a time; of several servers of a subject, one answers.

        :raises ValueError: the subject is malformed.
        """
        responder = Responder(check_subject(subject), answer, self._reply, self._counts)

        async def detach(requests: Delivery) -> None:
            await responder.cancel()
            await self._forget(requests)

        return await self._deliver(Pattern(subject), responder.take, detach, shared=True)

    async def request(self, subject: str, data: bytes, timeout_seconds: float = 2.0) -> AsyncIterator[bytes]:
        """The parts of the answer, in order and complete.

        :raises NoResponder: nobody serves the subject, the bus is not connected, the server failed, a piece of the answer was
            lost, or none came for `timeout_seconds`.
        :raises ValueError: the subject is malformed.
        """
        check_subject(subject)
        if not self.connected:
            raise NoResponder(f"{subject}: {self.name} is not connected")
        reply, answer = self._inbox.open(subject)
        try:
            await self._send(Envelope(subject, data, reply))
            async for part in answer.parts(timeout_seconds):
                yield part
        finally:
            self._inbox.forget(reply)

    def statistics(self) -> BusStatistics:
        """Counts since the bus was made. O(1)."""
        return self._counts.statistics(self.connected)

    async def _deliver(
        self,
        pattern: Pattern,
        handler: Callable[[Envelope], Awaitable[None]],
        detach: Callable[[Delivery], Awaitable[None]],
        *,
        shared: bool = False,
    ) -> Delivery:
        delivery = Delivery(pattern, handler, detach, self._counts, self._queue_bytes, shared=shared)
        self._deliveries[delivery] = None
        await self._attach(delivery)
        return delivery

    async def _forget(self, delivery: Delivery) -> None:
        self._deliveries.pop(delivery, None)
        await self._detach(delivery)

    async def _reply(self, subject: str, frame: bytes) -> bool:
        return await self._send(Envelope(subject, frame))

    async def _cancel_deliveries(self) -> None:
        for delivery in list(self._deliveries):
            await delivery.cancel()

    # on_connect runs in a task of its own, one call at a time: a slow one neither holds up the connection nor overlaps itself

    def _start_greeting(self) -> None:
        self._greeter = asyncio.create_task(self._greet(), name=f"{self.name}: on_connect")

    async def _stop_greeting(self) -> None:
        if self._greeter is not None and self._greeter is not asyncio.current_task():
            self._greeter.cancel()
            await asyncio.wait({self._greeter})
        self._greeter = None

    async def _greet(self) -> None:
        while True:
            await self._came.wait()
            self._came.clear()
            if self.on_connect is None:
                continue
            try:
                await self.on_connect()
            except Exception:  # the next connect must be greeted again
                self._counts.handler_errors += 1
                logger.exception("%s: on_connect failed", self.name)

    def __repr__(self) -> str:
        state = "connected" if self.connected else "not connected"
        return f"<{type(self).__name__} {self.name}, {state}, {len(self._deliveries)} subscriptions>"
