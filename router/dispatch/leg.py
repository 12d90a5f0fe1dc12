"""One attempt of a request at one worker: booked on entry, freed exactly once, aborted if it is left early."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, Self

from router.core import RoutingRequest
from router.dispatch.errors import EngineError, EngineFailed, EngineTimeout, EngineUnreachable
from router.dispatch.request import Output

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from router.core import Placement, Scheduler, Target
    from router.dispatch.chunks import EngineOutput
    from router.dispatch.journey import Journey
    from router.metrics import Metrics


class Endpoints(Protocol):
    """Where targets are reached; both raise KeyError if the worker is gone."""

    def endpoint(self, target: Target) -> str:
        """Base URL of the target's server."""

    def ranks(self, target: Target) -> int:
        """How many ranks its worker has."""


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
    """A context manager around one attempt; `abandon(url, rid, reason)` tells the engine that nobody waits any more."""

    def __init__(
        self,
        journey: Journey,
        routing: RoutingRequest,
        placement: Placement,
        scheduler: Scheduler,
        endpoints: Endpoints,
        metrics: Metrics,
        clock: Callable[[], float],
        abandon: Callable[[str, str, str], None],
    ) -> None:
        self._journey = journey
        self._scheduler = scheduler
        self._endpoints = endpoints
        self._metrics = metrics
        self._clock = clock
        self._abandon = abandon
        self._routing = routing
        self._url = ""
        self._before = len(journey.generated)
        self._tokens = 0
        self._started = False
        self._booked = True
        self.rid = f"{journey.request.request_id}-{journey.failures}"
        """The engine's name of this attempt."""
        self.placement = placement

    def __repr__(self) -> str:
        state = "booked" if self._booked else "freed"
        return f"Leg({self.rid} at {self.target}, {state}, {self._tokens} tokens)"

    @property
    def target(self) -> Target:
        """Where it goes."""
        return self.placement.target

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Free the booking if it still stands, and tell the engine if it may still be at work."""
        if not self._booked:
            return
        broken = isinstance(error, EngineError)
        # Left by the client: what was prefilled stays in the engine's cache. Nothing came yet: nobody knows, so do not believe it.
        self._free(failed=broken or not self._started)
        if self._url and (not broken or isinstance(error, EngineTimeout | EngineFailed)):
            self._abandon(self._url, self.rid, error.kind if isinstance(error, EngineError) else "left")

    def open(self) -> tuple[str, dict[str, object]]:
        """The engine's base URL, and the body for its `/generate`.

        :raises EngineUnreachable: the worker has left since the decision.
        """
        try:
            url, ranks = self._endpoints.endpoint(self.target), self._endpoints.ranks(self.target)
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
        return url, body

    def take(self, output: EngineOutput) -> Output:
        """Account for what the engine sent: booking, rates, tokens."""
        if not self._started:
            self._first(output)
        journey = self._journey
        journey.generated.extend(output.token_ids)
        self._tokens += len(output.token_ids)
        if output.finish_reason is None:
            self._scheduler.progress(journey.request.request_id, self._tokens)
        else:
            self._free(failed=False)
        return Output(output.token_ids, self.target, journey.cached_tokens or 0, output.finish_reason, output.matched)

    def _first(self, output: EngineOutput) -> None:
        self._started = True
        self._scheduler.first_token(self._journey.request.request_id, output.cached_tokens, self._clock())
        if output.cached_tokens is None:
            return
        self._metrics.cached_tokens_error.observe(self.placement.cached_tokens - output.cached_tokens)
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
        generated = self._journey.extended(self._routing.hashes) if self._started and not failed else None
        self._scheduler.free(self._journey.request.request_id, self._clock(), failed=failed, generated=generated)
