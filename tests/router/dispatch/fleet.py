"""A scheduler, a dispatcher and scripted engines, put together."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

from router.core import Part, Paths, Scheduler, Target
from router.core.policy import create
from router.dispatch.dispatcher import Dispatcher
from router.dispatch.engine import EngineClient, EngineTimeouts
from router.frontend.models import ServedModel
from router.metrics import Metrics
from tests.router.dispatch.upstream import Upstream, running

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence

    from router.dispatch.chunks import EngineOutput
    from router.dispatch.errors import EngineError

MODEL = "tiny"
BLOCK_SIZE = 16
PATIENT = EngineTimeouts(first_token_seconds=20, idle_seconds=20)
FOR_HUNG = {
    "hang": EngineTimeouts(first_token_seconds=0.05, idle_seconds=20),
    "hang_before_token": EngineTimeouts(first_token_seconds=0.05, idle_seconds=20),
    "hang_mid": EngineTimeouts(first_token_seconds=20, idle_seconds=0.2),
}


class StaticFleet:
    """Workers w0, w1, … as the dispatcher and the frontend need to see them."""

    def __init__(self, upstreams: tuple[Upstream, ...], ranks: int, context_tokens: int) -> None:
        self.urls = {f"w{i}": upstream.url for i, upstream in enumerate(upstreams)}
        self.said: dict[str, Any] = {}
        self._ranks = ranks
        self._context_tokens = context_tokens

    def endpoint(self, target: Target) -> str:
        return self.urls[target.worker_id]

    def ranks(self, target: Target) -> int:
        self.urls[target.worker_id]
        return self._ranks

    def bootstrap(self, target: Target) -> tuple[str, int]:
        self.urls[target.worker_id]
        return f"{target.worker_id}.host", 8998

    def models(self) -> list[str]:
        return [MODEL] if self.urls else []

    def served(self) -> dict[str, ServedModel]:
        return {MODEL: ServedModel(MODEL)._replace(**self.said)}

    def without_adapter(self, model: str, adapter: str) -> frozenset[Target]:
        return frozenset()

    def workers(self) -> list[dict[str, Any]]:
        return [{"worker_id": name} for name in self.urls]

    def context_tokens(self, model: str) -> int | None:
        return self._context_tokens if model in self.models() else None


class ImpatientClient(EngineClient):
    """Short of patience with engines that hang, and only where they do: a slow machine makes no other request time out."""

    def __init__(self, upstreams: tuple[Upstream, ...]) -> None:
        super().__init__(PATIENT)
        self._clients = {
            upstream.url: EngineClient(FOR_HUNG[upstream.mode]) for upstream in upstreams if upstream.mode in FOR_HUNG
        }

    def generate(self, endpoint: str, body: Mapping[str, object]) -> AsyncGenerator[EngineOutput]:
        if endpoint in self._clients:
            return self._clients[endpoint].generate(endpoint, body)
        return super().generate(endpoint, body)

    async def close(self) -> None:
        for client in self._clients.values():
            await client.close()
        await super().close()


class Stack:
    """All of it. `calls` is what the scheduler was told, in order; `failures` what the fleet was told."""

    def __init__(
        self,
        *upstreams: Upstream,
        impatient: bool,
        ranks: int,
        migration_limit: int,
        exact: bool,
        parts: Sequence[Part],
        timeouts: EngineTimeouts,
    ) -> None:
        self.upstreams = upstreams
        self.fleet = StaticFleet(upstreams, ranks, context_tokens=4096)
        self.scheduler = Scheduler(create("round-robin"), BLOCK_SIZE, decode_policy=create("round-robin"))
        self.paths = Paths(self.scheduler)
        self.engine = ImpatientClient(upstreams) if impatient else EngineClient(timeouts)
        self.metrics = Metrics()
        self.failures: list[tuple[Target, EngineError]] = []
        self.apart: list[tuple[Target, Target]] = []
        self.freed: list[tuple[str, bool]] = []
        self.first_tokens: list[int | None] = []
        for name, part in zip(self.fleet.urls, parts or [Part.WHOLE] * len(upstreams), strict=True):
            for rank in range(ranks):
                self.scheduler.add_target(
                    Target(name, rank), capacity_tokens=10_000, model=MODEL, exact=exact, part=part
                )
        self._spy()
        self.dispatcher = Dispatcher(
            self.scheduler,
            self.engine,
            self.fleet,
            self.metrics,
            block_size=BLOCK_SIZE,
            policy="round-robin",
            migration_limit=migration_limit,
            paths=self.paths,
            on_failure=lambda target, error: self.failures.append((target, error)),
            on_apart=self._kept_apart,
        )

    def _kept_apart(self, prefill: Target, decode: Target, error: EngineError) -> None:
        self.apart.append((prefill, decode))
        self.paths.set_together(prefill, decode, together=False)

    def _spy(self) -> None:
        free, first_token = self.scheduler.free, self.scheduler.first_token

        def freed(request_id: str, now: float, **how: Any) -> None:
            self.freed.append((request_id, how["failed"]))
            free(request_id, now, **how)

        def first(request_id: str, cached_tokens: int | None, now: float) -> None:
            self.first_tokens.append(cached_tokens)
            first_token(request_id, cached_tokens, now)

        self.scheduler.free, self.scheduler.first_token = freed, first

    def check_all_freed(self) -> None:
        """No booking is left, and none was freed twice."""
        statistics = self.scheduler.statistics()
        assert statistics.requests == 0
        assert statistics.unknown_requests == 0
        assert statistics.repeated_first_tokens == 0
        assert len(self.freed) == statistics.placements

    def count(self, name: str, **labels: str) -> float:
        """A metric's value."""
        return self.metrics.registry.get_sample_value(f"warmpath_{name}", labels) or 0.0


@contextlib.asynccontextmanager
async def stack(
    *modes: str | Upstream,
    impatient: bool = False,
    ranks: int = 1,
    migration_limit: int = 3,
    exact: bool = True,
    parts: Sequence[Part] = (),
    timeouts: EngineTimeouts = PATIENT,
) -> AsyncIterator[Stack]:
    """Running engines of these modes behind a dispatcher; checks at the end that all bookings were freed."""
    upstreams = tuple(mode if isinstance(mode, Upstream) else Upstream(mode) for mode in modes)
    async with running(*upstreams):
        built = Stack(
            *upstreams,
            impatient=impatient,
            ranks=ranks,
            migration_limit=migration_limit,
            exact=exact,
            parts=parts,
            timeouts=timeouts,
        )
        try:
            yield built
        finally:
            await built.dispatcher.close()
            await built.engine.close()
        built.check_all_freed()
