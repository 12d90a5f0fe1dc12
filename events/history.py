"""What ranks held and did, kept at the broker: a router that starts or has missed something learns it there, and asks no worker.

Two logs: the *events* as they were published, and *checkpoints*, which are snapshots that an adapter writes now and then. What a
rank holds is its latest checkpoint and the events after it. A checkpoint says how far the log of events had come before it was
taken (`SnapshotChunk.position`), so nothing after its watermark lies before that place.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, TypeVar

import msgspec

from events import messages, subjects
from events.bus.jetstream import JetStreamLog
from events.messages import KvEvents, SnapshotChunk
from events.snapshot import Snapshot, SnapshotError, assemble

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from events.bus.log import Limits, Log
    from events.bus.nats import NatsBus

Kind = TypeVar("Kind", KvEvents, SnapshotChunk)

logger = logging.getLogger(__name__)


class History:
    """The logs of one namespace. Neither has to be there yet: both are opened by whoever comes first."""

    def __init__(self, events: Log, checkpoints: Log, namespace: str) -> None:
        self._events = events
        self._checkpoints = checkpoints
        self._namespace = namespace

    def __repr__(self) -> str:
        return f"History({self._namespace!r}, {self._events!r}, {self._checkpoints!r})"

    async def open(self) -> None:
        """Begin to keep events and checkpoints. Idempotent.

        :raises BusError: the broker keeps no logs, or cannot be reached.
        """
        await self._events.open()
        await self._checkpoints.open()

    async def write(self, taken: Callable[[int], Iterable[SnapshotChunk]]) -> int:
        """Write a checkpoint in place of the one before; how many bytes it has.

        :param taken: takes the snapshot, given the position in the log of events to note in it.
        :raises BusError: it was not kept, or not wholly; the one before stays.
        """
        chunks = list(taken(await self._events.last()))
        subject = subjects.checkpoint(self._namespace, chunks[0].worker_id, chunks[0].rank)
        encoded = [messages.encode(chunk) for chunk in chunks]
        numbers = [await self._checkpoints.append(subject, data) for data in encoded]
        await self._checkpoints.trim(subject, numbers[0])
        return sum(map(len, encoded))

    async def recall(self, worker_id: str, rank: int) -> Snapshot:
        """What a rank held at its latest checkpoint, and did since, as far as that is kept without a gap. O(its size).

        :raises SnapshotError: there is no whole checkpoint of it, or it is of an earlier life than the events.
        :raises BusError: the logs cannot be read.
        """
        snapshot, position = await self._checkpoint(worker_id, rank)
        subject = subjects.kv(self._namespace, worker_id, rank)
        following: list[KvEvents] = []
        async for kept in self._events.read(subject, position):
            message = _decoded(kept.data, KvEvents)
            if message is None or (message.worker_id, message.rank) != (worker_id, rank):
                continue
            if message.epoch > snapshot.epoch:
                raise SnapshotError(f"{worker_id}/{rank}: began a new life after its checkpoint")
            if message.epoch == snapshot.epoch and message.seq == snapshot.watermark + len(following) + 1:
                following.append(message)
        return snapshot._replace(following=following)

    async def _checkpoint(self, worker_id: str, rank: int) -> tuple[Snapshot, int]:
        """The latest whole one, and the position in the log of events that it notes."""
        subject = subjects.checkpoint(self._namespace, worker_id, rank)
        chunks = [_decoded(kept.data, SnapshotChunk) async for kept in self._checkpoints.read(subject)]
        mine = [chunk for chunk in chunks if chunk is not None and (chunk.worker_id, chunk.rank) == (worker_id, rank)]
        while mine:
            last = mine[-1]
            parts = mine[-last.count :]
            try:
                return assemble(parts), last.position
            except SnapshotError as error:  # its writer died at work; one before it may be whole
                logger.debug("%s/%d: %s", worker_id, rank, error)
                mine = mine[:-1]
        raise SnapshotError(f"{worker_id}/{rank}: no checkpoint is kept")


def jetstream_history(bus: NatsBus, namespace: str, limits: Limits) -> History:
    """Two streams, each within the limits: `warmpath-<namespace>-events` and `warmpath-<namespace>-checkpoints`."""

    def log(name: str, kind: str) -> JetStreamLog:
        stream = f"{subjects.ROOT}-{subjects.token(namespace)}-{name}"
        return JetStreamLog(bus, stream, subjects.every(namespace, kind), limits)

    return History(log("events", "kv"), log("checkpoints", "checkpoint"), namespace)


def _decoded(data: bytes, kind: type[Kind]) -> Kind | None:
    """A kept message, if it is of this kind; others have no business there, but anybody can publish."""
    try:
        message = messages.decode(data)
    except msgspec.DecodeError:
        return None
    return message if isinstance(message, kind) else None
