"""Carries one request through as many workers as it takes."""

from __future__ import annotations

import time
from contextlib import aclosing
from typing import TYPE_CHECKING

from events.blocks import salt_seed, sequence_hashes
from router.core import Pair, Paths, RoutingRequest, Target
from router.dispatch.aborts import Aborts
from router.dispatch.errors import EngineError
from router.dispatch.journey import Journey
from router.dispatch.leg import Desk, Leg, routing_request
from router.dispatch.pair import PairedLegs
from router.dispatch.placements import Placements
from router.dispatch.request import Output
from router.dispatch.rooms import Rooms

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable

    import numpy as np
    from numpy.typing import NDArray

    from router.core import Scheduler
    from router.core.paths import PathDecision
    from router.dispatch.engine import EngineClient
    from router.dispatch.errors import Blamed
    from router.dispatch.leg import Endpoints
    from router.dispatch.request import TokenRequest
    from router.metrics import Metrics


class Dispatcher:
    """Places requests, has them generated, and moves them on when a worker fails.

    `on_failure` is told of every failure that is a worker's fault, and `on_apart` of every one that is a pair's, before the request
    is placed again. `clock` must be the one whose times the scheduler is given everywhere else.
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
        paths: Paths | None = None,
        rooms: Rooms | None = None,
        on_failure: Callable[[Target, EngineError], None] = lambda target, error: None,
        on_apart: Callable[[Target, Target, EngineError], None] = lambda prefill, decode, error: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._engine = engine
        self._paths = paths or Paths(scheduler)
        self._rooms = rooms or Rooms()
        self._aborts = Aborts(engine, metrics)
        self._desk = Desk(scheduler, self._paths, endpoints, metrics, clock, self._aborts.send)
        self._block_size = block_size
        self._migration_limit = migration_limit
        self._clock = clock
        self._placements = Placements(self._paths, endpoints, metrics, policy, on_failure, on_apart, clock)

    def __repr__(self) -> str:
        return f"Dispatcher({self._paths!r}, {len(self._aborts)} aborts under way)"

    async def run(self, request: TokenRequest) -> AsyncGenerator[Output]:
        """The tokens of a request as they come; the last output has a finish reason.

        Close the generator (`contextlib.aclosing`) to give the request up: it is aborted at its engine and its booking freed.

        :raises NoTarget: nobody can take it.
        :raises EngineRefused: an engine finds fault with it.
        :raises EngineError: it failed everywhere it was tried; the last failure.
        """
        journey = Journey(request, self._block_size)
        while journey.remaining_tokens > 0:
            attempt = self._book(journey)
            try:
                with attempt:
                    async with aclosing(attempt.generate(self._engine)) as outputs:
                        async for output in outputs:
                            yield attempt.take(output)
            except EngineError as error:
                self._failed(journey, attempt.blame(error), error)
            else:
                return
        # Cut off between the last token and its finish reason: nothing is left to generate elsewhere.
        yield Output([], attempt.target, journey.cached_tokens or 0, finish_reason="length")

    def explain(
        self,
        prompt: NDArray[np.uint32],
        model: str | None = None,
        cache_salt: str | None = None,
        adapter: str | None = None,
        excluded: frozenset[Target] = frozenset(),
    ) -> PathDecision:
        """How a prompt would be placed now, and why; nothing is booked or sent."""
        hashes = sequence_hashes(prompt, self._block_size, salt_seed(cache_salt, adapter))
        request = RoutingRequest("explain", hashes, len(prompt), excluded=excluded, model=model)
        return self._paths.explain(request, self._clock())

    async def close(self) -> None:
        """Wait for aborts under way; each has a timeout of its own."""
        await self._aborts.close()

    def _book(self, journey: Journey) -> Leg | PairedLegs:
        routing = routing_request(journey)
        placement = self._placements.place(routing, journey.error)
        if isinstance(placement, Pair):
            seconds = self._engine.timeouts.transfer_seconds
            return PairedLegs(journey, routing, placement, self._desk, self._rooms, seconds)
        return Leg(journey, routing, placement, self._desk)

    def _failed(self, journey: Journey, blamed: Blamed, error: EngineError) -> None:
        """Note a failure; raise it again unless the request may go on elsewhere."""
        journey.fail(error, self._placements.failed(blamed, error))
        begun, limit = bool(journey.generated), journey.request.migration_limit
        if limit is None:
            limit = self._migration_limit
        if journey.failures > limit or (begun and not journey.request.resumable):
            raise error
