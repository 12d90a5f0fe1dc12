"""Has engines told that nobody waits for a request any more, behind the request's back."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from router.dispatch.errors import EngineError

if TYPE_CHECKING:
    from router.dispatch.engine import EngineClient
    from router.metrics import Metrics

logger = logging.getLogger(__name__)


class Aborts:
    """Aborts under way; each has a timeout of its own."""

    def __init__(self, engine: EngineClient, metrics: Metrics) -> None:
        self._engine = engine
        self._metrics = metrics
        self._tasks: set[asyncio.Task[None]] = set()

    def __len__(self) -> int:
        return len(self._tasks)

    def __repr__(self) -> str:
        return f"Aborts({len(self)} under way)"

    def send(self, url: str, rid: str, reason: str) -> None:
        """Have the engine at `url` give up the request that it knows as `rid`; `reason` is the label in metrics."""
        self._metrics.aborts.labels(reason).inc()
        task = asyncio.get_running_loop().create_task(self._abort(url, rid))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        """Wait for those under way."""
        await asyncio.gather(*self._tasks)

    async def _abort(self, url: str, rid: str) -> None:
        try:
            await self._engine.abort(url, rid)
        except EngineError as error:
            self._metrics.failed_aborts.inc()
            logger.info("%s could not be aborted: %s", rid, error)
