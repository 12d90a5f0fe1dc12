"""One attempt of a request at one worker: booked on entry, freed exactly once, aborted if it is left early."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol, Self

from router.core import Path, RoutingRequest
from router.dispatch.errors import EngineError, EngineFailed, EngineTimeout, EngineUnreachable
from router.dispatch.request import Output

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable
    from types import TracebackType

    from router.core import Paths, Placement, Scheduler, Target
    from router.dispatch.chunks import EngineOutput
    from router.dispatch.engine import EngineClient
    from router.dispatch.errors import Blamed
    from router.dispatch.journey import Journey
    from router.metrics import Metrics


class Endpoints(Protocol):
    """Where targets are reached; all raise KeyError if the worker is gone."""

    def endpoint(self, target: Target) -> str:
        """Base URL of the target's server."""

    def ranks(self, target: Target) -> int:
        """How many ranks its worker has."""

    def bootstrap(self, target: Target) -> tuple[str, int]:
        """Host and port at which decode workers ask a prefill worker for KV."""


class Desk(NamedTuple):
    """What every attempt works with. `abandon(url, rid, reason)` tells the engine that nobody waits any more."""

    scheduler: Scheduler
    paths: Paths
    endpoints: Endpoints
    metrics: Metrics
    clock: Callable[[], float]
    abandon: Callable[[str, str, str], None]


def routing_request(journey: Journey) -> RoutingRequest:
    """The journey, as far as the next placement depends on it. O(n) in its tokens."""
    tokens = journey.tokens()
    return RoutingRequest(
        request_id=journey.request.request_id,
        hashes=journey.hashes(tokens),
        prompt_tokens=len(tokens),
        excluded=frozenset(journey.excluded),
        model=journey.request.model,
    )


class Leg:
    """A context manager around one attempt."""

    def __init__(self, journey: Journey, routing: RoutingRequest, placement: Placement, desk: Desk) -> None:
        self._journey = journey
        self._desk = desk
        self._routing = routing
        self._url = ""
        self._before = len(journey.generated)
        self._tokens = 0
        self._booked = True
        self._booked_at = desk.clock()
        self.started = False
        """Whether a token came."""
        self.rid = f"{journey.request.request_id}-{journey.failures}"
        """The engine's name of this attempt."""
        self.placement = placement

    def __repr__(self) -> str:
        state = "booked" if self._booked else "freed"
        return f"{type(self).__name__}({self.rid} at {self.target}, {state}, {self._tokens} tokens)"

    @property
    def target(self) -> Target:
        """Where it goes."""
        return self.placement.target

    def blame(self, error: EngineError) -> Blamed:
        """Whose fault a failure is: a target's, or that of a prefill and a decode target together."""
        return (self.target,)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Free the booking if it still stands, and tell the engine if it may still be at work."""
        self.end(error)

    def end(self, error: BaseException | None, *, reason: str = "left") -> None:
        """It is over; `error` is its own, and `reason` why it ends without one. Idempotent."""
        if not self._booked:
            return
        broken = isinstance(error, EngineError)
        # Left by the client: what was prefilled stays in the engine's cache. Nothing came yet: nobody knows, so do not believe it.
        self._free(failed=broken or not self.started)
        if self._url and (not broken or isinstance(error, EngineTimeout | EngineFailed)):
            self._desk.abandon(self._url, self.rid, error.kind if isinstance(error, EngineError) else reason)

    def generate(self, engine: EngineClient) -> AsyncGenerator[EngineOutput]:
        """The engine's answer, to be taken by `take`; see `EngineClient.generate`.

        :raises EngineUnreachable: the worker has left since the decision.
        """
        return engine.generate(*self.open())

    def open(self) -> tuple[str, dict[str, object]]:
        """The engine's base URL, and the body for its `/generate`.

        :raises EngineUnreachable: the worker has left since the decision.
        """
        try:
            url, ranks = self._desk.endpoints.endpoint(self.target), self._desk.endpoints.ranks(self.target)
        except KeyError as error:
            raise EngineUnreachable(f"{self.target} has left") from error
        self._url = url
        request = self._journey.request
        body: dict[str, object] = {
            "rid": self.rid,
            "input_ids": self._journey.tokens().tolist(),
            "sampling_params": self._sampling(),
            "stream": True,
        }
        if ranks > 1:
            body["routed_dp_rank"] = self.target.rank
        if request.cache_salt is not None:
            body["cache_salt"] = request.cache_salt
        if request.extra_key is not None:
            body["extra_key"] = request.extra_key
        if request.adapter is not None:
            body["lora_path"] = request.adapter
        return url, body

    def take(self, output: EngineOutput) -> Output:
        """Account for what the engine sent: booking, rates, tokens."""
        if not self.started:
            self._first(output)
        journey = self._journey
        journey.generated.extend(output.token_ids)
        self._tokens += len(output.token_ids)
        if output.finish_reason is None:
            self._desk.scheduler.progress(self._routing.request_id, self._tokens)
        else:
            self._free(failed=False)
        return Output(output.token_ids, self.target, journey.cached_tokens or 0, output.finish_reason, output.matched)

    def _first(self, output: EngineOutput) -> None:
        self.started = True
        now = self._desk.clock()
        self._prefilled(output, now)
        self._desk.paths.first_token(Path.WHOLE, self.placement.predicted_ttft_seconds, now - self._booked_at, now)

    def _prefilled(self, output: EngineOutput, now: float) -> None:
        """The prompt's KV is there, and some of it was before."""
        self._desk.scheduler.first_token(self._routing.request_id, output.cached_tokens, now)
        if output.cached_tokens is None:
            return
        self._desk.metrics.cached_tokens_error.observe(self.placement.cached_tokens - output.cached_tokens)
        if self._journey.cached_tokens is None:
            self._journey.cached_tokens = output.cached_tokens

    def _sampling(self) -> dict[str, object]:
        sampling = dict(self._journey.request.sampling)
        sampling["max_new_tokens"] = self._journey.remaining_tokens
        least = sampling.get("min_new_tokens")
        if isinstance(least, int):
            sampling["min_new_tokens"] = max(0, least - self._before)
        return sampling

    def _free(self, *, failed: bool) -> None:
        self._booked = False
        generated = self._journey.extended(self._routing.hashes) if self.started and not failed else None
        self._desk.scheduler.free(self._routing.request_id, self._desk.clock(), failed=failed, generated=generated)
