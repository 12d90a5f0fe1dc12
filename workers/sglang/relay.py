"""One rank's mirror on the bus: its changes as they happen, and all of it on request.

The mirror and the sequence number change together, without an await between them, so a snapshot's watermark is always exact: it
covers what is applied, published or not.
"""

from __future__ import annotations

import asyncio
import logging
import time
from itertools import groupby
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import msgspec

from events import messages, subjects
from events.messages import BlocksStored, CacheCleared, CacheEvent, KvEvents, KvMark, SnapshotChunk, SnapshotRequest

from .mirror import CacheMirror, MirrorStatistics
from .subscription import Frame, SubscriptionStatistics
from .wire import DecoderStatistics, EngineStored, EventDecoder, WireError, coalesce

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from events.bus import Bus, Subscription
    from events.membership import WorkerCard

    from .subscription import Delivery

logger = logging.getLogger(__name__)

HASH_BYTES = 8
MESSAGE_HASHES = 32_768
"""Most hashes in one message: 256 KiB, a quarter of what a NATS server takes."""
_EVENT_HASHES = 2  # an event's own bytes, as so many hashes

Change = TypeVar("Change", BlocksStored, CacheEvent)


class RelayStatistics(NamedTuple):
    """One rank's way from the engine to the bus."""

    seq: int
    """Last event message; -1 before the first."""
    snapshots: int
    resets: int
    """How often the mirror was emptied because events were lost or unreadable."""
    other_ranks: int
    """Batches that name another rank than the one whose port they came from."""
    decoder: DecoderStatistics
    mirror: MirrorStatistics


