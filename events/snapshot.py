"""All that a rank held at one moment, put together from its chunks."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from events.messages import BlocksStored, KvEvents, SnapshotChunk


class SnapshotError(Exception):
    """The chunks are no whole snapshot."""


class Snapshot(NamedTuple):
    """What a rank held right after event `watermark` of `epoch`."""

    worker_id: str
    rank: int
    epoch: int
    watermark: int
    """-1: before the first event."""
    stored: list[BlocksStored]
    following: Sequence[KvEvents] = ()
    """Events after the watermark, without a gap, where the source knows them."""

    @property
    def last(self) -> int:
        """Sequence number of the last event that is in it, one way or the other."""
        return self.watermark + len(self.following)


def assemble(chunks: Iterable[SnapshotChunk]) -> Snapshot:
    """The snapshot that these chunks, in any order, are all parts of. O(chunks + stored).

    :raises SnapshotError: none came, some are missing or came twice, or they are of different snapshots.
    """
    parts: dict[int, SnapshotChunk] = {}
    for chunk in chunks:
        if chunk.index in parts:
            raise SnapshotError(f"{_name(chunk)}: chunk {chunk.index} came twice")
        parts[chunk.index] = chunk
    if not parts:
        raise SnapshotError("the answer holds no snapshot chunk")
    first = next(iter(parts.values()))
    for chunk in parts.values():
        if _identity(chunk) != _identity(first):
            raise SnapshotError(f"{_name(first)} and {_name(chunk)} are parts of different snapshots")
    if len(parts) != first.count or sorted(parts) != list(range(len(parts))):
        raise SnapshotError(f"{_name(first)}: has chunks {sorted(parts)}, want 0 to {first.count - 1}")
    stored = [stored for index in range(first.count) for stored in parts[index].stored]
    return Snapshot(first.worker_id, first.rank, first.epoch, first.seq, stored)


def _identity(chunk: SnapshotChunk) -> tuple[str, int, int, int, int]:
    return chunk.worker_id, chunk.rank, chunk.epoch, chunk.seq, chunk.count


def _name(chunk: SnapshotChunk) -> str:
    return f"snapshot of {chunk.worker_id}/{chunk.rank} at {chunk.epoch}:{chunk.seq} in {chunk.count} chunks"
