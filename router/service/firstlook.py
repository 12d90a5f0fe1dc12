"""The time in which a router that has just started does not know yet who its workers are.

It ends in two steps. Until every registry has said who is there, the port stays closed: another router may be able to serve what
this one would have to refuse. When they have, and it is nobody, a registry may just have come back without its data, and workers
put their cards again within its time to live: for so long requests wait for a first worker.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterable

    from router.metrics import Metrics

logger = logging.getLogger(__name__)


class FirstLook:
    """`registries` are those that are waited for; `grace_seconds` is how long requests wait after that for a first worker."""

    def __init__(self, registries: Iterable[Hashable], grace_seconds: float, metrics: Metrics | None = None) -> None:
        self._unread = set(registries)
        self._grace_seconds = grace_seconds
        self._metrics = metrics
        self._listed = asyncio.Event()
        self._over = asyncio.Event()
        if not self._unread:  # nobody will ever come
            self._listed.set()
            self._over.set()

    def __repr__(self) -> str:
        state = "over" if self._over.is_set() else f"{len(self._unread)} registries unread"
        return f"<FirstLook, {state}>"

    @property
    def unread(self) -> int:
        """Registries that have never said who is there."""
        return len(self._unread)

    def read(self, registry: Hashable) -> None:
        """A registry has said who is there; it may say so again. O(1)."""
        self._unread.discard(registry)
        if not self._unread and not self._listed.is_set():
            self._listed.set()
            if not self._over.is_set():
                logger.info("nobody serves any model yet; requests wait for a first worker, %g s", self._grace_seconds)
                asyncio.get_running_loop().call_later(self._grace_seconds, self._over.set)

    def met(self) -> None:
        """Somebody can be asked: requests wait no more. O(1)."""
        self._over.set()

    async def listings(self, timeout_seconds: float) -> None:
        """Until all registries have been read; after that time the rest is not waited for, neither here nor by requests."""
        try:
            async with asyncio.timeout(timeout_seconds):
                await self._listed.wait()
        except TimeoutError:
            self._over.set()
            logger.warning(
                "%d registries could not be read in %g s: serving without them", self.unread, timeout_seconds
            )

    async def somebody(self) -> None:
        """Where a request waits for a first worker; O(1) and without a wait once that time is over."""
        if not self._over.is_set():
            if self._metrics is not None:
                self._metrics.held_requests.inc()
            await self._over.wait()
