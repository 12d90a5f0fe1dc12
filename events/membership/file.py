"""A registry in a folder: one file per worker, kept alive by its time of modification.

It needs no server: enough for one machine, or for several that share a folder and whose clocks agree within the time to live.
A worker touches its file every third of that time; whoever looks takes away what was not touched for longer. A worker that was
stopped for so long writes its file anew when it goes on.
"""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from events import subjects
from events.membership import Registry, RegistryError, RegistryStatistics
from events.membership.card_folder import CardFolder
from events.membership.changes import changes
from events.membership.own_card import OwnCard, Superseded

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from events.membership import Change, WorkerCard

logger = logging.getLogger(__name__)

BEATS_PER_TTL = 3  # two heartbeats may fail before the card expires

Result = TypeVar("Result")


class FileRegistry(Registry):
    """The cards of a namespace in `<path>/<namespace>/`; the folder is made if it is missing."""

    def __init__(self, path: str | Path, namespace: str, ttl_seconds: float = 10.0, poll_seconds: float = 0.5) -> None:
        self._path = Path(path) / subjects.token(namespace)
        self._beat_seconds = ttl_seconds / BEATS_PER_TTL
        self._poll_seconds = poll_seconds
        self._folder = CardFolder(self._path, ttl_seconds)
        self._own: dict[str, OwnCard] = {}
        self._lock = asyncio.Lock()  # over the two above, as the work on files is done in threads
        self._closed = asyncio.Event()
        self._heart: asyncio.Task[None] | None = None
        self._troubled: set[str] = set()  # what the log has said and not taken back
        self._heartbeats = self._recreated = self._superseded = self._failures = 0

    async def register(self, card: WorkerCard) -> None:
        """Add or replace a worker's card, and keep it alive until `unregister` or `close`.

        :raises RegistryError: the registry is closed, or the folder does not take the card.
        """
        async with self._lock:
            if self._closed.is_set():
                raise RegistryError(f"registry {self._path}: it is closed")
            own = OwnCard(self._path, card)
            await self._do(own.write)
            self._own[card.worker_id] = own
        if self._heart is None:
            self._heart = asyncio.create_task(self._beat(), name=f"heartbeats in {self._path}")

    async def unregister(self, worker_id: str) -> None:
        """Withdraw a card of ours; others are not touched.

        :raises RegistryError: the folder cannot be written (the card will expire).
        """
        async with self._lock:
            own = self._own.pop(worker_id, None)
            if own is not None:
                await self._do(own.withdraw)

    async def cards(self) -> dict[str, WorkerCard]:
        """All living cards by worker id. O(n), one stat each; only what changed is read.

        :raises RegistryError: the folder cannot be read.
        """
        async with self._lock:
            return await self._do(self._folder.scan)

    async def watch(self) -> AsyncIterator[Change]:
        """All living cards as `Joined`, then every change, until the registry is closed. If a later look fails, that is counted
        and said once, and the cards stay as they are.

        :raises RegistryError: the folder cannot be read at the first look.
        """
        known: dict[str, WorkerCard] = {}
        current = await self.cards()
        while not self._closed.is_set():
            for change in changes(known, current):
                yield change
            known = current
            await self._pause(self._poll_seconds)
            current = await self._look(known)

    async def close(self) -> None:
        """Stop heartbeats, withdraw what this object registered, and end its watches. Idempotent."""
        self._closed.set()
        if self._heart is not None:
            await self._heart
        for worker_id in list(self._own):
            try:
                await self.unregister(worker_id)
            except RegistryError as error:
                self._trouble("withdrawal", error)

    def statistics(self) -> RegistryStatistics:
        """Counts since the registry object was made. O(1)."""
        return RegistryStatistics(
            registered=len(self._own),
            heartbeats=self._heartbeats,
            recreated=self._recreated,
            superseded=self._superseded,
            expired=self._folder.expired,
            unreadable=self._folder.unreadable,
            failures=self._failures,
        )

    async def _beat(self) -> None:
        await self._pause(self._beat_seconds)
        while not self._closed.is_set():
            for worker_id, own in list(self._own.items()):
                async with self._lock:
                    await self._keep_alive(worker_id, own)
            await self._pause(self._beat_seconds)

    async def _keep_alive(self, worker_id: str, own: OwnCard) -> None:
        if self._own.get(worker_id) is not own:  # withdrawn or replaced while we waited
            return
        try:
            self._recreated += not await self._do(own.touch)
        except Superseded as reason:
            self._superseded += 1
            del self._own[worker_id]
            logger.warning("%s: ours withdraws", reason)
        except RegistryError as error:
            self._trouble("heartbeat", error)
        else:
            self._heartbeats += 1
            self._troubled.discard("heartbeat")

    async def _look(self, known: dict[str, WorkerCard]) -> dict[str, WorkerCard]:
        try:
            current = await self.cards()
        except RegistryError as error:
            self._trouble("look", error)
            return known
        self._troubled.discard("look")
        return current

    async def _pause(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._closed.wait()
        except TimeoutError:
            return

    async def _do(self, work: Callable[[], Result]) -> Result:
        """Work on files, where a slow disk does not hold up the event loop.

        :raises RegistryError: it failed.
        """
        try:
            return await asyncio.to_thread(work)
        except OSError as error:
            self._failures += 1
            raise RegistryError(f"registry {self._path}: {error.strerror or error}") from error

    def _trouble(self, what: str, error: RegistryError) -> None:
        if what not in self._troubled:
            self._troubled.add(what)
            logger.warning("%s failed: %s", what, error)

    def __repr__(self) -> str:
        return f"<FileRegistry {self._path}, {len(self._own)} own cards>"
