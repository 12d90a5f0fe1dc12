"""A profile from step logs."""

from __future__ import annotations

import itertools
import logging
from typing import TYPE_CHECKING, Any

import numpy as np

from events.command import UsageError
from sim.calibrate.features import DECODE, PREFILL, REQUEST, prefill_features
from sim.calibrate.fit import non_negative, quality
from sim.engine.timing import StepTiming

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from sim.calibrate.probes import Probe
    from sim.recordings.steps import Step

logger = logging.getLogger(__name__)

FEWEST_ROWS = 50
"""So many prefills must follow another prefill for the others to be left out."""
SMALL_TOKENS, SMALL_PREFIX = 128, 20_000
"""A prefill of no more than this is as short as one can be: the floor is the median of them."""


def fit_steps(
    steps: Sequence[Step], probes: Sequence[Probe], *, linear_from: int, graph_tokens: int
) -> tuple[StepTiming, dict[str, Any]]:
    """The timing model of logged steps, and how well it fits them.

    Prefills that follow a prefill at once are fitted, where there are enough of them: one after a decode or after a rest finds the
    GPU cooler and clocked higher than it is under load.

    :param probes: single requests to an idle engine, for the time outside of steps; may be empty.
    :param linear_from: prefills of fewer new tokens count for the floor only.
    :raises UsageError: there are too few steps.
    """
    prefills, decodes = _prefills_under_load(steps), [step for step in steps if step.is_decode]
    features = np.array([prefill_features(step.new_tokens, step.prefix_tokens, graph_tokens) for step in prefills])
    seconds = _seconds(prefills)
    linear = np.array([sum(step.new_tokens) >= linear_from for step in prefills], bool)
    if not linear.any():
        raise UsageError(f"no prefill of {linear_from} or more new tokens")
    prefill = non_negative(features[linear], seconds[linear], "prefills")
    floor = _floor([step for step in steps if step.is_prefill])
    decode = non_negative(_decode_features(decodes), _seconds(decodes), "decode steps")
    timing = StepTiming(
        prefill_floor_seconds=floor,
        prefill_graph_tokens=graph_tokens,
        **dict(zip(PREFILL, prefill.tolist(), strict=True)),
        **dict(zip(DECODE, decode.tolist(), strict=True)),
        **_request_numbers(steps, probes),
    )
    return timing, report(timing, steps, linear_from)


def report(timing: StepTiming, steps: Sequence[Step], linear_from: int) -> dict[str, Any]:
    """How well a model fits: prefills of `linear_from` new tokens or more, all prefills, all decode steps."""
    prefills, decodes = [step for step in steps if step.is_prefill], [step for step in steps if step.is_decode]
    parts = {
        f"prefill_from_{linear_from}_tokens": [step for step in prefills if sum(step.new_tokens) >= linear_from],
        "prefill": prefills,
        "decode": decodes,
    }
    return {name: quality(_seconds(part), predicted(timing, part))._asdict() for name, part in parts.items() if part}


def predicted(timing: StepTiming, steps: Sequence[Step]) -> NDArray[np.float64]:
    """What the model says of each step, seconds, shape (n,)."""
    return np.array(
        [
            timing.prefill_seconds(step.new_tokens, step.prefix_tokens)
            if step.is_prefill
            else timing.decode_seconds(step.sequences, step.kv_tokens, 1)
            for step in steps
        ]
    )


def _prefills_under_load(steps: Sequence[Step]) -> list[Step]:
    following = [
        step
        for before, step in itertools.pairwise(steps)
        if step.is_prefill and before.is_prefill and step.follows_at_once(before)
    ]
    if len(following) >= FEWEST_ROWS:
        return following
    logger.warning(
        "only %d prefills follow another prefill: fitted to all of them, as if the GPU were at rest", len(following)
    )
    return [step for step in steps if step.is_prefill]


def _floor(prefills: Sequence[Step]) -> float:
    small = [
        step for step in prefills if sum(step.new_tokens) <= SMALL_TOKENS and max(step.prefix_tokens) < SMALL_PREFIX
    ]
    if not small:
        logger.warning("no prefill of up to %d new tokens: no floor", SMALL_TOKENS)
        return 0.0
    return float(np.median(_seconds(small)))


def _decode_features(steps: Sequence[Step]) -> NDArray[np.float64]:
    return np.array([[1.0, step.sequences, step.kv_tokens] for step in steps]).reshape(-1, 3)


def _seconds(steps: Sequence[Step]) -> NDArray[np.float64]:
    return np.array([step.seconds for step in steps])


def _request_numbers(steps: Sequence[Step], probes: Sequence[Probe]) -> dict[str, float]:
    """The time that single requests took beyond their steps."""
    if not probes:
        return dict.fromkeys(REQUEST, 0.0)
    prefills = [step for step in steps if step.is_prefill and step.launched_at is not None]
    launched = np.array([step.launched_at for step in prefills], np.float64)
    first = np.searchsorted(launched, [probe.sent_at for probe in probes])
    last = np.searchsorted(launched, [probe.sent_at + probe.ttft_seconds for probe in probes])
    inside = np.concatenate([[0.0], np.cumsum(_seconds(prefills))])
    outside = np.array([probe.ttft_seconds for probe in probes]) - (inside[last] - inside[first])
    known = (last > first) & (outside > 0)
    features = np.array([[1.0, probe.new_tokens + probe.cached_tokens] for probe in probes])
    coefficients = non_negative(features[known], outside[known], "requests")
    return dict(zip(REQUEST, coefficients.tolist(), strict=True))
