"""Carries one request through as many workers as it takes."""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import aclosing
from typing import TYPE_CHECKING

from events.blocks import salt_seed, sequence_hashes
from router.core import RoutingRequest, Target
from router.dispatch.errors import EngineError
from router.dispatch.journey import Journey
from router.dispatch.leg import Leg, routing_request
from router.dispatch.placements import Placements
from router.dispatch.request import Output

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable

    import numpy as np
    from numpy.typing import NDArray

    from router.core import Decision, Scheduler
    from router.dispatch.engine import EngineClient
    from router.dispatch.leg import Endpoints
    from router.dispatch.request import TokenRequest
    from router.metrics import Metrics

logger = logging.getLogger(__name__)


class Dispatcher:
    """Places requests, has them generated, and moves them on when a worker fails.

    `on_failure` is told of every failure that is a worker's fault, before the request is placed again. `clock` must be the one
    whose times the scheduler is given everywhere else.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        engine: EngineClient,
        endpoints: Endpoints,
        metrics: Metrics,
        *,
        block_size: int,
        policy: str = "unnamed",
        migration_limit: int = 3,
        on_failure: Callable[[Target, EngineError], None] = lambda target, error: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._scheduler = scheduler
        self._engine = engine
        self._endpoints = endpoints
        self._metrics = metrics
        self._block_size = block_size
        self._migration_limit = migration_limit
        self._clock = clock
        self._placements = Placements(scheduler, endpoints, metrics, policy, on_failure, clock)
        self._aborts: set[asyncio.Task[None]] = set()

    def __repr__(self) -> str:
        return f"Dispatcher({self._scheduler!r}, {len(self._aborts)} aborts under way)"

    async def run(self, request: TokenRequest) -> AsyncGenerator[Output]:
        """The tokens of a request as they come; the last output has a finish reason.

        Close the generator (`contextlib.aclosing`) to give the request up: it is aborted at its engine and its booking freed.

        :raises NoTarget: nobody can take it.
        :raises EngineRefused: an engine finds fault with it.
        :raises EngineError: it failed everywhere it was tried; the last failure.
        """
        journey = Journey(request, self._block_size)
        while journey.remaining_tokens > 0:
            leg = self._book(journey)
            try:
                with leg:
                    async with aclosing(self._engine.generate(*leg.open())) as outputs:
                        async for output in outputs:
                            yield leg.take(output)
            except EngineError as error:
                self._failed(journey, leg.target, error)
            else:
                return
        # Cut off between the last token and its finish reason: nothing is left to generate elsewhere.
        yield Output([], leg.target, journey.cached_tokens or 0, finish_reason="length")

    def explain(self, prompt: NDArray[np.uint32], model: str | None = None, cache_salt: str | None = None) -> Decision:
        """How a prompt would be placed now, and why; nothing is booked or sent."""
        hashes = sequence_hashes(prompt, self._block_size, salt_seed(cache_salt))
        return self._scheduler.explain(RoutingRequest("explain", hashes, len(prompt), model=model), self._clock())

    async def close(self) -> None:
        """Wait for aborts under way; each has a timeout of its own."""
        await asyncio.gather(*self._aborts)

    def _book(self, journey: Journey) -> Leg:
        routing = routing_request(journey)
        placement = self._placements.place(routing, journey.error)
        return Leg(
            journey, routing, placement, self._scheduler, self._endpoints, self._metrics, self._clock, self._abandon
        )

    def _failed(self, journey: Journey, target: Target, error: EngineError) -> None:
        """Note a failure; raise it again unless the request may go on elsewhere."""
        journey.fail(error, self._placements.failed(target, error))
        begun, limit = bool(journey.generated), journey.request.migration_limit
        if limit is None:
            limit = self._migration_limit
        if journey.failures > limit or (begun and not journey.request.resumable):
            raise error

    def _abandon(self, url: str, rid: str, reason: str) -> None:
        """Have the engine told, behind the request's back."""
        self._metrics.aborts.labels(reason).inc()
        task = asyncio.get_running_loop().create_task(self._abort(url, rid))
        self._aborts.add(task)
        task.add_done_callback(self._aborts.discard)

    async def _abort(self, url: str, rid: str) -> None:
        try:
            await self._engine.abort(url, rid)
        except EngineError as error:
            self._metrics.failed_aborts.inc()
            logger.info("%s could not be aborted: %s", rid, error)
