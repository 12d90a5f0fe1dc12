import math
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router.core.fleet import FleetView
from router.core.policy.linear import Linear
from router.core.request import RoutingRequest

BLOCK_SIZE = 64


@dataclass
class Worker:
    device: int
    host: int
    disk: int
    predicted: int
    eligible: bool
    active_prefill_tokens: int
    decode_blocks: int
    active_blocks: int
    active_requests: int


def transcription(workers: list[Worker], isl: int, hashes: int, knobs: dict[str, float]) -> list[float]:
    """The published cost, term by term, without numpy."""
    least = min(worker.active_prefill_tokens for worker in workers if worker.eligible)
    costs = []
    for worker in workers:
        device = worker.device + worker.predicted
        lower = knobs["host_cache_hit_weight"] * worker.host + knobs["disk_cache_hit_weight"] * worker.disk
        cached = BLOCK_SIZE * (device + lower)
        uncached = max(0, isl - cached)
        raw = ((worker.active_prefill_tokens + uncached) + cached) / BLOCK_SIZE
        decay = 1.0
        if knobs["overlap_score_credit_decay"] > 0:
            excess = (worker.active_prefill_tokens - least) / BLOCK_SIZE
            decay = 1 / (1 + knobs["overlap_score_credit_decay"] * excess / max(1, -(-isl // BLOCK_SIZE)))
        credit = knobs["overlap_score_credit"] * decay * device + lower
        adjusted = max(0.0, raw - credit)
        potential_decode_blocks = worker.decode_blocks + hashes - worker.active_blocks
        costs.append(
            knobs["prefill_load_scale"] * adjusted
            + potential_decode_blocks
            + knobs["decode_active_request_weight"] * worker.active_requests
        )
    return costs


COUNTS = st.integers(0, 200)
WORKERS = st.builds(
    Worker,
    COUNTS,
    COUNTS,
    COUNTS,
    COUNTS,
    st.booleans(),
    st.integers(0, 100_000),
    st.integers(0, 5000),
    COUNTS,
    st.integers(0, 300),
)
KNOBS = st.fixed_dictionaries(
    {
        "overlap_score_credit": st.sampled_from([0.0, 0.5, 1.0, 2.0]),
        "overlap_score_credit_decay": st.sampled_from([0.0, 0.1, 3.0]),
        "prefill_load_scale": st.sampled_from([0.0, 1.0, 16.0]),
        "decode_active_request_weight": st.sampled_from([0.0, 64.0]),
        "host_cache_hit_weight": st.sampled_from([0.0, 0.75, 1.0]),
        "disk_cache_hit_weight": st.sampled_from([0.0, 0.25]),
    }
)


@settings(derandomize=True, deadline=None)
@given(st.lists(WORKERS, min_size=1, max_size=6), st.integers(1, 20_000), KNOBS)
def test_it_is_the_published_formula(
    request_of: Callable[..., RoutingRequest],
    view_of: Callable[..., FleetView],
    workers: list[Worker],
    isl: int,
    knobs: dict[str, float],
) -> None:
    workers[0].eligible = True
    request = request_of(blocks=isl // BLOCK_SIZE, prompt_tokens=isl)
    view = view_of(
        request,
        len(workers),
        device_blocks=[worker.device for worker in workers],
        host_blocks=[worker.host for worker in workers],
        disk_blocks=[worker.disk for worker in workers],
        predicted_blocks=[worker.predicted for worker in workers],
        eligible=[worker.eligible for worker in workers],
        prefill_tokens=[worker.active_prefill_tokens for worker in workers],
        decode_blocks=[worker.decode_blocks for worker in workers],
        active_blocks=[worker.active_blocks for worker in workers],
        active_requests=[worker.active_requests for worker in workers],
    )
    costs = Linear(**knobs).score(view, request, Random(0))
    assert costs.tolist() == pytest.approx(transcription(workers, isl, isl // BLOCK_SIZE, knobs), rel=1e-12, abs=1e-9)


def test_by_default_a_prompts_cached_blocks_are_what_it_saves(
    request_of: Callable[..., RoutingRequest], view_of: Callable[..., FleetView]
) -> None:
    request = request_of(blocks=10)
    view = view_of(request, 2, device_blocks=[4, 0], decode_blocks=[7, 0])
    assert Linear().score(view, request, Random(0)).tolist() == [6 + 17, 10 + 10]


def test_temperature_spreads(request_of: Callable[..., RoutingRequest], view_of: Callable[..., FleetView]) -> None:
    request = request_of(blocks=10)
    view = view_of(request, 3, device_blocks=[9, 5, 0])
    costs = Linear().score(view, request, Random(0))
    everyone = np.ones(3, np.bool_)
    assert {Linear().pick(costs, everyone, Random(seed)) for seed in range(60)} == {0}
    assert {Linear(temperature=1.0).pick(costs, everyone, Random(seed)) for seed in range(60)} == {0, 1, 2}


@pytest.mark.parametrize(
    "option",
    [
        {"temperature": -1.0},
        {"overlap_score_credit": math.nan},
        {"prefill_load_scale": math.inf},
        {"host_cache_hit_weight": 1.5},
    ],
)
def test_an_unfit_option_is_named(option: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"policy 'linear': {next(iter(option))} must be"):
        Linear(**option)
