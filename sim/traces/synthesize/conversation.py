"""Chats of many turns."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, NamedTuple

import numpy as np

from sim.traces.draws import Draws
from sim.traces.synthesize.content import content
from sim.traces.synthesize.distribution import exponential, lognormal
from sim.traces.synthesize.kind import Kind, poisson
from sim.traces.synthesize.shared_prompt import zipf
from sim.traces.trace import ALONE, Trace, offsets

if TYPE_CHECKING:
    from numpy.typing import NDArray

OUTPUT_TOKEN_SECONDS = 0.01
"""How long a token of output is taken to last, where arrivals are told before anything is served."""
WARM_UP_SESSIONS = 4.0
"""Sessions begin so many mean durations before the trace does: it opens in the midst of them."""


class _Turns(NamedTuple):
    """All turns of all sessions, one session after another; shape (turns,)."""

    session: NDArray[np.int64]
    is_first: NDArray[np.bool_]
    arrival_seconds: NDArray[np.float64]
    prompt: NDArray[np.int64]
    output: NDArray[np.int64]
    delay_seconds: NDArray[np.float64]
    system: NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Conversation(Kind):
    """Users who talk in turns, in closed loop: each prompt is a system prompt, all that was said before, and what is new.

    Ids name outputs too, so that a turn can find the answer before it in a cache.
    """

    name: ClassVar[str] = "conversation"
    summary: ClassVar[str] = "multi-turn chats over system prompts, with growing context"

    system_prompts: int = 8
    system_tokens: int = 1024
    turns: float = 5.0
    input_tokens: float = 1200.0
    """What a user adds in a turn."""
    output_tokens: float = 340.0
    think_seconds: float = 45.0
    """Between an answer and the next turn."""
    context_tokens: int = 131_072
    """A conversation ends before prompt and output would exceed it."""

    def generate(self, requests: int, per_second: float, seed: int) -> Trace:
        """See `Kind`. The rate holds where a token of output lasts 10 ms; when turns really come, the replay decides."""
        duration = (self.turns - 1) * (self.think_seconds + OUTPUT_TOKEN_SECONDS * self.output_tokens)
        warm_up = WARM_UP_SESSIONS * duration
        sessions = math.ceil((requests + warm_up * per_second) / self.turns * 1.1) + 16
        turns = self._turns(sessions, per_second / self.turns, warm_up, seed)
        while (turns.arrival_seconds >= 0).sum() < requests:
            sessions *= 2
            turns = self._turns(sessions, per_second / self.turns, warm_up, seed)
        return self._trace(turns, requests)

    def _turns(self, sessions: int, per_second: float, warm_up: float, seed: int) -> _Turns:
        """Turns of so many sessions, the first of which begins before 0."""
        draws = Draws(seed)
        begin = poisson(sessions, per_second, draws) - warm_up
        system = zipf(self.system_prompts, sessions, draws)
        counts = 1 + _geometric(self.turns - 1, sessions, draws)
        first = offsets(counts)[:-1]
        session, rows = np.repeat(np.arange(sessions), counts), int(counts.sum())
        is_first = np.zeros(rows, bool)
        is_first[first] = True
        added = lognormal(self.input_tokens, 1.5).tokens(draws, rows)
        output = lognormal(self.output_tokens, 0.8).tokens(draws, rows)
        think = np.where(is_first, 0, lognormal(1e6 * self.think_seconds, 1.0).tokens(draws, rows))
        answering = np.where(is_first, 0, np.roll(output, 1)) * round(1e6 * OUTPUT_TOKEN_SECONDS)
        arrival = np.rint(1e6 * begin[session]) + _running_sum(think + answering, first, counts)
        prompt = self.system_tokens + _running_sum(added + output, first, counts) - output
        too_long = np.where(prompt + output > self.context_tokens, np.arange(rows), -1)
        fits = np.maximum.accumulate(too_long) < first[session]
        return _Turns(
            session[fits],
            is_first[fits],
            arrival[fits] / 1e6,
            prompt[fits],
            output[fits],
            think[fits] / 1e6,
            system[session][fits],
        )

    def _trace(self, turns: _Turns, requests: int) -> Trace:
        """The first requests from 0 on, by arrival."""
        order = np.argsort(turns.arrival_seconds, kind="stable")
        order = order[turns.arrival_seconds[order] >= 0][:requests]
        place = np.full(len(turns.session) + 1, ALONE)
        place[order] = np.arange(requests)
        previous = np.where(turns.is_first[order], ALONE, place[order - 1])
        prompt, output = turns.prompt[order], turns.output[order]
        named = -(-(prompt + output) // self.block_tokens)
        shared = np.full(requests, self.system_tokens // self.block_tokens)
        blocks, first_block = content(turns.system[order], shared, turns.session[order], named)
        arrival = turns.arrival_seconds[order]
        from_zero = np.rint((arrival - arrival[0]) * 1e6) / 1e6
        return Trace(
            name=self.name,
            arrival_seconds=from_zero,
            input_tokens=prompt,
            output_tokens=output,
            block_tokens=self.block_tokens,
            blocks=blocks,
            first_block=first_block,
            previous=previous,
            delay_seconds=np.where(previous == ALONE, 0.0, turns.delay_seconds[order]),
        )


def _geometric(mean: float, count: int, draws: Draws) -> NDArray[np.int64]:
    """Failures before a success: the whole part of an exponential is one."""
    if mean <= 0:
        return np.zeros(count, np.int64)
    return exponential(1 / math.log1p(1 / mean)).draw(draws, count).astype(np.int64)


def _running_sum(values: NDArray[np.int64], first: NDArray[np.int64], counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Sums from the beginning of each run up to and with each value."""
    total = np.cumsum(values)
    return total - np.repeat(total[first] - values[first], counts)
