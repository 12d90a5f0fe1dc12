"""Publish, subscribe, request: the one interface, and its implementations.

`NatsBus` (NATS core: fast, at most once) and `MemoryBus` (one process; what tests and the simulator use). Both pass the same
conformance suite, `tests/events/test_bus.py`. Delivery is at most once and in order per publisher; what must not be lost carries a
sequence number of its own (see `events.stream`).
"""

from __future__ import annotations

import abc
from typing import TYPE_CHECKING, NamedTuple, Self

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
    from types import TracebackType


class BusError(Exception):
    """Base of the bus's errors."""


class BusUnavailable(BusError):
    """The broker cannot be reached."""


class NoResponder(BusError):
    """Nobody serves the subject of a request, or the answer broke off."""


class Received(NamedTuple):
    """A message as delivered."""

    subject: str
    data: bytes


class BusStatistics(NamedTuple):
    """Counts since the bus was opened."""

    published: int
    received: int
    dropped: int
    """Messages this client lost: a full buffer while disconnected, or a subscriber too slow."""
    reconnects: int
    connected: bool
    handler_errors: int = 0
    """Exceptions that handlers, servers and `on_connect` raised."""
    connection_errors: int = 0
    """Faults of the connection: failed attempts to connect, and what the broker complained of."""


class Subscription(abc.ABC):
    """A running subscription."""

    @abc.abstractmethod
    async def cancel(self) -> None:
        """Stop delivery; idempotent. No handler runs after it returns."""


class Bus(abc.ABC):
    """Publish, subscribe and request, as an async context manager.

    A subject is dot-separated; a pattern may hold `*` (one token) and end in `>` (one or more).
    """

    @abc.abstractmethod
    async def open(self) -> None:
        """Connect. Idempotent.

        :raises BusUnavailable: the broker did not answer in time.
        """

    @abc.abstractmethod
    async def close(self) -> None:
        """Deliver what is buffered if the broker is there, then disconnect. Idempotent."""

    @abc.abstractmethod
    async def publish(self, subject: str, data: bytes) -> None:
        """Send to all current subscribers; never waits for them. While disconnected a bounded buffer holds messages; what
        does not fit is dropped and counted, never raised.
        """

    @abc.abstractmethod
    async def subscribe(self, pattern: str, handler: Callable[[Received], Awaitable[None]]) -> Subscription:
        """Call `handler` for each message, one at a time, in order. An exception in it is counted and logged, and delivery goes on.
        Survives reconnects.
        """

    @abc.abstractmethod
    async def serve(self, subject: str, answer: Callable[[bytes], Awaitable[Iterable[bytes]]]) -> Subscription:
        """Answer requests: each part that `answer` returns is sent in order, then the end of the answer."""

    @abc.abstractmethod
    def request(self, subject: str, data: bytes, timeout_seconds: float = 2.0) -> AsyncIterator[bytes]:
        """The parts of the answer, in order.

        :raises NoResponder: nobody serves the subject, the server failed, or no part came for `timeout_seconds`.
        """

    @abc.abstractmethod
    async def flush(self) -> None:
        """Wait until the broker has taken all that was published.

        :raises BusUnavailable: it does not answer.
        """

    @abc.abstractmethod
    def statistics(self) -> BusStatistics:
        """Counts since the bus was opened."""

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()
