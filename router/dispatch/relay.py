"""Carries a request's bytes to an engine's own OpenAI routes as they are, and the answer's bytes back."""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from events.blocks import NO_HASHES, salt_seed, sequence_hashes
from router.core import RoutingRequest, Target
from router.dispatch.errors import EngineError, EngineTimeout, EngineUnreachable
from router.dispatch.http.client import JSON_HEADERS
from router.dispatch.placements import Placements
from router.dispatch.textchunks import FirstContent, Usage, reply_usage, stream_error, stream_usage

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import numpy as np
    from numpy.typing import NDArray

    from router.core import Placement, Scheduler
    from router.dispatch.engine import EngineClient
    from router.dispatch.http import Response
    from router.dispatch.leg import Endpoints
    from router.metrics import Metrics

logger = logging.getLogger(__name__)

RANK_HEADER = "X-Data-Parallel-Rank"
"""As SGLang reads it: the body stays as the client sent it."""
BYTES_PER_TOKEN = 4
"""A guess, where nothing tokenizes: a prompt's load has to be something."""
MAX_REPLY_BYTES = 1024**3
USAGE_TAIL_BYTES = 8192


class PromptHashes(NamedTuple):
    """A prompt, as far as its placement depends on it."""

    hashes: NDArray[np.uint64]
    """Sequence hashes of its full blocks, shape (blocks,)."""
    tokens: int
    """Its length."""


@dataclass(slots=True, eq=False)
class TextRequest:
    """A body, and what is known of it."""

    request_id: str
    """Unique among the requests of this process: it names the booking."""
    path: str
    """Of the engine's route."""
    body: bytes
    model: str | None = None
    """None: any."""
    prompt: PromptHashes | None = None
    """To be routed by; None: by load alone."""
    headers: Mapping[str, str] = field(default_factory=dict)
    """Sent along with it alone."""
    reports_usage: bool = False
    """A stream of its ends with the usage."""


class Relay:
    """Places requests, and moves them on when a worker fails before it has said anything.

    `on_failure` is told of every failure that is a worker's fault. `clock` must be the one whose times the scheduler is given
    everywhere else.
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

    def __repr__(self) -> str:
        return f"Relay({self._scheduler!r})"

    async def open(self, request: TextRequest) -> Answer:
        """The answer, once its first bytes are here. Close it.

        :raises NoTarget: nobody can take it.
        :raises EngineRefused: an engine finds fault with it.
        :raises EngineError: it failed everywhere it was tried; the last failure.
        """
        hashes, prompt_tokens = request.prompt or (NO_HASHES, max(1, len(request.body) // BYTES_PER_TOKEN))
        excluded: frozenset[Target] = frozenset()
        failures = 0
        last: EngineError | None = None
        while True:
            routing = RoutingRequest(request.request_id, hashes, prompt_tokens, excluded=excluded, model=request.model)
            placement = self._placements.place(routing, last)
            answer = Answer(
                request, placement, self._scheduler, self._engine, self._metrics, self._clock, self._placements.failed
            )
            try:
                await answer.begin(self._endpoints)
            except EngineError as error:
                answer.close(error)
                failures += 1
                last, excluded = error, excluded | self._placements.failed(placement.target, error)
                if failures > self._migration_limit:
                    raise
            except BaseException:
                answer.close()
                raise
            else:
                return answer

    def hashes(self, tokens: NDArray[np.uint32], cache_salt: str | None) -> NDArray[np.uint64]:
        """Sequence hashes of a prompt's full blocks. O(n)."""
        return sequence_hashes(tokens, self._block_size, salt_seed(cache_salt))


