"""The write path: an adapter's events → one stream per rank → the scheduler's index.

    bus message → decode → RankStream.offer → Scheduler.apply

A rank whose stream is fenced (new, gap, restart) gets a snapshot, then what was buffered after its watermark. Until then the
scheduler is told that it is not exact, and predicts it. So is a rank that is not heard of any more: its adapter says every few
seconds where its events stand (`KvMark`). Only ranks that a card announced are followed.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from events import messages, subjects
from events.bus import BusError
from events.messages import KvEvents, KvMark, WorkerLoad
from events.snapshot import SnapshotError
from events.stream import RankStream, StreamStatistics
from router.core import Target
from router.service.snapshots import AdapterSnapshots

if TYPE_CHECKING:
    from collections.abc import Callable

    from events.bus import Bus, Received, Subscription
    from events.snapshot import Snapshot
    from router.core import Scheduler
    from router.metrics import Metrics
    from router.service.snapshots import SnapshotSource

logger = logging.getLogger(__name__)

RETRY_SECONDS = (0.1, 0.2, 0.5, 1.0, 2.0)
SNAPSHOTS_AT_ONCE = 32
MARK_GRACE_SECONDS = 0.5
"""A mark may overtake the events that it speaks of: they have so long to come."""
SILENT_SECONDS = 7.0
"""Marks come every two seconds: a rank unheard for so long is out of step."""
LISTEN_SECONDS = 0.5


class FeedStatistics(NamedTuple):
    """One rank's write path, as `GET /workers` shows it."""

    live: bool
    """False: fenced, waiting for a snapshot; until then its cache is predicted."""
    silent: bool
    """Its adapter is not heard any more."""
    epoch: int | None
    applied: int
    """Messages since the rank is followed."""
    buffered: int
    gaps: int
    stale: int
    """Messages of an epoch that is over."""
    duplicates: int
    snapshots: int
    mark: KvMark | None
    """What its adapter last said of itself. None: nothing yet."""

    def shown(self) -> dict[str, Any]:
        """By name, for JSON."""
        mark = self.mark
        named = {name: getattr(mark, name) for name in mark.__struct_fields__} if mark is not None else None
        return self._asdict() | {"mark": named}


class _Rank:
    """One followed rank."""

    __slots__ = ("distrusted", "heard_at", "mark", "mirror_distrusted", "silent", "stream", "synchronising")

    def __init__(self, epoch: int | None, now: float) -> None:
        self.stream = RankStream(epoch=epoch)
        self.synchronising: asyncio.Task[None] | None = None
        self.mark: KvMark | None = None
        self.heard_at = now
        self.silent = False
        self.distrusted = 0
        """How often all that was known became doubtful: a snapshot asked for before that is worth nothing."""
        self.mirror_distrusted = False
        """Its adapter is still to hear that its mirror is doubted, too."""


