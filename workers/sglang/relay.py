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

from .doubts import Doubts
from .reader import RankReader
from .subscription import Frame, SubscriptionStatistics

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from events.bus import Bus, Subscription
    from events.membership import WorkerCard

    from .mirror import MirrorStatistics
    from .subscription import Delivery
    from .wire import DecoderStatistics

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
    doubts: int
    """Snapshot requests of routers that do not believe the mirror any more."""
    rebuilds: int
    """How often the mirror was built anew for them."""
    corrections: int
    """Of those, how often it had been wrong for certain."""
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
        self._reader = self._new_reader()
        self._doubts = Doubts()
        self._serving: Subscription | None = None
        self._seq = -1
        self._published_bytes = 0
        self._snapshots = self._rebuilds = self._corrections = 0

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
        await self._publish(self._changes(deliveries))

    @property
    def doubted(self) -> bool:
        """Whether a router does not believe the mirror any more, and it was not built anew since."""
        return self._doubts.pending

    async def rebuild(self, whole: Iterable[Delivery]) -> None:
        """Build the mirror anew, and publish all of it if it differs.

        The doubted one serves until the new one stands. Both are in memory then, and others run meanwhile.

        :param whole: all that was delivered to this relay so far, as far as it is still to be had.
        """
        reader, complete = self._new_reader(), True
        for delivery in whole:
            reader.read(delivery)
            complete = complete and isinstance(delivery, Frame)
            await asyncio.sleep(0)
        await self._publish(self._replaced(reader, complete))

    async def _publish(self, changes: list[CacheEvent]) -> None:
        """All are numbered before the first one leaves: mirror and number change together."""
        encoded = [messages.encode(message) for message in self._numbered(changes)]
        self._published_bytes += sum(map(len, encoded))
        for data in encoded:
            await self._bus.publish(self._subject, data)

    @property
    def seq(self) -> int:
        """Last event message; -1 before the first."""
        return self._seq

    def holds(self, hashes: list[int]) -> bool:
        """Whether all these blocks are held on the device. O(n)."""
        return self._reader.mirror.holds(hashes)

    @property
    def page_sizes(self) -> set[int]:
        """Of all stores so far, as the engine's events say."""
        return self._reader.page_sizes

    @property
    def rebuilds(self) -> int:
        """How often the mirror was built anew, as a router doubted it."""
        return self._rebuilds

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
            orphans=self._reader.mirror.statistics().waiting_pages,
            gaps=engine.gaps,
            lost=engine.lost,
            resets=self._reader.resets,
            unreadable=sum(self._reader.statistics().ignored.values()),
            rebuilds=self._rebuilds,
            corrections=self._corrections,
        )

    def statistics(self) -> RelayStatistics:
        """Counts since this life of the engine began, and what is held now."""
        return RelayStatistics(
            self._seq,
            self._snapshots,
            self._reader.resets,
            self._reader.other_ranks,
            self._doubts.count,
            self._rebuilds,
            self._corrections,
            self._reader.statistics(),
            self._reader.mirror.statistics(),
        )

    def _new_reader(self) -> RankReader:
        return RankReader(self._card.worker_id, self._rank, self._card.block_size)

    def _changes(self, deliveries: Iterable[Delivery]) -> list[CacheEvent]:
        return [change for delivery in deliveries for change in self._reader.read(delivery)]

    def _replaced(self, reader: RankReader, complete: bool) -> list[CacheEvent]:
        """Another reader's mirror takes the place of the doubted one: what routers need to hear."""
        before, after = self._reader.mirror, reader.mirror
        ghosts, missing = before.beyond(after), after.beyond(before)
        differs = ghosts + missing > 0
        reader.resets = self._reader.resets + (not complete)
        self._reader = reader
        self._rebuilds += 1
        self._corrections += complete and differs
        self._doubts.settle()
        logger.warning(
            "%r: a router doubted the mirror; it was built anew from %s of the engine's events: %d blocks were believed and are "
            "not held, %d held and not believed",
            self,
            "all" if complete else "the last",
            ghosts,
            missing,
        )
        return [CacheCleared(), *after.held()] if differs else []

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
        if request.distrusted:
            self._doubts.add()
        return [messages.encode(chunk) for chunk in self.snapshot()]

    def snapshot(self, position: int = 0) -> list[SnapshotChunk]:
        """All that is held now, with the position in a log of events to note in it. O(blocks)."""
        chunks = list(_messages_of(self._reader.mirror.held())) or [[]]
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
