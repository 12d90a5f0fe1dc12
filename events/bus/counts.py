"""What a bus counts while it runs, and the one line in the log for each kind of loss."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field

from events.bus import BusStatistics

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class Counts:
    """Running counts of one bus; `statistics` is their snapshot."""

    bus: str
    """How the log names the bus."""
    published: int = 0
    received: int = 0
    dropped: int = 0
    reconnects: int = 0
    handler_errors: int = 0
    connection_errors: int = 0
    _said: set[str] = field(default_factory=set, repr=False)

    def drop(self, reason: str, messages: int = 1) -> None:
        """Count lost messages; the first loss for a reason is logged, until `speak_again`. O(1)."""
        self.dropped += messages
        self.say(f"dropping messages: {reason}")

    def say(self, text: str) -> None:
        """Log a warning once, until `speak_again`. O(1)."""
        if text not in self._said:
            self._said.add(text)
            logger.warning("%s: %s", self.bus, text)

    def speak_again(self) -> None:
        """A trouble is over: the next one is logged anew. O(1)."""
        self._said.clear()

    def statistics(self, connected: bool) -> BusStatistics:
        """The counts now. O(1)."""
        return BusStatistics(
            published=self.published,
            received=self.received,
            dropped=self.dropped,
            reconnects=self.reconnects,
            connected=connected,
            handler_errors=self.handler_errors,
            connection_errors=self.connection_errors,
        )
