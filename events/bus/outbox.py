"""Messages that wait for a connection: first in, first out, bounded in bytes."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from events.bus.delivery import OVERHEAD_BYTES

if TYPE_CHECKING:
    from events.bus.delivery import Envelope


class Outbox:
    """A bounded queue of envelopes.

    >>> from events.bus.delivery import Envelope
    >>> outbox = Outbox(limit_bytes=300)
    >>> outbox.add(Envelope("a", b"first")), outbox.add(Envelope("a", b"does not fit"))
    (True, False)
    """

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._bytes = 0
        self._envelopes: deque[Envelope] = deque()

    def add(self, envelope: Envelope) -> bool:
        """Append; False: there is no room. O(1)."""
        size = len(envelope.data) + OVERHEAD_BYTES
        if self._bytes + size > self._limit_bytes:
            return False
        self._bytes += size
        self._envelopes.append(envelope)
        return True

    def first(self) -> Envelope:
        """The oldest one, still in the queue. O(1)."""
        return self._envelopes[0]

    def pop(self) -> Envelope:
        """Take the oldest one out. O(1)."""
        envelope = self._envelopes.popleft()
        self._bytes -= len(envelope.data) + OVERHEAD_BYTES
        return envelope

    def clear(self) -> int:
        """Throw all away: how many those were. O(n)."""
        count = len(self._envelopes)
        self._envelopes.clear()
        self._bytes = 0
        return count

    def __len__(self) -> int:
        return len(self._envelopes)
