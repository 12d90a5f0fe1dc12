"""A recorded run on engine models in virtual time."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from sim.engine import Engine, EngineConfig, FrontDoor, Request
from sim.validate.texts import OUTPUT_IDS, Texts

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from sim.engine import TimingModel
    from sim.recordings.run import RecordedRequest, Run
    from sim.traces import Trace

CONTEXT_LENGTH = 163_840
"""Longer than any sequence in a trace."""


class Played(NamedTuple):
    """What the model made of one request."""

    cached_tokens: int
    token_seconds: NDArray[np.float64]
    """When each token came, from sending on, shape (tokens,)."""
    finished: bool


def play(run: Run, trace: Trace, timing: TimingModel, *, overlap_schedule: bool = True) -> list[Played | None]:
    """Send a run's requests to the workers that they were sent to. One entry per request; None: it got no token in time.

    :raises ValueError: a worker could never have taken a request.
    """
    texts = Texts(trace)
    played: list[Played | None] = [None] * len(run.requests)
    for worker, capacity_tokens in enumerate(run.about.pool):
        config = EngineConfig(
            capacity_tokens=capacity_tokens,
            page_size=run.about.page,
            context_length=CONTEXT_LENGTH,
            overlap_schedule=overlap_schedule,
            version=run.about.version,
            record_changes=False,
            timing=timing,
            vocabulary=OUTPUT_IDS,
        )
        mine = [index for index, request in enumerate(run.requests) if request.worker == worker]
        lane = _Lane(config, [run.requests[index] for index in mine], texts)
        for index, result in zip(mine, lane.run(run.about.drained_at), strict=True):
            played[index] = result
    return played


class _Lane:
    """One worker and the requests that go to it."""

    def __init__(self, config: EngineConfig, requests: Sequence[RecordedRequest], texts: Texts) -> None:
        self._engine = Engine(config)
        self._requests = requests
        self._coming = self._arrivals(texts)
        self._cached = [0] * len(requests)
        self._times: list[list[float]] = [[] for _ in requests]
        self._finished = [False] * len(requests)

    def _arrivals(self, texts: Texts) -> list[tuple[float, Request]]:
        """When each request reaches the scheduler, the last first."""
        door = FrontDoor(self._engine.config.timing)
        arrivals = []
        for number in sorted(range(len(self._requests)), key=lambda number: self._requests[number].sent_seconds):
            asked = self._requests[number]
            prompt = texts.prompt(asked.row, asked.input_tokens)
            request = Request(str(number), prompt, asked.output_tokens, ignore_eos=True)
            arrivals.append((door.arrival(asked.sent_seconds, len(prompt)), request))
        return arrivals[::-1]

    def run(self, until: float) -> list[Played | None]:
        """Run to a time; what is still open then is left open."""
        now = 0.0
        while now < until and (self._coming or self._engine.busy):
            if not self._engine.busy:
                self._engine.step(now)  # it comes to rest
                now = max(now, self._coming[-1][0])
            while self._coming and self._coming[-1][0] <= now:
                self._engine.submit(self._coming.pop()[1], now)
            now = self._step(now)
        return [self._result(number) for number in range(len(self._requests))]

    def _step(self, now: float) -> float:
        step = self._engine.step(now)
        end = now + step.duration_seconds
        for output in step.outputs:
            number = int(output.rid)
            self._times[number].append(end)
            self._cached[number] = output.cached_tokens
            self._finished[number] |= output.finish is not None
        return end

    def _result(self, number: int) -> Played | None:
        if not self._times[number]:
            return None
        seconds = np.array(self._times[number]) - self._requests[number].sent_seconds
        return Played(self._cached[number], seconds, self._finished[number])
