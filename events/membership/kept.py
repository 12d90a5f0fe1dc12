"""A polled registry that keeps each of its own cards alive by itself."""

from __future__ import annotations

import abc
import asyncio
import logging
from typing import TYPE_CHECKING

from events.membership import RegistryError
from events.membership.polled import PolledRegistry

if TYPE_CHECKING:
    from events.membership import WorkerCard

logger = logging.getLogger(__name__)

BEATS_PER_TTL = 3  # two heartbeats may fail before the card expires


class Superseded(Exception):
    """Another process has put a card in the place of ours, and its worker started later."""


class KeptRegistry(PolledRegistry):
    """Heartbeats; how a card is put, renewed and withdrawn, its kinds know.

    They do so under the lock, and raise RegistryError where the place fails.
    """

    def __init__(self, ttl_seconds: float, poll_seconds: float) -> None:
        super().__init__(poll_seconds)
        self._beat_seconds = ttl_seconds / BEATS_PER_TTL
        self._heart: asyncio.Task[None] | None = None

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

    async def close(self) -> None:
        """Stop heartbeats, withdraw what this object registered, and end its watches. Idempotent."""
        await super().close()
        if self._heart is not None:
            await self._heart
        for worker_id in list(self._own):
            try:
                await self.unregister(worker_id)
            except RegistryError as error:
                self._say("withdrawal", error)

    async def _beat(self) -> None:
        while await self._pause(self._beat_seconds):
            for worker_id, card in list(self._own.items()):
                async with self._lock:
                    if self._own.get(worker_id) is card:  # not withdrawn or replaced while we waited
                        await self._keep_alive(card)

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