class Answer:
    """An engine's answer, and the booking that lasts until it is closed. Iterating gives a stream's bytes as they come."""

    def __init__(
        self,
        request: TextRequest,
        placement: Placement,
        scheduler: Scheduler,
        engine: EngineClient,
        metrics: Metrics,
        clock: Callable[[], float],
        failed: Callable[[Target, EngineError], object],
    ) -> None:
        self.content_type = "application/json"
        self.body = b""
        """The whole of it, or of a stream what came first."""
        self.usage: Usage | None = None
        """As far as the engine has told, and only once the answer is complete."""
        self._request = request
        self._placement = placement
        self._scheduler = scheduler
        self._engine = engine
        self._metrics = metrics
        self._clock = clock
        self._failed = failed
        self._response: Response | None = None
        self._url = ""
        self._first: FirstContent | None = FirstContent()
        self._tail = b""
        self._booked = True
        self._complete = False

    def __repr__(self) -> str:
        state = "booked" if self._booked else "freed"
        return f"Answer({self._request.request_id} at {self.target}, {state}, {self._response})"

    @property
    def target(self) -> Target:
        """Who answers."""
        return self._placement.target

    @property
    def streams(self) -> bool:
        """Whether more than `body` is to come."""
        return self.content_type.startswith("text/event-stream")

    async def begin(self, endpoints: Endpoints) -> None:
        """Send the request, and wait for the whole reply, or a stream's first bytes.

        :raises EngineError: neither came.
        """
        self._url, headers = self._address(endpoints)
        self._response = response = await self._engine.post(
            self._url, self._request.body, headers, self._request.headers
        )
        self.content_type = (response.header(b"content-type") or b"application/json").decode("latin-1")
        if self.streams:
            await self._begin_stream(response)
            return
        self.body = await self._engine.read_all(self._url, response, MAX_REPLY_BYTES)
        self.usage = reply_usage(self.body)
        self._begun(self.usage)
        self._complete = True
        self.close()

    def __aiter__(self) -> Answer:
        return self

    async def __anext__(self) -> bytes:
        """A stream's next bytes, after `body`: what has arrived.

        :raises EngineError: the rest will not come.
        """
        assert self._response is not None
        self._response.deadline = asyncio.get_running_loop().time() + self._engine.timeouts.idle_seconds
        try:
            data = await self._engine.read(self._url, self._response)
        except EngineError as error:
            self.close(error)
            self._failed(self.target, error)
            raise
        if not data:
            self._complete = True
            self.usage = stream_usage(self._tail)
            raise StopAsyncIteration
        self._look(data)
        return data

    def close(self, error: EngineError | None = None) -> None:
        """Free the booking; if the answer is not complete, close its connection: its engine gives the request up. Idempotent."""
        if self._response is not None:
            self._response.close()
        if not self._booked:
            return
        self._booked = False
        # Left by the client: what was prefilled stays in the engine's cache. Nothing came yet: nobody knows, so do not believe it.
        failed = error is not None or self._first is not None
        self._scheduler.free(self._request.request_id, self._clock(), failed=failed)
        if not self._complete and (error is None or isinstance(error, EngineTimeout)):
            self._metrics.aborts.labels(error.kind if error is not None else "left").inc()

    def _address(self, endpoints: Endpoints) -> tuple[str, dict[str, str]]:
        """The URL and the headers.

        :raises EngineUnreachable: the worker has left since the decision.
        """
        try:
            endpoint, ranks = endpoints.endpoint(self.target), endpoints.ranks(self.target)
        except KeyError as error:
            raise EngineUnreachable(f"{self.target} has left") from error
        headers = {**JSON_HEADERS, RANK_HEADER: str(self.target.rank)} if ranks > 1 else JSON_HEADERS
        return f"{endpoint}{self._request.path}", headers

    async def _begin_stream(self, response: Response) -> None:
        self.body = await self._engine.read(self._url, response)
        if error := stream_error(self.body):
            raise error
        self._look(self.body)

    def _look(self, data: bytes) -> None:
        """See what the scheduler should know of a part of a stream; it is not changed."""
        if self._first is not None and self._first.feed(data):
            self._begun(self._first.usage)
        if self._request.reports_usage:
            self._tail = (self._tail + data)[-USAGE_TAIL_BYTES:]

    def _begun(self, usage: Usage | None) -> None:
        """The first token is there."""
        self._first = None
        cached_tokens = usage.cached_tokens if usage is not None else None
        self._scheduler.first_token(self._request.request_id, cached_tokens, self._clock())
        if cached_tokens is not None:
            self._metrics.cached_tokens_error.observe(self._placement.cached_tokens - cached_tokens)
