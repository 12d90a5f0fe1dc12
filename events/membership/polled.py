"""What registries have in common that nobody tells of changes: they look now and then, and keep each card alive by itself."""

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

BEATS_PER_TTL = 3  # two heartbeats may fail before the card expires


class Superseded(Exception):
    """Another process has put a card in the place of ours, and its worker started later."""


class PolledRegistry(Registry):
    """Looks, heartbeats and counts; where the cards are, its kinds know."""

    def __init__(self, ttl_seconds: float, poll_seconds: float) -> None:
        self._beat_seconds = ttl_seconds / BEATS_PER_TTL
        self._poll_seconds = poll_seconds
        self._own: dict[str, WorkerCard] = {}
        self._lock = asyncio.Lock()  # over all work on the cards
        self._closed = asyncio.Event()
        self._heart: asyncio.Task[None] | None = None
        self._said: set[str] = set()  # what the log has said and not taken back
        self._heartbeats = self._recreated = self._superseded = self._expired = self._unreadable = self._failures = 0

    # ---- what a kind knows; each under the lock, and raising RegistryError where the place fails

    @abc.abstractmethod
    async def _put(self, card: WorkerCard) -> None:
        """Create a card, or replace the one in its place."""

    @abc.abstractmethod
    async def _renew(self, card: WorkerCard) -> bool:
        """Keep a card alive. False: it was gone, and is put anew.

        :raises Superseded: its place is taken.
        """

    @abc.abstractmethod
    async def _withdraw(self, card: WorkerCard) -> None:
        """Take a card away, if it is still ours."""

    @abc.abstractmethod
    async def _look(self) -> dict[str, WorkerCard]:
        """All living cards by worker id."""

    # ---- the registry

    async def register(self, card: WorkerCard) -> None:
        """Add or replace a worker's card, and keep it alive until `unregister` or `close`.

        :raises RegistryError: the registry is closed, or does not take the card.
        """
        async with self._lock:
            if self._closed.is_set():
                raise RegistryError(f"{self!r} is closed")
            await self._put(card)
            self._own[card.worker_id] = card
        if self._heart is None:
            self._heart = asyncio.create_task(self._beat(), name=f"heartbeats of {self!r}")

    async def unregister(self, worker_id: str) -> None:
        """Withdraw a card of ours; others are not touched.

        :raises RegistryError: the registry cannot be written (the card will expire).
        """
        async with self._lock:
            card = self._own.pop(worker_id, None)
            if card is not None:
                await self._withdraw(card)

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
        while not self._closed.is_set():
            await self._pause(self._poll_seconds)
            current = await self._look_again(known)
            for change in changes(known, current):
                yield change
            known = current

    async def close(self) -> None:
        """Stop heartbeats, withdraw what this object registered, and end its watches. Idempotent."""
        self._closed.set()
        if self._heart is not None:
            await self._heart
        for worker_id in list(self._own):
            try:
                await self.unregister(worker_id)
            except RegistryError as error:
                self._say("withdrawal", error)

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

    # ---- time

    async def _beat(self) -> None:
        await self._pause(self._beat_seconds)
        while not self._closed.is_set():
            for worker_id, card in list(self._own.items()):
                async with self._lock:
                    if self._own.get(worker_id) is card:  # not withdrawn or replaced while we waited
                        await self._keep_alive(card)
            await self._pause(self._beat_seconds)

    async def _keep_alive(self, card: WorkerCard) -> None:
        try:
            self._recreated += not await self._renew(card)
        except Superseded as reason:
            self._superseded += 1
            del self._own[card.worker_id]
            logger.warning("%s: ours withdraws", reason)
        except RegistryError as error:
            self._say("heartbeat", error)
        else:
            self._heartbeats += 1
            self._said.discard("heartbeat")

    async def _look_again(self, known: dict[str, WorkerCard]) -> dict[str, WorkerCard]:
        try:
            current = await self.cards()
        except RegistryError as error:
            self._say("look", error)
            return known
        self._said.discard("look")
        return current

    async def _pause(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._closed.wait()
        except TimeoutError:
            return

    def _say(self, what: str, error: object) -> None:
        if what not in self._said:
            self._said.add(what)
            logger.warning("%s failed: %s", what, error)
