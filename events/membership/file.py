"""A registry in a folder: one file per worker, kept alive by its time of modification.

It needs no server: enough for one machine, or for several that share a folder and whose clocks agree within the time to live.
A worker touches its file every third of that time; whoever looks takes away what was not touched for longer. A worker that was
stopped for so long writes its file anew when it goes on.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from events import subjects
from events.membership import RegistryError
from events.membership.card_folder import CardFolder
from events.membership.kept import KeptRegistry
from events.membership.own_card import OwnCard

if TYPE_CHECKING:
    from collections.abc import Callable

    from events.membership import WorkerCard

Result = TypeVar("Result")


class FileRegistry(KeptRegistry):
    """The cards of a namespace in `<path>/<namespace>/`; the folder is made if it is missing.

    A look is one stat per card; only what changed is read.
    """

    def __init__(self, path: str | Path, namespace: str, ttl_seconds: float = 10.0, poll_seconds: float = 0.5) -> None:
        super().__init__(ttl_seconds, poll_seconds)
        self._path = Path(path) / subjects.token(namespace)
        self._folder = CardFolder(self._path, ttl_seconds)
        self._files: dict[str, OwnCard] = {}  # by worker id

    async def _put(self, card: WorkerCard) -> None:
        own = OwnCard(self._path, card)
        await self._do(own.write)
        self._files[card.worker_id] = own

    async def _renew(self, card: WorkerCard) -> bool:
        return await self._do(self._files[card.worker_id].touch)

    async def _withdraw(self, card: WorkerCard) -> None:
        await self._do(self._files.pop(card.worker_id).withdraw)

    async def _look(self) -> dict[str, WorkerCard]:
        found = await self._do(self._folder.scan)
        self._expired, self._unreadable = self._folder.expired, self._folder.unreadable
        return found

    async def _do(self, work: Callable[[], Result]) -> Result:
        """Work on files, where a slow disk does not hold up the event loop.

        :raises RegistryError: it failed.
        """
        try:
            return await asyncio.to_thread(work)
        except OSError as error:
            self._failures += 1
            raise RegistryError(f"registry {self._path}: {error.strerror or error}") from error

    def __repr__(self) -> str:
        return f"<FileRegistry {self._path}, {len(self._own)} own cards>"
