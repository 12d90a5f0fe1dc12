"""The write path: an adapter's events → one stream per rank → the scheduler's index.

    bus message → decode → RankStream.offer → Scheduler.apply

A rank whose stream is fenced (new, gap, restart) gets a snapshot from its adapter, then what was buffered after its watermark.
Until then the scheduler is told that it is not exact, and predicts it. Only ranks that a card announced are followed.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from events import messages, subjects
from events.bus import BusError
from events.messages import KvEvents, SnapshotChunk, SnapshotRequest, WorkerLoad
from events.snapshot import SnapshotError, assemble
from events.stream import RankStream
from router.core import Target

if TYPE_CHECKING:
    from collections.abc import Callable

    from events.bus import Bus, Received, Subscription
    from events.snapshot import Snapshot
    from router.core import Scheduler
    from router.metrics import Metrics

logger = logging.getLogger(__name__)

RETRY_SECONDS = (0.1, 0.2, 0.5, 1.0, 2.0)


class FeedStatistics(NamedTuple):
    """One rank's write path, as `GET /workers` shows it."""

    live: bool
    """False: fenced, waiting for a snapshot; until then its cache is predicted."""
    epoch: int | None
    applied: int
    """Messages since the rank is followed."""
    buffered: int
    gaps: int
    stale: int
    """Messages of an epoch that is over."""
    duplicates: int
    snapshots: int


class _Rank:
    """One followed rank."""

    __slots__ = ("stream", "synchronising")

    def __init__(self) -> None:
        self.stream = RankStream()
        self.synchronising: asyncio.Task[None] | None = None


class EventFeed:
    """Keeps the scheduler's index equal to what the followed ranks hold."""

    def __init__(
        self, bus: Bus, scheduler: Scheduler, *, namespace: str, metrics: Metrics, clock: Callable[[], float]
    ) -> None:
        self._bus = bus
        self._scheduler = scheduler
        self._namespace = namespace
        self._metrics = metrics
        self._clock = clock
        self._ranks: dict[Target, _Rank] = {}
        self._subscriptions: list[Subscription] = []
        self._said: set[str] = set()

    async def open(self) -> None:
        """Subscribe to the namespace's events and load reports."""
        for kind in ("kv", "load"):
            pattern = subjects.every(self._namespace, kind)
            self._subscriptions.append(await self._bus.subscribe(pattern, self._received))

    async def close(self) -> None:
        """Stop following; idempotent."""
        for target in list(self._ranks):
            self.drop(target)
        for subscription in self._subscriptions:
            await subscription.cancel()
        self._subscriptions.clear()

    def follow(self, target: Target) -> None:
        """Start a rank's stream; a rank that is followed already starts again."""
        self.drop(target)
        self._ranks[target] = _Rank()
        self._synchronise_soon(target)

    def drop(self, target: Target) -> None:
        """Forget a rank; unknown ones are ignored."""
        rank = self._ranks.pop(target, None)
        if rank is not None and rank.synchronising is not None:
            rank.synchronising.cancel()

    async def resynchronise(self) -> None:
        """Fetch every rank's snapshot again, e.g. after the bus was away: nobody knows what was missed."""
        for target, rank in self._ranks.items():
            rank.stream.fence()
            self._synchronise_soon(target)

    def statistics(self, target: Target) -> FeedStatistics | None:
        """A rank's state; None: not followed."""
        rank = self._ranks.get(target)
        if rank is None:
            return None
        stream = rank.stream.statistics()
        return FeedStatistics(
            live=stream.live,
            epoch=rank.stream.epoch,
            applied=stream.applied,
            buffered=stream.buffered,
            gaps=stream.gaps,
            stale=stream.stale,
            duplicates=stream.duplicates,
            snapshots=stream.resyncs,
        )

    async def _received(self, received: Received) -> None:
        try:
            message = messages.decode(received.data)
        except msgspec.DecodeError as error:
            self._drop("undecodable", f"{received.subject}: {error}")
            return
        match message:
            case KvEvents():
                self._changed(message)
            case WorkerLoad():
                self._loaded(message)
            case _:
                self._drop("unexpected", f"{received.subject}: {type(message).__name__}")

    def _changed(self, message: KvEvents) -> None:
        target = Target(message.worker_id, message.rank)
        rank = self._ranks.get(target)
        if rank is None:
            self._drop("unknown rank", f"{target} has no card here, or not yet")
            return
        for ready in rank.stream.offer(message):
            self._apply(target, rank, ready)
        if rank.stream.needs_snapshot:
            self._synchronise_soon(target)

    def _apply(self, target: Target, rank: _Rank, message: KvEvents) -> None:
        try:
            for event in message.events:
                self._scheduler.apply(target, event)
        except ValueError as error:
            rank.stream.fence()  # what the message said is not known
            self._drop("malformed hashes", f"{target}: {error}")
            return
        self._metrics.events_applied.inc(len(message.events))
        if self._scheduler.evicted_prefixes and "index full" not in self._said:
            self._said.add("index full")
            logger.warning("the index is full and forgets what was used least recently: raise --max-index-blocks")
        if message.published_at:
            self._metrics.event_lag_seconds.observe(max(0.0, time.time() - message.published_at))

    def _drop(self, reason: str, detail: str) -> None:
        """Count a message that cannot be used; each reason is said once."""
        self._metrics.events_dropped.labels(reason).inc()
        if reason not in self._said:
            self._said.add(reason)
            logger.warning("message dropped (%s): %s; further ones are only counted", reason, detail)

    def _loaded(self, message: WorkerLoad) -> None:
        target = Target(message.worker_id, message.rank)
        if target in self._ranks:
            self._scheduler.report_load(target, message, self._clock())

    def _synchronise_soon(self, target: Target) -> None:
        rank = self._ranks[target]
        if rank.synchronising is None or rank.synchronising.done():
            self._scheduler.set_exact(target, exact=False)
            rank.synchronising = asyncio.create_task(self._synchronise(target, rank))

    async def _synchronise(self, target: Target, rank: _Rank) -> None:
        """Until the stream is live: snapshot, restore, what came meanwhile."""
        pauses = itertools.chain(RETRY_SECONDS, itertools.repeat(RETRY_SECONDS[-1]))
        while rank.stream.needs_snapshot:
            try:
                self._restore(target, rank, await self._snapshot(target))
            except (BusError, SnapshotError, ValueError) as error:  # msgspec's errors are ValueErrors
                self._metrics.failed_snapshots.inc()
                pause = next(pauses)
                logger.log(logging.DEBUG if pause < RETRY_SECONDS[-1] else logging.WARNING, "%s: %s", target, error)
                await asyncio.sleep(pause)
        self._scheduler.set_exact(target, exact=True)
        logger.info("%s is in step: %s", target, rank.stream)

    async def _snapshot(self, target: Target) -> Snapshot:
        subject = subjects.snapshot(self._namespace, target.worker_id, target.rank)
        request = messages.encode(SnapshotRequest(target.worker_id, target.rank))
        parts = [messages.decode(part) async for part in self._bus.request(subject, request)]
        return assemble([part for part in parts if isinstance(part, SnapshotChunk)])

    def _restore(self, target: Target, rank: _Rank, snapshot: Snapshot) -> None:
        """No await in here: nobody sees the rank between snapshot and buffered events."""
        if rank.stream.accepts(snapshot.epoch):
            self._scheduler.restore(target, snapshot.stored)
        for message in rank.stream.adopt(snapshot.epoch, snapshot.watermark):
            self._apply(target, rank, message)
        self._metrics.snapshots.inc()
