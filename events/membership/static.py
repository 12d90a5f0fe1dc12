"""A registry of servers that nobody registers: a list of URLs, asked what they are.

For servers without an adapter. A server is there while it answers `/server_info`; its card says that it publishes no events.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING

import aiohttp
import msgspec

from events.membership import RegistryError
from events.membership.polled import PolledRegistry
from events.membership.server_info import ServerInfo

if TYPE_CHECKING:
    from collections.abc import Sequence

    from events.membership import WorkerCard

logger = logging.getLogger(__name__)

TIMEOUT_SECONDS = 2.0
MISSES = 3
"""A server that does not answer so many times in a row is gone: one slow answer is no death."""


class StaticRegistry(PolledRegistry):
    """The cards of the servers at `urls`, looked at every `poll_seconds`."""

    def __init__(self, urls: Sequence[str], poll_seconds: float = 2.0) -> None:
        super().__init__(poll_seconds)
        self._urls = list(urls)
        self._cards: dict[str, WorkerCard] = {}  # by URL, of servers that are there
        self._missed: dict[str, int] = {}

    def __repr__(self) -> str:
        return f"<StaticRegistry of {len(self._urls)} servers, {len(self._cards)} there>"

    async def register(self, card: WorkerCard) -> None:
        """Refuse: the list is fixed.

        :raises RegistryError: always.
        """
        raise RegistryError(f"worker {card.worker_id}: a fixed list of servers takes no cards")

    async def unregister(self, worker_id: str) -> None:
        """Nothing is ever registered here."""

    async def _look(self) -> dict[str, WorkerCard]:
        """Ask every server, at once."""
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(TIMEOUT_SECONDS)) as session:
            await asyncio.gather(*(self._ask(session, url) for url in self._urls))
        return {card.worker_id: card for card in self._cards.values()}

    async def _ask(self, session: aiohttp.ClientSession, url: str) -> None:
        try:
            info = await _server_info(session, url)
            card = info.card(url, epoch=self._epoch(url))
        except (aiohttp.ClientError, TimeoutError) as error:
            self._failures += 1
            self._miss(url, str(error) or type(error).__name__)
        except ValueError as error:  # msgspec's errors are
            self._unreadable += 1
            self._miss(url, f"/server_info cannot be used: {error}")
        else:
            self._missed[url] = 0
            self._cards[url] = card

    def _epoch(self, url: str) -> int:
        known = self._cards.get(url)
        return known.epoch if known else time.time_ns() // 1_000_000

    def _miss(self, url: str, reason: str) -> None:
        missed = self._missed.get(url, 0) + 1
        self._missed[url] = missed
        if missed == 1:
            logger.warning("server %s: %s", url, reason)
        if missed >= MISSES and self._cards.pop(url, None) is not None:
            self._expired += 1


async def _server_info(session: aiohttp.ClientSession, url: str) -> ServerInfo:
    async with session.get(f"{url}/server_info") as reply:
        reply.raise_for_status()
        return msgspec.json.decode(await reply.read(), type=ServerInfo)
