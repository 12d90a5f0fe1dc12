"""How requests are served: placed by the routers, worked on by the engines, and accounted for."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from router.core import NoTarget, RoutingRequest
from sim.engine import FrontDoor
from sim.fleet import Content, EngineFleet
from sim.fleet.kernels import FIRST_TOKEN
from sim.replay.outcome import NOWHERE
from sim.replay.routers import Routers

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from router.core.policy import Policy
    from sim.replay.settings import Settings
    from sim.traces import Trace

PROGRESS_SECONDS = 0.25
"""Routers know to this precision how many tokens came out so far."""


class Ended(NamedTuple):
    """A request is over."""

    request: int
    time: float


class Columns:
    """What is noted of each request at its placement; shapes (n,)."""

    def __init__(self, requests: int) -> None:
        self.worker = np.full(requests, NOWHERE, np.int32)
        self.prefill_worker = np.full(requests, NOWHERE, np.int32)
        self.expected_cached_tokens = np.zeros(requests, np.int64)
        self.best_cached_tokens = np.zeros(requests, np.int64)
        self.predicted_ttft_seconds = np.full(requests, np.nan)
        self.failed = np.zeros(requests, np.bool_)


class Service:
    """Every request by one worker. `Paired` is the other way.

    :param lookahead: nobody is asked anything sooner than so many seconds after a request's end.
    """

    legs = 1
    """How often a request is in engines at once."""

    def __init__(
        self, trace: Trace, make_policy: Callable[[], Policy], settings: Settings, lookahead: float = math.inf
    ) -> None:
        content = Content.of(trace)
        self.trace, self.settings = trace, settings
        self.hashes = content.hashes(settings.block_size)
        self.fleet = EngineFleet(
            content,
            [settings.engine] * len(settings.parts),
            legs=self.legs,
            event_loss=settings.event_loss,
            seed=settings.seed,
        )
        self.routers = Routers(make_policy, settings)
        self.columns = Columns(len(trace))
        self.busy_seconds = np.zeros((2, len(settings.parts)))
        """In prefill and in decode, of processes that are gone."""
        self._doors = [FrontDoor(settings.engine.timing) for _ in settings.parts]
        self._lookahead = lookahead
        self._progress_at = self._heard_at = -math.inf

    # ---- time passes

    def work(self, until: float) -> float:
        """Let the engines work; returns until when: earlier where a request ended, for another one may follow it."""
        return self.fleet.advance(until, self._lookahead)

    def notices(self, now: float) -> list[tuple[float, int, int, int]]:
        """Time, sequence, kind and cached tokens of what is there to be noticed by now, in order of time."""
        taken: list[tuple[float, int, int, int]] = self.fleet.notices(now).tolist()
        return taken

    def tell(self, now: float) -> list[Ended]:
        """Routers see what comes back to their clients, when it does; returns what ended by now."""
        ended = list[Ended]()
        for time, sequence, kind, cached in self.notices(now):
            if kind == FIRST_TOKEN:
                self.first_token(sequence, cached, time)
            elif self.end(sequence, time):
                ended.append(Ended(sequence % len(self.trace), time))
        return ended

    def hear(self, now: float) -> None:
        """Routers hear what engines said by now: before a decision, for nothing else depends on it."""
        if now == self._heard_at:
            return
        self._heard_at = now
        settings = self.settings
        heard = now - settings.event_lag_seconds
        changes = self.fleet.changes(heard, settings.block_size, self.hashes)
        if settings.kv_events:
            self.routers.tell_changes(changes)
        else:
            for _ in changes:
                pass
        interval = settings.load_report_interval_seconds
        reported = math.floor(heard / interval) * interval if interval else heard
        self.routers.tell_loads(self.fleet.loads(reported), now)
        if now - self._progress_at >= PROGRESS_SECONDS:
            self._progress_at = now
            self._tell_progress()

    def _tell_progress(self) -> None:
        requests, sequences = len(self.trace), self.fleet.sequences["output_tokens"]
        for engine in np.flatnonzero(self.fleet.engines["running"]).tolist():
            rows = self.fleet.running(engine)
            for request, tokens in zip((rows % requests).tolist(), sequences[rows].tolist(), strict=True):
                self.routers[request].progress(str(request), tokens)

    # ---- one request

    def place(self, request: int, now: float, prompt_tokens: int, output_tokens: int) -> bool:
        """Decide about a request, and send it to its worker; whether it could be."""
        self.hear(now)
        try:
            worker, placement = self.routers.place(request, self.routing(request, prompt_tokens), now)
        except NoTarget:
            self.columns.failed[request] = True
            return False
        self.note(request, prompt_tokens, placement.cached_tokens, placement.predicted_ttft_seconds)
        self.columns.worker[request] = worker
        return self.submit(request, worker, now, prompt_tokens, output_tokens)

    def routing(self, request: int, prompt_tokens: int) -> RoutingRequest:
        """A request as routers see it."""
        return RoutingRequest(
            str(request), self.hashes.of(request, prompt_tokens // self.settings.block_size), prompt_tokens
        )

    def note(self, request: int, prompt_tokens: int, cached_tokens: int, ttft_seconds: float | None) -> None:
        """Keep what the router expected, and what it could have found."""
        columns = self.columns
        columns.expected_cached_tokens[request] = cached_tokens
        columns.best_cached_tokens[request] = self.fleet.most_held(request, prompt_tokens, self.caching())
        if ttft_seconds is not None:
            columns.predicted_ttft_seconds[request] = ttft_seconds

    def caching(self) -> range:
        """The workers with a prefix cache."""
        return range(len(self.settings.parts))

    def submit(self, request: int, worker: int, now: float, prompt_tokens: int, output_tokens: int) -> bool:
        """Send a request to a worker; whether it takes it."""
        reaches = self._doors[worker].arrival(now, prompt_tokens)
        try:
            self.fleet.submit(request, worker, reaches, prompt_tokens, output_tokens)
        except ValueError:
            self.columns.failed[request] = True
            self.routers[request].free(str(request), now, failed=True)
            return False
        return True

    def first_token(self, sequence: int, cached_tokens: int, time: float) -> None:
        """A first token came out."""
        self.routers[sequence].first_token(str(sequence), cached_tokens, time)

    def end(self, sequence: int, time: float) -> bool:
        """A sequence is over; whether the request is."""
        self.routers[sequence].free(str(sequence), time, generated=self.generated(sequence))
        return True

    def generated(self, request: int) -> NDArray[np.uint64] | None:
        """What an engine that tells nothing has in its cache after a request."""
        if self.settings.kv_events:
            return None
        return self.hashes.of(request, (self.fleet.content.total_tokens.item(request) - 1) // self.settings.block_size)

    # ---- workers come and go

    def kill(self, worker: int, now: float) -> None:
        """A worker dies: its requests go on elsewhere, with what came out of them so far as part of their prompts."""
        for request in self.clear(worker):
            self.place_again(request, now)

    def clear(self, worker: int) -> list[int]:
        """A worker's process is gone, for its engine and for the routers; returns the sequences that were inside."""
        engine = self.fleet.engines[worker]
        self.busy_seconds[:, worker] += engine["prefill_seconds"], engine["decode_seconds"]
        orphans: list[int] = self.fleet.clear(worker).tolist()
        self.routers.remove(worker)
        self._doors[worker] = FrontDoor(self.settings.engine.timing)
        return orphans

    def place_again(self, sequence: int, now: float) -> None:
        """Place what was in an engine that is gone."""
        row = self.fleet.sequences[sequence]
        prompt_tokens, output_tokens = int(row["prompt_tokens"]), int(row["output_tokens"])
        left = int(row["max_new_tokens"]) - output_tokens
        self.place(sequence % len(self.trace), now, prompt_tokens + output_tokens, left)

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {self.fleet!r}>"
