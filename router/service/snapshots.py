"""Where a rank's snapshot comes from."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from events import messages, subjects
from events.messages import SnapshotChunk, SnapshotRequest
from events.snapshot import SnapshotError, assemble

if TYPE_CHECKING:
    from events.bus import Bus
    from events.history import History
    from events.snapshot import Snapshot
    from router.core import Target


class SnapshotSource(Protocol):
    """Knows what ranks hold."""

    @property
    def name(self) -> str:
        """The label in metrics and logs."""

    async def fetch(self, target: Target, epoch: int | None, *, distrusted: bool = False) -> Snapshot:
        """What a rank holds, as late as the source knows; `epoch` is the life that is wanted, None: any.

        :param distrusted: what this rank's adapter said before does not come true, and it is to hear so.
        :raises BusError: it cannot be reached.
        :raises SnapshotError: it knows nothing whole, or cannot tell the adapter of a doubt.
        :raises ValueError: what it said cannot be read.
        """


class AdapterSnapshots:
    """The adapters' mirrors, asked over the bus."""

    name = "adapter"

    def __init__(self, bus: Bus, namespace: str) -> None:
        self._bus = bus
        self._namespace = namespace

    def __repr__(self) -> str:
        return f"AdapterSnapshots({self._namespace!r})"

    async def fetch(self, target: Target, epoch: int | None, *, distrusted: bool = False) -> Snapshot:
        """One rank's adapter is asked: it knows best which life it is.

        :raises NoResponder: nobody answers.
        :raises SnapshotError: the answer is no whole snapshot.
        :raises msgspec.DecodeError: the answer cannot be read.
        """
        subject = subjects.snapshot(self._namespace, target.worker_id, target.rank)
        request = messages.encode(SnapshotRequest(target.worker_id, target.rank, distrusted))
        parts = [messages.decode(part) async for part in self._bus.request(subject, request)]
        return assemble([part for part in parts if isinstance(part, SnapshotChunk)])


class HistorySnapshots:
    """The logs at the broker: no worker is asked."""

    name = "history"

    def __init__(self, history: History) -> None:
        self._history = history

    def __repr__(self) -> str:
        return f"HistorySnapshots({self._history!r})"

    async def fetch(self, target: Target, epoch: int | None, *, distrusted: bool = False) -> Snapshot:
        """The rank's latest checkpoint and the events since.

        :raises BusError: the logs cannot be read.
        :raises SnapshotError: the adapter is to hear of a doubt; no whole checkpoint is kept, or it is of another life. (A later
            one, too: clocks jump, and what was kept need not be the worker that registered last.)
        """
        if distrusted:
            raise SnapshotError(f"{target}: its checkpoint is of the mirror that is doubted")
        snapshot = await self._history.recall(target.worker_id, target.rank)
        if epoch is not None and snapshot.epoch != epoch:
            raise SnapshotError(f"{target}: its checkpoint is of epoch {snapshot.epoch}, not {epoch}")
        return snapshot
