"""What registries have in common that nobody tells of changes: they look now and then."""

from __future__ import annotations

import abc
import asyncio
import logging
from typing import TYPE_CHECKING

from events.membership import Listed, Registry, RegistryError, RegistryStatistics
from events.membership.changes import changes

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from events.membership import Change, WorkerCard

logger = logging.getLogger(__name__)


class PolledRegistry(Registry):
    """Looks and counts; where the cards are, its kinds know."""

    def __init__(self, poll_seconds: float) -> None:
        self._poll_seconds = poll_seconds
        self._own: dict[str, WorkerCard] = {}
        self._lock = asyncio.Lock()  # over all work on the cards
        self._closed = asyncio.Event()
        self._said: set[str] = set()  # what the log has said and not taken back
        self._heartbeats = self._recreated = self._superseded = self._expired = self._unreadable = self._failures = 0

    @abc.abstractmethod
    async def _look(self) -> dict[str, WorkerCard]:
        """All living cards by worker id. Called under the lock.

        :raises RegistryError: the place fails.
        """

    async def cards(self) -> dict[str, WorkerCard]:
        """All living cards by worker id. O(n).

        :raises RegistryError: the registry cannot be read.
        """
        async with self._lock:
            return await self._look()

    async def watch(self) -> AsyncIterator[Change]:
        """All living cards as `Joined`, `Listed`, then every change, until the registry is closed. If a later look fails, that is
        counted and said once, and the cards stay as they are.

        :raises RegistryError: the registry cannot be read at the first look.
        """
        known = await self.cards()
        for change in changes({}, known):
            yield change
        yield Listed(len(known))
        while await self._pause(self._poll_seconds):
            current = await self._look_again(known)
            for change in changes(known, current):
                yield change
            known = current

    async def close(self) -> None:
        """End the watches. Idempotent."""
        self._closed.set()

    def statistics(self) -> RegistryStatistics:
        """Counts since the registry object was made. O(1)."""
        return RegistryStatistics(
            registered=len(self._own),
            heartbeats=self._heartbeats,
            recreated=self._recreated,
            superseded=self._superseded,
            expired=self._expired,
            unreadable=self._unreadable,
            failures=self._failures,
        )

    async def _look_again(self, known: dict[str, WorkerCard]) -> dict[str, WorkerCard]:
        try:
            current = await self.cards()
        except RegistryError as error:
            self._say("look", error)
            return known
        self._said.discard("look")
        return current

    async def _pause(self, seconds: float) -> bool:
        """Wait; False, and at once: the registry is closed."""
        try:
            async with asyncio.timeout(seconds):
                await self._closed.wait()
        except TimeoutError:
            return True
        return False

    def _say(self, what: str, error: object) -> None:
        if what not in self._said:
            self._said.add(what)
            logger.warning("%s failed: %s", what, error)
