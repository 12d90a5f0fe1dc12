"""Carries a request's bytes to an engine's own OpenAI routes as they are, and the answer's bytes back."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from events.blocks import NO_HASHES, salt_seed, sequence_hashes
from router.core import Pair, Paths, RoutingRequest, Target
from router.dispatch.aborts import Aborts
from router.dispatch.answer import Answer
from router.dispatch.errors import EngineError
from router.dispatch.leg import Desk
from router.dispatch.placements import Placements
from router.dispatch.rooms import Rooms
from router.dispatch.textpair import PairAnswer

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    from numpy.typing import NDArray

    from router.core import Placement, Scheduler
    from router.dispatch.engine import EngineClient
    from router.dispatch.leg import Endpoints
    from router.dispatch.request import TextRequest
    from router.metrics import Metrics

BYTES_PER_TOKEN = 4
"""A guess, where nothing tokenizes: a prompt's load has to be something."""


class Relay:
    """Places requests, and moves them on when a worker fails before it has said anything.

    `on_failure` is told of every failure that is a worker's fault, `on_apart` of every one that is a pair's. `clock` must be the
    one whose times the scheduler is given everywhere else.
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
        self._rooms = rooms or Rooms()
        self._aborts = Aborts(engine, metrics)
        paths = paths or Paths(scheduler)
        self._desk = Desk(scheduler, paths, endpoints, metrics, clock, self._aborts.send)
        self._block_size = block_size
        self._migration_limit = migration_limit
        self._placements = Placements(paths, endpoints, metrics, policy, on_failure, on_apart, clock)

    def __repr__(self) -> str:
        return f"Relay({self._desk.paths!r})"

    async def open(self, request: TextRequest) -> Answer:
        """The answer, once its first bytes are here. Close it.

        :raises NoTarget: nobody can take it.
        :raises EngineRefused: an engine finds fault with it.
        :raises EngineError: it failed everywhere it was tried; the last failure.
        """
        hashes, prompt_tokens = request.prompt or (NO_HASHES, max(1, len(request.body) // BYTES_PER_TOKEN))
        excluded = request.excluded
        failures = 0
        last: EngineError | None = None
        while True:
            routing = RoutingRequest(
                request.request_id,
                hashes,
                prompt_tokens,
                excluded=excluded,
                model=request.model,
                opaque=not request.streams,
            )
            answer = self._answer(request, self._placements.place(routing, last, may_pair=request.divisible))
            try:
                await answer.begin()
            except EngineError as error:
                answer.close(error)
                failures += 1
                last, excluded = error, excluded | self._placements.failed(answer.blame(error), error)
                if failures > self._migration_limit:
                    raise
            except BaseException:
                answer.close()
                raise
            else:
                return answer

    def hashes(
        self, tokens: NDArray[np.uint32], cache_salt: str | None, adapter: str | None = None
    ) -> NDArray[np.uint64]:
        """Sequence hashes of a prompt's full blocks. O(n)."""
        return sequence_hashes(tokens, self._block_size, salt_seed(cache_salt, adapter))

    async def close(self) -> None:
        """Wait for aborts under way; each has a timeout of its own."""
        await self._aborts.close()

    def _answer(self, request: TextRequest, placement: Placement | Pair) -> Answer:
        if isinstance(placement, Pair):
            return PairAnswer(request, placement, self._desk, self._engine, self._placements.failed, self._rooms)
        return Answer(request, placement, self._desk, self._engine, self._placements.failed)
