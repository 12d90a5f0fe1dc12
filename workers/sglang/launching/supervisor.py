"""An engine's lives under one roof: started, attended by an adapter, started again or not, and ended in order."""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import aiohttp

from workers.sglang.cancelling import cancelled
from workers.sglang.engine import Engine

from .drain import Patience, drain
from .process import EngineProcess
from .restarts import Restarts

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from workers.sglang.adapter import Adapter

logger = logging.getLogger(__name__)


class Supervisor:
    """Runs `words` as the engine at `url`. `attend` makes the adapter of one life; None: this machine's part serves no requests."""

    def __init__(
        self,
        words: Sequence[str],
        url: str,
        attend: Callable[[], Adapter] | None,
        *,
        restarts: Restarts | None = None,
        patience: Patience | None = None,
    ) -> None:
        self._words = list(words)
        self._url = url
        self._attend = attend
        self._restarts = restarts or Restarts()
        self._patience = patience or Patience()
        self._stopping = asyncio.Event()
        self._hurried = asyncio.Event()

    def __repr__(self) -> str:
        return f"<Supervisor of {self._url}: {self._restarts}>"

    def stop(self) -> None:
        """End in order; called again, at once."""
        if self._stopping.is_set():
            self._hurried.set()
        self._stopping.set()

    async def run(self) -> int:
        """Until stopped, or the engine has ended for good; the exit status, 0 if it was stopped.

        :raises OSError: it cannot be started.
        :raises CardError: it says something of itself that routers cannot use.
        :raises RegistryError: the registry does not take its card.
        """
        while True:
            began = time.monotonic()
            status = await self._life()
            if status is None:
                return 0
            pause = self._restarts.pause_after(status, time.monotonic() - began)
            if pause is None:
                logger.error("the engine ended with status %d", status)
                return status
            logger.error("the engine ended with status %d; it is started again in %g s", status, pause)
            with suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), pause)
                return 0

    async def _life(self) -> int | None:
        """From start to end; the exit status, None if it was stopped."""
        async with EngineProcess(self._words) as process:
            adapter = self._attend() if self._attend is not None else None
            ended, stopped = asyncio.create_task(process.wait()), asyncio.create_task(self._stopping.wait())
            tasks: set[asyncio.Task[Any]] = {ended, stopped}
            if adapter is not None:
                tasks.add(asyncio.create_task(adapter.run()))
            try:
                done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                if ended in done:
                    return ended.result()
                if stopped in done:
                    await self._end(process, adapter)
                    return None
                done.pop().result()  # the adapter's error
                raise AssertionError("an adapter ends by an error alone")
            finally:
                await asyncio.gather(*map(cancelled, tasks))
                if adapter is not None:
                    logger.info("stopped: %s", adapter.statistics())

    async def _end(self, process: EngineProcess, adapter: Adapter | None) -> None:
        """Withdraw, let requests end, stop."""
        if adapter is not None and await adapter.withdraw():
            ended = asyncio.create_task(self._let_requests_end())
            hurried = asyncio.create_task(self._hurried.wait())
            await asyncio.wait({ended, hurried}, return_when=asyncio.FIRST_COMPLETED)
            for task in (ended, hurried):
                task.cancel()
        await process.stop(0.1 if self._hurried.is_set() else self._patience.stop_seconds)

    async def _let_requests_end(self) -> None:
        await asyncio.sleep(self._patience.grace_seconds)
        async with aiohttp.ClientSession() as session:
            await drain(Engine(self._url, session), self._patience.drain_seconds)
