"""A bus within one process: what tests and the simulator use in place of NATS, with the same manners."""

from __future__ import annotations

from typing import TYPE_CHECKING

from events.bus.answer import NOBODY, failure
from events.bus.exchange import QUEUE_BYTES, Exchange

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from events.bus.answer import Inbox
    from events.bus.delivery import Delivery, Envelope
    from events.bus.memory_log import Shelf

MAX_MESSAGE_BYTES = 1024 * 1024  # as a NATS server has it


class MemoryBroker:
    """Where the buses of one process meet; all of them on one event loop."""

    def __init__(self) -> None:
        self._deliveries: dict[Delivery, None] = {}  # an ordered set
        self._inboxes: dict[str, Inbox] = {}
        self.shelves: dict[str, Shelf] = {}
        """What is kept of the messages that pass, by name; see `events.bus.memory_log`."""

    def join(self, inbox: Inbox) -> None:
        """A bus opened: answers to its requests go to its inbox. O(1)."""
        self._inboxes[inbox.prefix] = inbox

    def leave(self, inbox: Inbox) -> None:
        """It closed. O(1)."""
        self._inboxes.pop(inbox.prefix, None)

    def add(self, delivery: Delivery) -> None:
        """Offer a delivery all that its pattern matches, from now on. O(1)."""
        self._deliveries[delivery] = None

    def discard(self, delivery: Delivery) -> None:
        """Offer it nothing more. O(1)."""
        self._deliveries.pop(delivery, None)

    def route(self, envelope: Envelope) -> None:
        """Offer an envelope to whom it concerns; tell a requester if that is nobody. O(subscriptions)."""
        inbox = self._inboxes.get(envelope.subject.rpartition(".")[0])
        if inbox is not None:
            inbox.take(envelope.subject, envelope.data)
            return
        for shelf in self.shelves.values():
            shelf.take(envelope)
        concerned = list(self._concerned(envelope.subject))
        for delivery in concerned:
            delivery.offer(envelope)
        if envelope.reply and not concerned:
            self.route(envelope._replace(subject=envelope.reply, data=failure(NOBODY), reply=""))

    def _concerned(self, subject: str) -> Iterator[Delivery]:
        served: set[str] = set()  # of shared deliveries, the first of a pattern gets all
        for delivery in self._deliveries:
            if delivery.pattern.matches(subject) and delivery.pattern.text not in served:
                if delivery.shared:
                    served.add(delivery.pattern.text)
                yield delivery

    def __repr__(self) -> str:
        return f"<MemoryBroker, {len(self._deliveries)} subscriptions>"


class MemoryBus(Exchange):
    """A bus over a `MemoryBroker`; without one it talks to itself alone."""

    def __init__(
        self,
        broker: MemoryBroker | None = None,
        name: str = "memory",
        *,
        on_connect: Callable[[], Awaitable[None]] | None = None,
        queue_bytes: int = QUEUE_BYTES,
    ) -> None:
        super().__init__(name, queue_bytes, on_connect)
        self._broker = broker if broker is not None else MemoryBroker()
        self._open = False

    @property
    def connected(self) -> bool:
        """Whether it is open."""
        return self._open

    async def open(self) -> None:
        """Join the broker; subscriptions made before begin. Idempotent."""
        if self._open:
            return
        self._open = True
        self._broker.join(self._inbox)
        for delivery in self._deliveries:
            self._broker.add(delivery)
        self._start_greeting()
        self._came.set()

    async def close(self) -> None:
        """Cancel all subscriptions and leave the broker. Idempotent."""
        if not self._open:
            return
        self._open = False
        await self._stop_greeting()
        await self._cancel_deliveries()
        self._broker.leave(self._inbox)
        self._inbox.fail_all("the bus was closed")

    async def flush(self) -> None:
        """Nothing to wait for: what was published is already in its subscribers' queues."""

    async def _send(self, envelope: Envelope) -> bool:
        if not self._open:
            self._counts.drop("the bus is not open")
            return False
        if len(envelope.data) > MAX_MESSAGE_BYTES:
            self._counts.drop(f"a message is larger than {MAX_MESSAGE_BYTES} bytes")
            return False
        self._broker.route(envelope)
        return True

    async def _attach(self, delivery: Delivery) -> None:
        if self._open:
            self._broker.add(delivery)

    async def _detach(self, delivery: Delivery) -> None:
        self._broker.discard(delivery)
