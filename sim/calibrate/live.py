"""A profile from a live server: which requests to send, and what their times say.

A prompt to an idle server waits for nothing, so its time to first token is its time outside of steps plus its prefill steps. What
is per step shows in prompts of more than one chunk, what is per cached token in prompts whose prefix is cached.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from events.command import UsageError
from sim.calibrate.features import DECODE, PREFILL, REQUEST, prompt_features
from sim.calibrate.fit import non_negative, quality
from sim.calibrate.probes import Probe, Series
from sim.engine.timing import StepTiming

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from sim.calibrate.client import Answer, Client

logger = logging.getLogger(__name__)

ALONE = PREFILL[:3]
"""What a prompt alone can tell. It has one sequence in each step, so what a sequence costs is part of what a step costs; and what a
token of context costs is part of what a prompt token costs outside of steps, for where there is one step the two are the same."""


LONGER_TRIES = 6
"""A decode series whose first sequence ends before the last begins is asked for twice as long, so often."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is sent."""

    new_tokens: Sequence[int] = (16, 64, 512, 1024, 2048, 4096, 8192, 16_384, 32_768)
    cached_tokens: Sequence[int] = (0, 4096, 16_384)
    batches: Sequence[int] = (1, 2, 4, 8, 16, 32)
    contexts: Sequence[int] = (1024, 4096, 16_384)
    decode_tokens: int = 48
    repeats: int = 3
    chunk_tokens: int = 8192
    graph_tokens: int = 8192
    linear_from: int = 384
    most_tokens: int = 262_144
    """Of KV memory that a decode series may need; larger ones are left out."""
    token_ids: tuple[int, int] = (100, 2000)
    """Prompts are drawn from these ids, the second excluded."""


class Measurement:
    """Sends a plan's requests, one after another but for decode series."""

    def __init__(self, client: Client, plan: Plan, progress: Callable[[str], None]) -> None:
        self._client = client
        self._plan = plan
        self._progress = progress
        self._random = np.random.default_rng()  # not seeded: what an earlier calibration sent may be cached

    async def probes(self) -> list[Probe]:
        """The time to first token of each length, after each cached prefix: the quickest of the repeats.

        :raises UsageError: see `Client.generate`.
        """
        await self._client.generate(
            self._fresh(max(self._plan.new_tokens)), 1
        )  # the first of its size may compile something
        found = []
        for cached in self._plan.cached_tokens:
            for new in self._plan.new_tokens:
                answers = [await self._probe(new, cached) for _ in range(self._plan.repeats)]
                best = min(answers, key=lambda answer: answer.ttft_seconds)
                found.append(
                    Probe(best.prompt_tokens - best.cached_tokens, best.cached_tokens, best.ttft_seconds, best.sent_at)
                )
                self._progress(f"{new} tokens after {cached}: {best.ttft_seconds * 1000:.1f} ms")
        return found

    async def series(self) -> list[Series]:
        """The decode step of each batch at each context, where it fits: the quickest of the repeats.

        :raises UsageError: see `Client.generate`.
        """
        found = []
        for context in self._plan.contexts:
            for batch in self._plan.batches:
                if batch * (context + self._plan.decode_tokens) > self._plan.most_tokens:
                    logger.info("%d sequences of %d tokens are left out: they may not fit", batch, context)
                    continue
                runs = [await self._decode(batch, context) for _ in range(self._plan.repeats)]
                series = min(runs, key=lambda run: run.step_seconds)
                found.append(series)
                self._progress(f"{batch} x {context} tokens: {series.step_seconds * 1000:.2f} ms a step")
        return found

    async def _probe(self, new: int, cached: int) -> Answer:
        prefix = self._fresh(cached)
        if cached:
            await self._client.generate(prefix, 1)
        return await self._client.generate(prefix + self._fresh(new), 1)

    async def _decode(self, batch: int, context: int) -> Series:
        """Sequences that decode together; what counts is the time while all of them do.

        :raises UsageError: the first always ends before the last begins; see also `Client.generate`.
        """
        tokens = self._plan.decode_tokens + batch  # the first goes on until the last has begun, as a rule
        for _ in range(LONGER_TRIES):
            answers = await asyncio.gather(*(self._client.generate(self._fresh(context), tokens) for _ in range(batch)))
            if series := together(answers):
                return series
            tokens *= 2
        raise UsageError(
            f"{batch} requests of {context} tokens do not decode side by side, even for {tokens // 2} tokens each"
        )

    def _fresh(self, tokens: int) -> list[int]:
        drawn: list[int] = self._random.integers(*self._plan.token_ids, tokens).tolist()
        return drawn


