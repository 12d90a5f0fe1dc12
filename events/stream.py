"""One rank's events in order: epoch, gap, snapshot, fence.

A stream is *fenced* from its start, and whenever something is known to be missing: then it buffers. A snapshot that was
applied is *adopted*: what was buffered after its watermark follows, and if that leaves no gap the stream is *live* again.
Pure state, no I/O; a reader of it does

    for message in stream.offer(received):
        apply(message)

and whenever `stream.needs_snapshot`, with a snapshot that `stream.accepts`:

    restore(snapshot)
    for message in stream.adopt(snapshot.epoch, snapshot.watermark):
        apply(message)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from events.messages import KvEvents

BUFFER_MESSAGES = 4096


class StreamStatistics(NamedTuple):
    """Counts since the stream began. Every message offered is in one of `applied` … `superseded`, or still `buffered`."""

    offered: int
    applied: int
    """Returned to be applied."""
    buffered: int
    """Waiting now for a snapshot."""
    stale: int
    """Of an epoch that is over."""
    duplicates: int
    overflowed: int
    """Pushed out of the full buffer; the snapshot must include them, or another one is needed."""
    superseded: int
    """Buffered, but included in the snapshot."""
    gaps: int
    """Times that something was found to be missing within an epoch."""
    epochs: int
    """Epochs seen."""
    refused: int
    """Snapshots of an epoch that is over."""
    resyncs: int
    """Snapshots adopted."""
    live: bool


class RankStream:
    """Orders the `KvEvents` of one rank.

    `buffer_messages` bounds what is kept while fenced; the oldest are pushed out, as a snapshot most likely includes them.
    `epoch`: the one that is known to be there, e.g. from a worker's card: what is older is stale from the start.
    """

    def __init__(self, buffer_messages: int = BUFFER_MESSAGES, epoch: int | None = None) -> None:
        self._buffer_messages = buffer_messages
        self._buffer: dict[int, KvEvents] = {}  # by seq, in order of arrival; of the present epoch; empty while live
        self._live = False
        self._epoch: int | None = None
        self._next = 0  # while live: the seq to apply next
        self._highest = -1  # greatest seq known of in this epoch, whether it came as a message or in a snapshot
        self._offered = self._applied = self._stale = self._duplicates = self._overflowed = self._superseded = 0
        self._gaps = self._epochs = self._refused = self._resyncs = 0
        if epoch is not None:
            self._begin(epoch)

    @property
    def live(self) -> bool:
        """Whether all up to the latest message known of has been applied."""
        return self._live

    @property
    def needs_snapshot(self) -> bool:
        """Whether it is fenced: only a snapshot can make it live."""
        return not self._live

    @property
    def epoch(self) -> int | None:
        """The newest epoch known of; None: none yet."""
        return self._epoch

    def accepts(self, epoch: int) -> bool:
        """Whether a snapshot of this epoch is worth applying. O(1)."""
        return self._epoch is None or epoch >= self._epoch

    def offer(self, message: KvEvents) -> list[KvEvents]:
        """Take a message as it comes: what is to be applied now. O(1) (a new epoch: O(buffered))."""
        self._offered += 1
        if not self.accepts(message.epoch):
            self._stale += 1
            return []
        if message.epoch != self._epoch:
            self._begin(message.epoch)
        return self._follow(message) if self._live else self._keep(message)

    def adopt(self, epoch: int, watermark: int) -> list[KvEvents]:
        """A snapshot was applied in place of all before: what is to be applied after it. O(buffered).

        `needs_snapshot` afterwards says whether that was enough: another is needed if messages after the watermark are missing,
        or if the snapshot's epoch is over (then nothing is returned, and it must not stay applied).
        """
        if not self.accepts(epoch):
            self._refused += 1
            self.fence()
            return []
        if epoch != self._epoch:
            self._begin(epoch)
        self._resyncs += 1
        self._next = watermark + 1
        self._highest = max(self._highest, watermark)
        messages = self._take_contiguous()
        self._live = self._next > self._highest
        self._gaps += not self._live
        return messages

    def lacks(self, epoch: int, seq: int) -> bool:
        """Whether event `seq` of `epoch`, which was published, should have come by now, and has not. O(1).

        Not while fenced within that epoch: then a snapshot is on its way in any case.
        """
        if not self.accepts(epoch):
            return False
        return epoch != self._epoch or (self._live and seq >= self._next)

    def missed(self, epoch: int, seq: int) -> None:
        """Event `seq` of `epoch` was published, and does not come: fence. O(1) (a new epoch: O(buffered))."""
        if not self.lacks(epoch, seq):
            return
        if epoch != self._epoch:
            self._begin(epoch)
        else:
            self._gaps += 1
        self._highest = max(self._highest, seq)
        self.fence()

    def fence(self) -> None:
        """Something may have been missed (a reconnect): apply nothing more without a snapshot. O(1)."""
        self._live = False

    def statistics(self) -> StreamStatistics:
        """The counts now. O(1)."""
        return StreamStatistics(
            offered=self._offered,
            applied=self._applied,
            buffered=len(self._buffer),
            stale=self._stale,
            duplicates=self._duplicates,
            overflowed=self._overflowed,
            superseded=self._superseded,
            gaps=self._gaps,
            epochs=self._epochs,
            refused=self._refused,
            resyncs=self._resyncs,
            live=self._live,
        )

    def _begin(self, epoch: int) -> None:
        self._stale += len(self._buffer)
        self._buffer.clear()
        self._epoch = epoch
        self._epochs += 1
        self._highest = -1
        self._live = False

    def _follow(self, message: KvEvents) -> list[KvEvents]:
        if message.seq < self._next:
            self._duplicates += 1
            return []
        if message.seq > self._next:
            self._gaps += 1
            self.fence()
            return self._keep(message)
        self._next += 1
        self._highest = message.seq
        self._applied += 1
        return [message]

    def _keep(self, message: KvEvents) -> list[KvEvents]:
        if message.seq in self._buffer:
            self._duplicates += 1
            return []
        self._highest = max(self._highest, message.seq)
        self._buffer[message.seq] = message
        if len(self._buffer) > self._buffer_messages:
            del self._buffer[next(iter(self._buffer))]
            self._overflowed += 1
        return []

    def _take_contiguous(self) -> list[KvEvents]:
        """What follows the watermark without a gap; what it includes is forgotten, the rest stays."""
        messages = []
        first = self._next
        while (message := self._buffer.pop(self._next, None)) is not None:
            messages.append(message)
            self._next += 1
        rest = {seq: message for seq, message in self._buffer.items() if seq >= first}
        self._superseded += len(self._buffer) - len(rest)
        self._buffer = rest
        self._applied += len(messages)
        return messages

    def _check(self) -> None:
        counted = (
            self._applied + len(self._buffer) + self._stale + self._duplicates + self._overflowed + self._superseded
        )
        assert self._offered == counted
        assert len(self._buffer) <= self._buffer_messages
        assert all(seq == message.seq and message.epoch == self._epoch for seq, message in self._buffer.items())
        assert max(self._buffer, default=-1) <= self._highest
        if self._live:
            assert self._epoch is not None
            assert not self._buffer
            assert self._next == self._highest + 1

    def __repr__(self) -> str:
        state = f"live, next {self._next}" if self._live else f"fenced, {len(self._buffer)} buffered"
        return f"<RankStream epoch {self._epoch}, {state}>"