class EventFeed:
    """Keeps the scheduler's index equal to what the followed ranks hold.

    :param sources: where snapshots come from, the first preferred; by default the adapters themselves.
    """

    def __init__(
        self,
        bus: Bus,
        scheduler: Scheduler,
        *,
        namespace: str,
        metrics: Metrics,
        clock: Callable[[], float],
        sources: list[SnapshotSource] | None = None,
    ) -> None:
        self._bus = bus
        self._scheduler = scheduler
        self._namespace = namespace
        self._metrics = metrics
        self._clock = clock
        self._sources = sources or [AdapterSnapshots(bus, namespace)]
        self._fetching = asyncio.Semaphore(SNAPSHOTS_AT_ONCE)
        self._ranks: dict[Target, _Rank] = {}
        self._epochs: dict[Target, int | None] = {}
        """Of all targets with a card, whether their events are followed or not."""
        self._subscriptions: list[Subscription] = []
        self._listening: asyncio.Task[None] | None = None
        self._said: set[str] = set()

    async def open(self) -> None:
        """Subscribe to the namespace's events, marks and load reports."""
        for kind in ("kv", "mark", "load"):
            pattern = subjects.every(self._namespace, kind)
            self._subscriptions.append(await self._bus.subscribe(pattern, self._received))
        self._listening = asyncio.create_task(self._listen(), name="feed: silent ranks")

    async def close(self) -> None:
        """Stop following; idempotent."""
        if self._listening is not None:
            self._listening.cancel()
            self._listening = None
        for target in list(self._epochs):
            self.drop(target)
        for subscription in self._subscriptions:
            await subscription.cancel()
        self._subscriptions.clear()

    def follow(self, target: Target, epoch: int | None = None, *, events: bool = True) -> None:
        """Start a rank's stream (one that is followed already starts again), and take its load reports.

        :param epoch: of the worker's card: what is older is stale.
        :param events: False: it publishes none; only its load is listened to.
        """
        self.drop(target)
        self._epochs[target] = epoch
        if events:
            self._ranks[target] = _Rank(epoch, self._clock())
            self._synchronise_soon(target)

    def drop(self, target: Target) -> None:
        """Forget a rank; unknown ones are ignored."""
        self._epochs.pop(target, None)
        rank = self._ranks.pop(target, None)
        if rank is not None and rank.synchronising is not None:
            rank.synchronising.cancel()

    async def resynchronise(self) -> None:
        """Fetch every rank's snapshot again, e.g. after the bus was away: nobody knows what was missed."""
        for target in self._ranks:
            self.distrust(target)

    def distrust(self, target: Target, *, mirror: bool = False) -> None:
        """Fetch a rank's snapshot again; unknown ones are ignored.

        :param mirror: the adapter is to build its mirror anew as well. Until that stands, the snapshot is of the former one; what
            differs then comes as events.
        """
        rank = self._ranks.get(target)
        if rank is not None:
            rank.distrusted += 1
            rank.mirror_distrusted |= mirror
            rank.stream.fence()
            self._synchronise_soon(target)

    def targets(self) -> list[Target]:
        """The ranks whose events are followed."""
        return list(self._ranks)

    def statistics(self, target: Target) -> FeedStatistics | None:
        """A rank's state; None: not followed."""
        rank = self._ranks.get(target)
        return None if rank is None else _described(rank, rank.stream.statistics())

    # ---- what comes

    async def _received(self, received: Received) -> None:
        try:
            message = messages.decode(received.data)
        except msgspec.DecodeError as error:
            self._drop("undecodable", f"{received.subject}: {error}")
            return
        match message:
            case KvEvents():
                self._changed(message)
            case KvMark():
                self._marked(message)
            case WorkerLoad():
                self._loaded(message)
            case _:
                self._drop("unexpected", f"{received.subject}: {type(message).__name__}")

    def _changed(self, message: KvEvents) -> None:
        target, rank = self._sender(message)
        if rank is None:
            return
        was_live = rank.stream.live
        for ready in rank.stream.offer(message):
            self._apply(target, rank, ready)
        if rank.stream.needs_snapshot:
            self._metrics.gaps.labels("bus").inc(was_live and message.epoch == rank.stream.epoch)
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

    def _marked(self, mark: KvMark) -> None:
        target, rank = self._sender(mark)
        if rank is None:
            return
        before = rank.mark if rank.mark is not None and rank.mark.epoch == mark.epoch else None
        self._metrics.marked(mark, before)
        rank.mark = mark
        if rank.stream.lacks(mark.epoch, mark.seq):
            asyncio.get_running_loop().call_later(MARK_GRACE_SECONDS, self._settle, target, rank, mark)

    def _settle(self, target: Target, rank: _Rank, mark: KvMark) -> None:
        """What a mark spoke of has had its time to come."""
        if self._ranks.get(target) is rank and rank.stream.lacks(mark.epoch, mark.seq):
            self._metrics.gaps.labels("bus").inc(mark.epoch == rank.stream.epoch)
            rank.stream.missed(mark.epoch, mark.seq)
            self._synchronise_soon(target)

    def _loaded(self, message: WorkerLoad) -> None:
        target = Target(message.worker_id, message.rank)
        if target not in self._epochs:
            self._drop("unknown rank", f"{target} has no card here, or not yet")
        elif message.epoch < (self._epochs[target] or 0):
            self._metrics.stale_epoch.labels("load").inc()
        else:
            self._scheduler.report_load(target, message, self._clock())

    def _sender(self, message: KvEvents | KvMark) -> tuple[Target, _Rank | None]:
        """Whose it is; None: nobody's that is followed, or of an epoch that is over (and counted)."""
        target = Target(message.worker_id, message.rank)
        rank = self._ranks.get(target)
        if rank is None:
            self._drop("unknown rank", f"{target} has no card here, or not yet")
            return target, None
        if not rank.stream.accepts(message.epoch):
            self._metrics.stale_epoch.labels("events" if isinstance(message, KvEvents) else "mark").inc()
            if isinstance(message, KvEvents):
                rank.stream.offer(message)  # it counts, too
            return target, None
        rank.heard_at = self._clock()
        return target, rank

    def _drop(self, reason: str, detail: str) -> None:
        """Count a message that cannot be used; each reason is said once."""
        self._metrics.events_dropped.labels(reason).inc()
        if reason not in self._said:
            self._said.add(reason)
            logger.warning("message dropped (%s): %s; further ones are only counted", reason, detail)

    # ---- what does not come

    async def _listen(self) -> None:
        while True:
            await asyncio.sleep(LISTEN_SECONDS)
            for target, rank in self._ranks.items():
                self._look_at(target, rank)

    def _look_at(self, target: Target, rank: _Rank) -> None:
        """A rank that said marks and is unheard of is out of step until it is heard, and gives a snapshot."""
        silent = rank.mark is not None and self._clock() - rank.heard_at > SILENT_SECONDS
        if silent and not rank.silent:
            logger.warning("%s is not heard any more: its cache is predicted until it is", target)
            self._metrics.silences.inc()
            self.distrust(target)
        rank.silent = silent

    # ---- snapshots

    def _synchronise_soon(self, target: Target) -> None:
        rank = self._ranks[target]
        if rank.synchronising is None or rank.synchronising.done():
            self._scheduler.set_exact(target, exact=False)
            rank.synchronising = asyncio.create_task(self._synchronise(target, rank))

    async def _synchronise(self, target: Target, rank: _Rank) -> None:
        """Until the stream is live: snapshot, restore, what came meanwhile. Each source in turn, so that none is waited for."""
        pauses = itertools.chain(RETRY_SECONDS, itertools.repeat(RETRY_SECONDS[-1]))
        sources = itertools.cycle(self._sources)
        while rank.stream.needs_snapshot:
            source, distrusted = next(sources), rank.distrusted
            try:
                async with self._fetching:
                    snapshot = await source.fetch(target, rank.stream.epoch, distrusted=rank.mirror_distrusted)
                if rank.distrusted == distrusted:
                    rank.mirror_distrusted = False
                    self._restore(target, rank, snapshot, source.name)
            except (BusError, SnapshotError, ValueError) as error:  # msgspec's errors are ValueErrors
                self._metrics.failed_snapshots.inc()
                logger.debug("%s: no snapshot from %s: %s", target, source.name, error)
                if source is self._sources[-1]:
                    await self._pause(target, next(pauses), error)
        self._scheduler.set_exact(target, exact=True)
        logger.info("%s is in step: %s", target, rank.stream)

    async def _pause(self, target: Target, seconds: float, error: Exception) -> None:
        if seconds == RETRY_SECONDS[-1]:
            logger.warning("%s: no snapshot: %s", target, error)
        await asyncio.sleep(seconds)

    def _restore(self, target: Target, rank: _Rank, snapshot: Snapshot, source: str) -> None:
        """No await in here: nobody sees the rank between snapshot and buffered events."""
        if rank.stream.accepts(snapshot.epoch):
            self._scheduler.restore(target, snapshot.stored)
            for message in snapshot.following:
                self._apply(target, rank, message)
            rank.heard_at = self._clock()
        else:
            self._metrics.stale_epoch.labels("snapshot").inc()
        for message in rank.stream.adopt(snapshot.epoch, snapshot.last):
            self._apply(target, rank, message)
        self._metrics.resyncs.labels(source).inc()


def _described(rank: _Rank, stream: StreamStatistics) -> FeedStatistics:
    return FeedStatistics(
        live=stream.live,
        silent=rank.silent,
        epoch=rank.stream.epoch,
        applied=stream.applied,
        buffered=stream.buffered,
        gaps=stream.gaps,
        stale=stream.stale,
        duplicates=stream.duplicates,
        snapshots=stream.resyncs,
        mark=rank.mark,
    )
