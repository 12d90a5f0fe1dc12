"""One rank's payloads, read into a mirror of its cache.

A payload that cannot be had, or read, empties the mirror: removals may be among what is lost. Rather believe nothing than too much.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from .mirror import CacheMirror
from .subscription import Frame
from .wire import DecoderStatistics, EngineStored, EventDecoder, WireError, coalesce

if TYPE_CHECKING:
    from events.messages import CacheEvent

    from .subscription import Delivery

logger = logging.getLogger(__name__)


class RankReader:
    """Applies what a rank's subscription delivers, from its first payload on, to a mirror that begins empty."""

    def __init__(self, worker_id: str, rank: int, block_size: int) -> None:
        self._worker_id = worker_id
        self._rank = rank
        self._decoder = EventDecoder()
        self.mirror = CacheMirror(block_size)
        self.page_sizes: set[int] = set()
        """Of all stores so far, as the engine's events say."""
        self.resets = 0
        """How often the mirror was emptied because payloads were lost or unreadable."""
        self.other_ranks = 0
        """Batches that name another rank than the one whose port they came from."""

    def __repr__(self) -> str:
        return f"<RankReader {self._worker_id}/{self._rank}: {self._decoder.statistics().batches} batches>"

    def read(self, delivery: Delivery) -> list[CacheEvent]:
        """What a delivery changes for routers, in causal order. O(tokens)."""
        if isinstance(delivery, Frame):
            return self._apply(delivery)
        return self._reset(f"events {delivery.first} to {delivery.last} are lost")

    def statistics(self) -> DecoderStatistics:
        """What was read."""
        return self._decoder.statistics()

    def _apply(self, frame: Frame) -> list[CacheEvent]:
        try:
            batch = self._decoder.decode(frame.payload)
        except WireError as error:
            return self._reset(f"event {frame.seq}: {error}")
        if batch.rank is not None and batch.rank != self._rank:
            if not self.other_ranks:
                logger.warning("%r: its port carries events of rank %s", self, batch.rank)
            self.other_ranks += 1
        events = coalesce(batch.events)
        self.page_sizes.update(event.page_size for event in events if isinstance(event, EngineStored))
        return [change for event in events for change in self.mirror.apply(event)]

    def _reset(self, reason: str) -> list[CacheEvent]:
        logger.warning("%r: the mirror is emptied: %s", self, reason)
        self.resets += 1
        return self.mirror.clear()