class RankRelay:
    """Publishes what changes in one rank's cache, and answers snapshot requests."""

    def __init__(self, bus: Bus, namespace: str, card: WorkerCard, rank: int) -> None:
        self._bus = bus
        self._card = card
        self._rank = rank
        self._subject = subjects.kv(namespace, card.worker_id, rank)
        self._mark_subject = subjects.mark(namespace, card.worker_id, rank)
        self._snapshot_subject = subjects.snapshot(namespace, card.worker_id, rank)
        self._decoder = EventDecoder()
        self._mirror = CacheMirror(card.block_size)
        self._serving: Subscription | None = None
        self._seq = -1
        self._published_bytes = 0
        self.page_sizes: set[int] = set()
        """Of all stores so far, as the engine's events say."""
        self._snapshots = self._resets = self._other_ranks = 0

    def __repr__(self) -> str:
        return f"<RankRelay {self._card.worker_id}/{self._rank} epoch={self._card.epoch} seq={self._seq}>"

    async def open(self) -> None:
        """Answer snapshot requests from now on."""
        self._serving = await self._bus.serve(self._snapshot_subject, self._snapshot)

    async def close(self) -> None:
        """Answer no more; idempotent."""
        if self._serving is not None:
            await self._serving.cancel()
            self._serving = None

    async def restore(self, history: Iterable[Delivery]) -> None:
        """Take what the engine did before anybody knew of this epoch: nobody needs to hear it, snapshots hold it.

        To be awaited before `open`: half a history is no truth. A long one takes seconds, and lets others run meanwhile.
        """
        for delivery in history:
            self._changes([delivery])
            await asyncio.sleep(0)

    async def relay(self, deliveries: Iterable[Delivery]) -> None:
        """Apply what the engine did, and publish what that changed, in as few messages as hold it."""
        encoded = [messages.encode(message) for message in self._numbered(self._changes(deliveries))]
        self._published_bytes += sum(map(len, encoded))
        for data in encoded:
            await self._bus.publish(self._subject, data)

    @property
    def seq(self) -> int:
        """Last event message; -1 before the first."""
        return self._seq

    def holds(self, hashes: list[int]) -> bool:
        """Whether all these blocks are held on the device. O(n)."""
        return self._mirror.holds(hashes)

    @property
    def published_bytes(self) -> int:
        """Size of all event messages so far."""
        return self._published_bytes

    async def mark(self, engine: SubscriptionStatistics) -> None:
        """Say where the events stand, and how the way from the engine was."""
        await self._bus.publish(self._mark_subject, messages.encode(self._mark(engine)))

    def _mark(self, engine: SubscriptionStatistics) -> KvMark:
        return KvMark(
            self._card.worker_id,
            self._rank,
            self._card.epoch,
            self._seq,
            published_at=time.time(),
            orphans=self._mirror.statistics().waiting_pages,
            gaps=engine.gaps,
            lost=engine.lost,
            resets=self._resets,
            unreadable=sum(self._decoder.statistics().ignored.values()),
        )

    def statistics(self) -> RelayStatistics:
        """Counts since this life of the engine began, and what is held now."""
        return RelayStatistics(
            self._seq,
            self._snapshots,
            self._resets,
            self._other_ranks,
            self._decoder.statistics(),
            self._mirror.statistics(),
        )

    def _changes(self, deliveries: Iterable[Delivery]) -> list[CacheEvent]:
        changes: list[CacheEvent] = []
        for delivery in deliveries:
            if isinstance(delivery, Frame):
                changes += self._apply(delivery)
            else:
                changes += self._reset(f"events {delivery.first} to {delivery.last} are lost")
        return changes

    def _apply(self, frame: Frame) -> list[CacheEvent]:
        try:
            batch = self._decoder.decode(frame.payload)
        except WireError as error:
            return self._reset(f"event {frame.seq}: {error}")
        if batch.rank is not None and batch.rank != self._rank:
            if not self._other_ranks:
                logger.warning("%r: its port carries events of rank %s", self, batch.rank)
            self._other_ranks += 1
        events = coalesce(batch.events)
        self.page_sizes.update(event.page_size for event in events if isinstance(event, EngineStored))
        return [change for event in events for change in self._mirror.apply(event)]

    def _reset(self, reason: str) -> list[CacheEvent]:
        """Removals may be among what is lost: rather believe nothing than too much."""
        logger.warning("%r: the mirror is emptied: %s", self, reason)
        self._resets += 1
        return self._mirror.clear()

    def _numbered(self, changes: list[CacheEvent]) -> Iterator[KvEvents]:
        for events in _messages_of(changes):
            self._seq += 1
            card = self._card
            yield KvEvents(card.worker_id, self._rank, card.epoch, self._seq, events, published_at=time.time())

    async def _snapshot(self, data: bytes) -> list[bytes]:
        request = messages.decode(data)
        if not isinstance(request, SnapshotRequest):
            raise TypeError(f"expected a SnapshotRequest, got {type(request).__name__}")
        if (request.worker_id, request.rank) != (self._card.worker_id, self._rank):
            raise ValueError(f"{request} was asked of {self!r}: two worker ids share a subject")
        self._snapshots += 1
        return [messages.encode(chunk) for chunk in self.snapshot()]

    def snapshot(self, position: int = 0) -> list[SnapshotChunk]:
        """All that is held now, with the position in a log of events to note in it. O(blocks)."""
        chunks = list(_messages_of(self._mirror.held())) or [[]]
        card = self._card
        return [
            SnapshotChunk(card.worker_id, self._rank, card.epoch, self._seq, index, len(chunks), list(chunk), position)
            for index, chunk in enumerate(chunks)
        ]


def _messages_of(changes: Iterable[Change]) -> Iterator[list[Change]]:
    """The changes in order, in lists that a message has room for."""
    message: list[Change] = []
    room = MESSAGE_HASHES
    for change in _cut(_joined(changes)):
        size = _EVENT_HASHES + len(_hashes(change)) // HASH_BYTES
        if message and size > room:
            yield message
            message, room = [], MESSAGE_HASHES
        message.append(change)
        room -= size
    if message:
        yield message


def _joined(changes: Iterable[Change]) -> Iterator[Change]:
    """Neighbours of one kind and tier become one."""
    for _, group in groupby(changes, lambda change: (type(change), getattr(change, "tier", None))):
        first, *others = group
        yield _with_hashes(first, b"".join(map(_hashes, (first, *others)))) if others else first


def _cut(changes: Iterable[Change]) -> Iterator[Change]:
    """What is longer than a message becomes several."""
    longest = (MESSAGE_HASHES - _EVENT_HASHES) * HASH_BYTES
    for change in changes:
        hashes = _hashes(change)
        if len(hashes) <= longest:
            yield change
        else:
            for start in range(0, len(hashes), longest):
                yield _with_hashes(change, hashes[start : start + longest])


def _hashes(change: CacheEvent) -> bytes:
    return b"" if isinstance(change, CacheCleared) else change.hashes


def _with_hashes(change: Change, hashes: bytes) -> Change:
    return change if isinstance(change, CacheCleared) else msgspec.structs.replace(change, hashes=hashes)
