"""The loop in virtual time: arrivals, decisions, engines, and what the engines tell the routers."""

from __future__ import annotations

import heapq
import math
import time
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from router.core import NoTarget, RoutingRequest
from sim.fleet import Content, EngineFleet, gap_edges
from sim.fleet.kernels import ABORT, FIRST_TOKEN
from sim.replay.outcome import NOWHERE, Outcome, Samples
from sim.replay.routers import Routers
from sim.replay.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from router.core.policy import Policy
    from sim.replay.settings import Kill
    from sim.traces import Trace

SAMPLES = 600
"""The fleet is looked at about so often during a replay."""
PROGRESS_SECONDS = 0.25
"""Routers know how many tokens came out so far, to this precision."""


class _Action(NamedTuple):
    """What is due at a time; of several at once, the one that was planned first comes first."""

    time: float
    number: int
    do: Callable[[float], None]


class Replay:
    """One policy serves a trace. The same trace, settings and seed give the same outcome, bit by bit."""

    def __init__(self, trace: Trace, make_policy: Callable[[], Policy], settings: Settings, label: str) -> None:
        self.trace, self.settings, self.label = trace, settings, label
        content = Content.of(trace)
        self._hashes = content.hashes(settings.block_size)
        self._fleet = EngineFleet(
            content,
            [settings.engine] * settings.workers,
            event_loss=settings.event_loss,
            seed=settings.seed,
        )
        self._routers = Routers(make_policy, settings)
        self._columns = _Columns(len(trace))
        self._followers = _followers(trace)
        self._lookahead = float(trace.delay_seconds[trace.previous >= 0].min(initial=math.inf))
        self._planned: list[_Action] = []
        self._plans = 0
        self._samples: list[tuple[float, NDArray[np.void]]] = []
        self._progress_at = -math.inf
        self._now = 0.0
        self._busy = np.zeros((2, settings.workers))

    def run(self, progress: Callable[[float], None] | None = None) -> Outcome:
        """Replay to the end. `progress` is called now and then with the share of requests that were sent."""
        begin = time.process_time()
        self._plan_all()
        sent, arrivals = 0, np.flatnonzero(self.trace.previous < 0)
        times = self.trace.arrival_seconds[arrivals].tolist()
        requests = arrivals.tolist()
        while True:
            due = times[sent] if sent < len(times) else math.inf
            if self._planned and self._planned[0].time < due:
                due = self._planned[0].time
            due = self._advance(due)
            while sent < len(times) and times[sent] <= due:
                self._send(requests[sent], times[sent])
                sent += 1
            while self._planned and self._planned[0].time <= due:
                action = heapq.heappop(self._planned)
                action.do(action.time)
                if progress is not None:
                    progress(sent / max(1, len(times)))
            if due == math.inf:
                return self._outcome(time.process_time() - begin)

    # ---- what is planned

    def _plan(self, at: float, do: Callable[[float], None]) -> None:
        self._plans += 1
        heapq.heappush(self._planned, _Action(at, self._plans, do))

    def _plan_all(self) -> None:
        for kill in self.settings.kills:
            self._plan(kill.time, partial(self._kill, kill))
        span = float(self.trace.arrival_seconds.max(initial=0.0))
        self._sample_seconds = max(span / SAMPLES, 1.0)
        self._plan(0.0, self._sample)

    def _sample(self, now: float) -> None:
        """Look at the fleet; again later, as long as anything is to come."""
        self._samples.append((now, self._fleet.engines.copy()))
        if self._fleet.next_step() < math.inf or self._planned or now < self.trace.arrival_seconds.max(initial=0.0):
            self._plan(now + self._sample_seconds, self._sample)

    # ---- time passes

    def _advance(self, until: float) -> float:
        """Let the engines work until then, or until a follower is due before that; returns the time, all of which was told."""
        while True:
            self._fleet.advance(until, self._lookahead)
            reached = min(until, self._fleet.next_step()) if self._lookahead < math.inf else until
            self._tell(reached)
            if self._planned and self._planned[0].time < until:
                until = self._planned[0].time
            if reached >= until:
                return until

    def _tell(self, now: float) -> None:
        """Routers hear what they would have heard by now."""
        for at, request, kind, cached in self._fleet.notices(now).tolist():
            if kind == FIRST_TOKEN:
                self._routers[request].first_token(str(request), cached, at)
            else:
                self._end(request, at, failed=kind == ABORT)
        settings = self.settings
        heard = now - settings.event_lag_seconds
        if settings.kv_events:
            self._routers.tell_changes(self._fleet.changes(heard, settings.block_size, self._hashes))
        else:
            for _ in self._fleet.changes(heard, settings.block_size, self._hashes):
                pass
        interval = settings.load_report_interval_seconds
        reported = math.floor(heard / interval) * interval if interval and heard < math.inf else heard
        self._routers.tell_loads(self._fleet.loads(reported), now)
        self._now = now

    def _end(self, request: int, now: float, *, failed: bool) -> None:
        generated = None
        if not self.settings.kv_events:
            tokens = self.trace.input_tokens.item(request) + self.trace.output_tokens.item(request) - 1
            generated = self._hashes.of(request, tokens // self.settings.block_size)
        self._routers[request].free(str(request), now, failed=failed, generated=generated)
        for follower in self._followers.get(request, ()):
            self._plan(now + self.trace.delay_seconds.item(follower), partial(self._send, follower))

    # ---- what happens at a moment

    def _send(self, request: int, now: float) -> None:
        self._columns.arrival_seconds[request] = now
        self._place(request, now, self.trace.input_tokens.item(request), self.trace.output_tokens.item(request))

    def _place(self, request: int, now: float, prompt_tokens: int, output_tokens: int) -> None:
        """Decide about a request, and send it to the worker."""
        hashes = self._hashes.of(request, prompt_tokens // self.settings.block_size)
        columns, config = self._columns, self.settings.engine
        try:
            worker, placement = self._routers.place(request, RoutingRequest(str(request), hashes, prompt_tokens), now)
        except NoTarget:
            columns.failed[request] = True
            return
        columns.worker[request] = worker
        columns.expected_cached_tokens[request] = placement.cached_tokens
        if placement.predicted_ttft_seconds is not None:
            columns.predicted_ttft_seconds[request] = placement.predicted_ttft_seconds
        starts = now + config.timing.request_seconds(prompt_tokens)
        try:
            self._fleet.submit(request, worker, starts, prompt_tokens, output_tokens)
        except ValueError:
            columns.failed[request] = True
            self._end(request, now, failed=True)

    def _kill(self, kill: Kill, now: float) -> None:
        """A worker dies: its requests go on elsewhere, with what came out of it so far as part of their prompts."""
        engine = self._fleet.engines[kill.worker]
        self._busy[:, kill.worker] += engine["prefill_seconds"], engine["decode_seconds"]
        orphans = self._fleet.clear(kill.worker)
        self._routers.remove(kill.worker)
        for request in orphans.tolist():
            sequence = self._fleet.sequences[request]
            output = int(sequence["output_tokens"])
            self._place(request, now, int(sequence["prompt_tokens"]) + output, int(sequence["max_new_tokens"]) - output)
        if kill.restart is not None:
            self._plan(kill.restart, lambda _: self._routers.add(kill.worker))

    # ---- the end

    def _outcome(self, cpu_seconds: float) -> Outcome:
        rows, columns = self._fleet.sequences, self._columns
        answered = ~np.isnan(rows["finish_seconds"])
        engines = self._fleet.engines
        return Outcome(
            policy=self.label,
            seed=self.settings.seed,
            arrival_seconds=columns.arrival_seconds,
            worker=columns.worker,
            prefill_worker=np.full(len(rows), NOWHERE, np.int32),
            input_tokens=self.trace.input_tokens,
            output_tokens=rows["output_tokens"].astype(np.int64),
            cached_tokens=np.maximum(rows["first_match"], 0).astype(np.int64),
            expected_cached_tokens=columns.expected_cached_tokens,
            best_cached_tokens=columns.best_cached_tokens,
            first_token_seconds=rows["first_token_seconds"].copy(),
            finish_seconds=rows["finish_seconds"].copy(),
            predicted_ttft_seconds=columns.predicted_ttft_seconds,
            queue_seconds=rows["queue_seconds"].copy(),
            retractions=rows["retractions"].copy(),
            failed=columns.failed | ~answered,
            gap_edges_seconds=gap_edges(),
            gap_counts=self._fleet.gaps.copy(),
            samples=self._sampled(),
            busy_prefill_seconds=self._busy[0] + engines["prefill_seconds"],
            busy_decode_seconds=self._busy[1] + engines["decode_seconds"],
            cpu_seconds=cpu_seconds,
            settings={"trace": self.trace.name, **self.settings.summary()},
        )

    def _sampled(self) -> Samples:
        rows = np.array([engines for _, engines in self._samples])
        cached = rows["evictable_tokens"] + rows["protected_tokens"]
        return Samples(
            sample_seconds=np.array([at for at, _ in self._samples]),
            running=rows["running"].copy(),
            waiting=rows["waiting_requests"].copy(),
            used_tokens=rows["capacity_tokens"] - rows["free_tokens"] - rows["evictable_tokens"],
            cached_tokens=cached,
        )


class _Columns:
    """What is noted at each decision."""

    def __init__(self, requests: int) -> None:
        self.arrival_seconds = np.full(requests, np.nan)
        self.worker = np.full(requests, NOWHERE, np.int32)
        self.expected_cached_tokens = np.zeros(requests, np.int64)
        self.best_cached_tokens = np.zeros(requests, np.int64)
        self.predicted_ttft_seconds = np.full(requests, np.nan)
        self.failed = np.zeros(requests, np.bool_)


def _followers(trace: Trace) -> dict[int, list[int]]:
    """Which requests wait for the end of each."""
    followers: dict[int, list[int]] = {}
    for request in np.flatnonzero(trace.previous >= 0).tolist():
        followers.setdefault(trace.previous.item(request), []).append(request)
    return followers


def replay(
    trace: Trace,
    make_policy: Callable[[], Policy],
    settings: Settings | None = None,
    label: str | None = None,
    progress: Callable[[float], None] | None = None,
) -> Outcome:
    """One policy serves a trace, see `Replay`."""
    settings = settings or Settings()
    return Replay(trace, make_policy, settings, label or make_policy().name).run(progress)
