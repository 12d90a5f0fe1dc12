"""A log within one process: what tests use in place of JetStream, with the same manners."""

from __future__ import annotations

import time
from collections import deque
from typing import TYPE_CHECKING, NamedTuple

from events.bus import BusUnavailable
from events.bus.log import Kept, Limits, Log, LogError
from events.bus.pattern import Pattern

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from events.bus.delivery import Envelope
    from events.bus.memory import MemoryBroker, MemoryBus


class _Entry(NamedTuple):
    number: int
    stored_at: float
    envelope: Envelope


class Shelf:
    """Where a broker keeps the messages of a pattern; it stays when buses close."""

    def __init__(self, pattern: Pattern, limits: Limits, clock: Callable[[], float]) -> None:
        self.limits = limits
        self.last = 0
        self.entries: deque[_Entry] = deque()
        self._pattern = pattern
        self._clock = clock
        self._bytes = 0

    def __repr__(self) -> str:
        return f"<Shelf of {self._pattern.text}, {len(self.entries)} messages>"

    def take(self, envelope: Envelope) -> None:
        """A message passed. O(1) amortised."""
        if self._pattern.matches(envelope.subject):
            self.last += 1
            self.entries.append(_Entry(self.last, self._clock(), envelope))
            self._bytes += len(envelope.data)
            self.expire()

    def expire(self) -> None:
        """Forget what the limits do not allow. O(forgotten)."""
        oldest = self._clock() - self.limits.max_age_seconds
        while self.entries and (self._bytes > self.limits.max_bytes or self.entries[0].stored_at < oldest):
            self._bytes -= len(self.entries.popleft().envelope.data)

    def trim(self, subject: str, before: int) -> None:
        """Forget a subject's messages before a number. O(n)."""
        kept = [entry for entry in self.entries if entry.envelope.subject != subject or entry.number >= before]
        self.entries = deque(kept)
        self._bytes = sum(len(entry.envelope.data) for entry in kept)


class MemoryLog(Log):
    """What passes a `MemoryBroker`, kept under `name`."""

    def __init__(
        self,
        bus: MemoryBus,
        broker: MemoryBroker,
        name: str,
        pattern: str,
        limits: Limits | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._bus = bus
        self._broker = broker
        self._name = name
        self._pattern = Pattern(pattern)
        self._limits = limits or Limits()
        self._clock = clock

    def __repr__(self) -> str:
        return f"MemoryLog({self._name!r}, {self._pattern.text!r}, {self._limits})"

    async def open(self) -> None:
        """Begin to keep; with other limits, keep what was kept."""
        self._connected()
        shelf = self._broker.shelves.setdefault(self._name, Shelf(self._pattern, self._limits, self._clock))
        shelf.limits = self._limits

    async def append(self, subject: str, data: bytes) -> int:
        """Publish; it is kept at once."""
        shelf = self._shelf()
        await self._bus.publish(subject, data)
        return shelf.last

    async def read(self, subject: str, after: int = 0) -> AsyncIterator[Kept]:
        """What is kept of a subject."""
        shelf = self._shelf()
        shelf.expire()
        for entry in list(shelf.entries):
            if entry.number > after and entry.envelope.subject == subject:
                yield Kept(entry.number, entry.envelope.data)

    async def last(self) -> int:
        """The last number given."""
        return self._shelf().last

    async def trim(self, subject: str, before: int) -> None:
        """Forget a subject's messages before a number."""
        self._shelf().trim(subject, before)

    def _connected(self) -> None:
        if not self._bus.connected:
            raise BusUnavailable(f"{self._bus.name} is not open")

    def _shelf(self) -> Shelf:
        self._connected()
        shelf = self._broker.shelves.get(self._name)
        if shelf is None:
            raise LogError(f"log {self._name}: not found")
        return shelf
