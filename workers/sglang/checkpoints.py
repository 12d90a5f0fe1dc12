"""One rank's checkpoints: snapshots kept at the broker, often enough that what follows the last one stays short."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING, NamedTuple

from events.bus import BusError

if TYPE_CHECKING:
    from events.history import History

    from .relay import RankRelay

logger = logging.getLogger(__name__)


class CheckpointPace(NamedTuple):
    """When a checkpoint is due."""

    look_seconds: float = 1.0
    """How often that is asked."""
    least_bytes: int = 256 * 1024
    """After so many bytes of events, or as many as the last checkpoint had, whichever is more."""
    changed_seconds: float = 30.0
    """After so long, if anything changed."""
    always_seconds: float = 900.0
    """After so long in any case: before the log forgets the last one by its age."""
    retry_seconds: float = 5.0


class CheckpointStatistics(NamedTuple):
    """Counts since this life of the engine began."""

    written: int
    failed: int


class RankCheckpoints:
    """Writes a rank's checkpoints for as long as it runs."""

    def __init__(self, relay: RankRelay, history: History, pace: CheckpointPace | None = None) -> None:
        self._relay = relay
        self._history = history
        self._pace = pace or CheckpointPace()
        self._size = 0
        self._bytes = 0  # the relay's count at the last checkpoint; so the next three
        self._seq = -1
        self._rebuilds = 0
        self._at = 0.0
        self._written = self._failed = 0
        self._troubled = False

    def __repr__(self) -> str:
        return f"<RankCheckpoints of {self._relay!r}, {self._written} written>"

    async def run(self) -> None:
        """The first at once, then one whenever it is due, until cancelled."""
        while True:
            written = await self._write() if self.due() else True
            await asyncio.sleep(self._pace.look_seconds if written else self._pace.retry_seconds)

    def due(self) -> bool:
        """Whether it is time. O(1)."""
        if not self._written or self._relay.rebuilds != self._rebuilds:
            return True
        age = time.monotonic() - self._at
        if self._relay.published_bytes - self._bytes >= max(self._pace.least_bytes, self._size):
            return True
        return age >= (self._pace.changed_seconds if self._relay.seq > self._seq else self._pace.always_seconds)

    def statistics(self) -> CheckpointStatistics:
        """The counts now."""
        return CheckpointStatistics(self._written, self._failed)

    async def _write(self) -> bool:
        before = self._relay.published_bytes, self._relay.seq, self._relay.rebuilds
        try:
            if self._troubled or not self._written:
                await self._history.open()
            self._size = await self._history.write(self._relay.snapshot)
        except BusError as error:
            self._failed += 1
            if not self._troubled:
                logger.warning("%r: no checkpoint can be kept: %s", self._relay, error)
            self._troubled = True
            return False
        self._bytes, self._seq, self._rebuilds = before
        self._at = time.monotonic()
        self._written += 1
        self._troubled = False
        return True