def together(answers: Sequence[Answer]) -> Series | None:
    """The mean step while all of them decode; None: for less than a step. O(tokens)."""
    begin = max(answer.token_times[0] for answer in answers)
    end = min(answer.token_times[-1] for answer in answers)
    inside = [[time for time in answer.token_times if begin < time <= end] for answer in answers]
    steps = max(inside, key=len)
    if len(steps) < 2:
        return None
    middle = (begin + end) / 2
    kv_tokens = sum(answer.prompt_tokens + sum(time <= middle for time in answer.token_times) for answer in answers)
    return Series(len(answers), float(kv_tokens), (steps[-1] - steps[0]) / (len(steps) - 1))


def fit_live(probes: Sequence[Probe], series: Sequence[Series], plan: Plan) -> tuple[StepTiming, dict[str, Any]]:
    """The timing model of what was measured, and how well it fits.

    :raises UsageError: too little was measured.
    """
    features = np.array([_probe_features(probe, plan) for probe in probes])
    ttft = np.array([probe.ttft_seconds for probe in probes])
    linear = np.array([probe.new_tokens >= plan.linear_from for probe in probes])
    prompt = non_negative(features[linear], ttft[linear], "prompts")
    numbers = dict(zip(REQUEST + ALONE, prompt.tolist(), strict=True)) | dict.fromkeys(PREFILL[3:], 0.0)
    steps = np.array([item.step_seconds for item in series])
    decode_features = np.array([[1.0, item.sequences, item.kv_tokens] for item in series]).reshape(-1, 3)
    decode = non_negative(decode_features, steps, "decode series")
    numbers |= dict(zip(DECODE, decode.tolist(), strict=True))
    numbers["prefill_floor_seconds"] = _floor(probes, numbers, plan)
    timing = StepTiming(prefill_graph_tokens=plan.graph_tokens, **numbers)
    fit = {
        "ttft": quality(ttft, predicted_ttft(timing, probes, plan))._asdict(),
        "decode": quality(steps, decode_features @ decode)._asdict(),
    }
    return timing, fit


def predicted_ttft(timing: StepTiming, probes: Sequence[Probe], plan: Plan) -> NDArray[np.float64]:
    """What a model says of each probe, seconds, shape (n,)."""
    return np.array([_ttft(timing, probe, plan.chunk_tokens) for probe in probes])


def _ttft(timing: StepTiming, probe: Probe, chunk_tokens: int) -> float:
    end = probe.cached_tokens + probe.new_tokens
    starts = range(probe.cached_tokens, end, chunk_tokens)
    steps = sum(timing.prefill_seconds([min(chunk_tokens, end - start)], [start]) for start in starts)
    return timing.request_seconds(end) + steps


def _probe_features(probe: Probe, plan: Plan) -> NDArray[np.float64]:
    steps = prompt_features(probe.new_tokens, probe.cached_tokens, plan.chunk_tokens, plan.graph_tokens)
    return np.concatenate([[1.0, probe.new_tokens + probe.cached_tokens], steps[:3]])


def _floor(probes: Sequence[Probe], numbers: dict[str, float], plan: Plan) -> float:
    """What the smallest prompts take beyond their time outside of steps."""
    small = [probe for probe in probes if probe.new_tokens < plan.linear_from]
    if not small:
        logger.warning("no prompt of fewer than %d tokens: no floor", plan.linear_from)
        return 0.0
    smallest = min(probe.new_tokens for probe in small)
    base, token = (numbers[name] for name in REQUEST)
    outside = [base + token * (probe.new_tokens + probe.cached_tokens) for probe in small]
    steps = [p.ttft_seconds - o for p, o in zip(small, outside, strict=True) if p.new_tokens == smallest]
    return max(0.0, float(np.median(steps)))
