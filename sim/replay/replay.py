"""The loop in virtual time: what comes, what is decided, what the engines do meanwhile, and what they tell the routers."""

from __future__ import annotations

import gc
import heapq
import math
import time
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from sim.fleet import gap_edges
from sim.replay.outcome import Outcome, Samples
from sim.replay.paired import Paired
from sim.replay.service import Service
from sim.replay.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from router.core.policy import Policy
    from sim.replay.settings import Kill
    from sim.traces import Trace

SAMPLES = 600
"""The fleet is looked at about so often during a replay."""


class _Action(NamedTuple):
    """What is due at a time; of several at once, the one that was planned first comes first."""

    time: float
    number: int
    do: Callable[[float], None]


class Replay:
    """One policy serves a trace. The same trace, settings and seed give the same outcome, bit by bit."""

    def __init__(self, trace: Trace, make_policy: Callable[[], Policy], settings: Settings, label: str) -> None:
        self.trace, self.settings, self.label = trace, settings, label
        lookahead = float(trace.delay_seconds[trace.previous >= 0].min(initial=math.inf))
        serve = Paired if settings.prefill else Service
        self._service = serve(trace, make_policy, settings, lookahead)
        self._followers = _followers(trace)
        self._sent_seconds = np.full(len(trace), np.nan)
        self._planned: list[_Action] = []
        self._plans = 0
        self._samples: list[tuple[float, NDArray[np.int64]]] = []
        self._last_arrival = float(trace.arrival_seconds.max(initial=0.0))

    def run(self, progress: Callable[[float], None] | None = None) -> Outcome:
        """Replay to the end. `progress` is called now and then with the share of the trace's time that has passed."""
        gc.freeze()  # the collector need not look at what is there already again and again
        try:
            return self._run(progress)
        finally:
            gc.unfreeze()

    def _run(self, progress: Callable[[float], None] | None) -> Outcome:
        begin = time.process_time()
        for kill in self.settings.kills:
            self._plan(kill.time, partial(self._kill, kill))
        self._plan(0.0, partial(self._sample, progress))
        first = np.flatnonzero(self.trace.previous < 0)
        times, requests = self.trace.arrival_seconds[first].tolist(), first.tolist()
        sent = 0
        while True:
            due = self._pass(times[sent] if sent < len(times) else math.inf)
            while sent < len(times) and times[sent] <= due:
                self._send(requests[sent], times[sent])
                sent += 1
            while self._planned and self._planned[0].time <= due:
                action = heapq.heappop(self._planned)
                action.do(action.time)
            if due == math.inf:
                return self._outcome(time.process_time() - begin)

    def _pass(self, until: float) -> float:
        """Let time pass until then, or until something planned is due before that; returns the time, by which all is told."""
        while True:
            if self._planned and self._planned[0].time < until:
                until = self._planned[0].time
            reached = self._service.work(until)
            for request, at in self._service.tell(reached):
                self._plan_followers(request, at)
            if reached >= until and not (self._planned and self._planned[0].time < until):
                return until

    # ---- what is planned

    def _plan(self, at: float, do: Callable[[float], None]) -> None:
        self._plans += 1
        heapq.heappush(self._planned, _Action(at, self._plans, do))

    def _plan_followers(self, request: int, at: float) -> None:
        for follower in self._followers.get(request, ()):
            self._plan(at + self.trace.delay_seconds.item(follower), partial(self._send, follower))

    def _send(self, request: int, now: float) -> None:
        """A client sends a request; if it cannot be placed, its session goes on as after an answer."""
        self._sent_seconds[request] = now
        prompt_tokens, output_tokens = self.trace.input_tokens.item(request), self.trace.output_tokens.item(request)
        if not self._service.place(request, now, prompt_tokens, output_tokens):
            self._plan_followers(request, now)

    def _kill(self, kill: Kill, now: float) -> None:
        self._service.kill(kill.worker, now)
        if kill.restart is not None:
            self._plan(kill.restart, lambda _: self._service.routers.add(kill.worker))

    def _sample(self, progress: Callable[[float], None] | None, now: float) -> None:
        """Look at the fleet; again later, as long as anything is to come."""
        self._samples.append((now, _sampled(self._service.fleet.engines)))
        if progress is not None:
            progress(min(1.0, now / max(self._last_arrival, 1e-9)))
        if self._service.fleet.next_step() < math.inf or self._planned or now < self._last_arrival:
            self._plan(now + max(self._last_arrival / SAMPLES, 1.0), partial(self._sample, progress))

    # ---- the end

    def _outcome(self, cpu_seconds: float) -> Outcome:
        service, trace = self._service, self.trace
        columns, engines = service.columns, service.fleet.engines
        prompts = service.fleet.sequences[: len(trace)]
        answers = service.fleet.sequences[-len(trace) :]
        produced = answers["prompt_tokens"].astype(np.int64) + answers["output_tokens"] - trace.input_tokens
        return Outcome(
            policy=self.label,
            seed=self.settings.seed,
            arrival_seconds=self._sent_seconds,
            worker=columns.worker,
            prefill_worker=columns.prefill_worker,
            input_tokens=trace.input_tokens,
            output_tokens=np.maximum(produced, 0),
            cached_tokens=np.clip(prompts["first_match"], 0, trace.input_tokens),
            expected_cached_tokens=columns.expected_cached_tokens,
            best_cached_tokens=columns.best_cached_tokens,
            first_token_seconds=answers["first_token_seconds"].copy(),
            finish_seconds=answers["finish_seconds"].copy(),
            predicted_ttft_seconds=columns.predicted_ttft_seconds,
            queue_seconds=prompts["queue_seconds"].copy(),
            retractions=answers["retractions"].copy(),
            failed=columns.failed | np.isnan(answers["finish_seconds"]),
            gap_edges_seconds=gap_edges(),
            gap_counts=service.fleet.gaps.copy(),
            samples=_samples(self._samples),
            busy_prefill_seconds=service.busy_seconds[0] + engines["prefill_seconds"],
            busy_decode_seconds=service.busy_seconds[1] + engines["decode_seconds"],
            cpu_seconds=cpu_seconds,
            settings={"trace": trace.name, **self.settings.summary()},
        )

    def __repr__(self) -> str:
        return f"<Replay of {self.trace.name} by {self.label}>"


def replay(
    trace: Trace,
    make_policy: Callable[[], Policy],
    settings: Settings | None = None,
    label: str | None = None,
    progress: Callable[[float], None] | None = None,
) -> Outcome:
    """One policy serves a trace, see `Replay`."""
    return Replay(trace, make_policy, settings or Settings(), label or make_policy().name).run(progress)


def _sampled(engines: NDArray[np.void]) -> NDArray[np.int64]:
    """The columns of `Samples`, int64 (4, workers)."""
    evictable = engines["evictable_tokens"]
    used = engines["capacity_tokens"] - engines["free_tokens"] - evictable
    cached = evictable + engines["protected_tokens"]
    return np.stack([engines["running"], engines["waiting_requests"], used, cached])


def _samples(taken: list[tuple[float, NDArray[np.int64]]]) -> Samples:
    times, columns = zip(*taken, strict=True)
    return Samples(np.array(times), *np.stack(columns, axis=1))


def _followers(trace: Trace) -> dict[int, list[int]]:
    """Which requests wait for the end of each."""
    followers: dict[int, list[int]] = {}
    for request in np.flatnonzero(trace.previous >= 0).tolist():
        followers.setdefault(trace.previous.item(request), []).append(request)
    return followers
