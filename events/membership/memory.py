"""A registry within one process."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from events.membership import Listed, Registry, RegistryError, RegistryStatistics
from events.membership.changes import changes

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from events.membership import Change, WorkerCard


class MemoryDirectory:
    """Where the registries of one process meet; all of them on one event loop."""

    def __init__(self) -> None:
        self.cards: dict[str, WorkerCard] = {}
        self._changed = asyncio.Event()

    def put(self, card: WorkerCard) -> None:
        """Add or replace a card. O(1)."""
        self.cards[card.worker_id] = card
        self.wake()

    def discard(self, worker_id: str) -> None:
        """Take a card out, as if it were withdrawn or expired. O(1)."""
        self.cards.pop(worker_id, None)
        self.wake()

    def wake(self) -> None:
        """Let all that watch look again. O(watchers)."""
        self._changed.set()
        self._changed = asyncio.Event()

    async def changed(self) -> None:
        """Return at the next change."""
        await self._changed.wait()

    def __repr__(self) -> str:
        return f"<MemoryDirectory, {len(self.cards)} cards>"


class MemoryRegistry(Registry):
    """A registry over a `MemoryDirectory`; cards do not expire by themselves (see `MemoryDirectory.discard`)."""

    def __init__(self, directory: MemoryDirectory | None = None) -> None:
        self._directory = directory if directory is not None else MemoryDirectory()
        self._own: dict[str, WorkerCard] = {}
        self._closed = False

    async def register(self, card: WorkerCard) -> None:
        """Add or replace a worker's card.

        :raises RegistryError: the registry is closed.
        """
        if self._closed:
            raise RegistryError("the memory registry is closed")
        self._own[card.worker_id] = card
        self._directory.put(card)

    async def unregister(self, worker_id: str) -> None:
        """Withdraw a card of ours; others are not touched."""
        card = self._own.pop(worker_id, None)
        if card is not None and self._directory.cards.get(worker_id) is card:
            self._directory.discard(worker_id)

    async def cards(self) -> dict[str, WorkerCard]:
        """All cards by worker id. O(n)."""
        return dict(self._directory.cards)

    async def watch(self) -> AsyncIterator[Change]:
        """All cards as `Joined`, `Listed`, then every change, until the registry is closed."""
        known: dict[str, WorkerCard] = {}
        listed = False
        while not self._closed:
            current = await self.cards()
            for change in changes(known, current):
                yield change
            known = current
            if not listed:
                listed = True
                yield Listed(len(known))
            if current == self._directory.cards:  # nothing happened while the changes were dealt with
                await self._directory.changed()

    async def close(self) -> None:
        """Withdraw what this object registered, and end its watches. Idempotent."""
        self._closed = True
        for worker_id in list(self._own):
            await self.unregister(worker_id)
        self._directory.wake()

    def statistics(self) -> RegistryStatistics:
        """Counts since the registry object was made. O(1)."""
        return RegistryStatistics(len(self._own), 0, 0, 0, 0, 0, 0)

    def __repr__(self) -> str:
        return f"<MemoryRegistry, {len(self._own)} own of {len(self._directory.cards)} cards>"
