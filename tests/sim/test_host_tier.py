"""The tier in host memory: as recorded from a real SGLang with HiCache, and sound whatever happens."""

from __future__ import annotations

import asyncio

import aiohttp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sim.engine import Cleared, Engine, EngineConfig, Removed, Request, StepTiming, Stored
from sim.worker import FakeWorker, WorkerConfig
from tests.sim.captures import capture_steps
from tests.sim.test_engine_against_sglang import Scripted, spread, tokens

PROMPTS = {
    "cold_100": tokens(100, 100),
    **{f"fill_{i}_320": spread(i, 320) for i in range(9)},
    "reuse_cold_100 (host hit -> load back)": tokens(100, 100),
    "reuse_fill_1": spread(1, 320),
}


def as_event(change):
    match change:
        case Cleared():
            return ("AllBlocksCleared",)
        case Stored():
            return ("BlockStored", change.tier, change.parent_id, change.block_ids)
        case Removed():
            return ("BlockRemoved", change.tier, change.block_ids)


def recorded(step):
    for frame in step["frames"]:
        for event in frame["decoded"][1] if frame["sock"].startswith("kv") else []:
            match event["type"]:
                case "AllBlocksCleared":
                    yield ("AllBlocksCleared",)
                case "BlockStored":
                    yield ("BlockStored", event["medium"], event["parent_block_hash"], event["block_hashes"])
                case "BlockRemoved":
                    yield ("BlockRemoved", event["medium"], event["block_hashes"])


def test_it_does_what_the_real_one_did() -> None:
    """SGLang 0.5.23, page 16, 1,024 tokens on the device and twice that on the host: cached tokens per tier, and every event."""
    engine = Engine(EngineConfig(capacity_tokens=1024, host_tokens=2048, context_length=4096))
    engine._sampler = sampler = Scripted()
    engine.step(0.0)
    engine.step(0.0)
    compared = 0
    for name, step in capture_steps("hicache_p16.jsonl").items():
        if name not in PROMPTS:
            continue
        result = step["result"]
        sampler.script = result["output_ids"]
        engine.submit(Request(name, np.array(PROMPTS[name], np.uint32), len(result["output_ids"])), 0.0)
        changes, last = [], None
        while engine.busy:
            done = engine.step(0.0)
            changes += done.cache_changes
            last = done.outputs[-1] if done.outputs else last
        changes += engine.step(0.0).cache_changes
        assert last is not None
        details = result["cached_tokens_details"] or {"device": 0, "host": 0}
        assert (last.cached_tokens, last.host_tokens) == (result["cached_tokens"], details["host"]), name
        assert [as_event(change) for change in changes] == list(recorded(step)), name
        compared += 1
        engine._check()
    assert compared == 12


PROMPT = st.tuples(st.integers(0, 3), st.integers(1, 90))


@settings(derandomize=True, deadline=None, max_examples=60)
@given(st.lists(PROMPT, max_size=40), st.integers(0, 40))
def test_presence_by_events_is_what_is_there(asked: list[tuple[int, int]], host_pages: int) -> None:
    """Who follows the events knows each tier; and a prefix that some tier holds is never computed again, if there is room."""
    page = 4
    engine = Engine(
        EngineConfig(capacity_tokens=160, page_size=page, host_tokens=page * host_pages, context_length=150)
    )
    held: dict[str, set[int]] = {"GPU": set(), "CPU_PINNED": set()}
    for number, (seed, length) in enumerate(asked):
        prompt = (np.arange(length, dtype=np.uint32) + seed * 1000).astype(np.uint32)
        engine.submit(Request(f"r{number}", prompt, 3), 0.0)
        quiet = 0
        while (
            quiet < 3
        ):  # what a decode changed comes out with an idle step, what the host tier then writes with the next
            step = engine.step(0.0)
            quiet = 0 if engine.busy else quiet + 1
            for change in step.cache_changes:
                match change:
                    case Cleared():
                        held = {"GPU": set(), "CPU_PINNED": set()}
                    case Stored():
                        assert not held[change.tier].intersection(change.block_ids)
                        held[change.tier].update(change.block_ids)
                    case Removed():
                        assert held[change.tier].issuperset(change.block_ids)
                        held[change.tier].difference_update(change.block_ids)
            engine._check()
        assert len(held["GPU"]) * page == engine._cache.cached_tokens
        assert len(held["CPU_PINNED"]) * page == (engine._host.held_tokens if engine._host else 0)


def test_loading_back_takes_time_and_less_of_it() -> None:
    config = EngineConfig(capacity_tokens=4096, host_tokens=8192, timing=StepTiming(prefill_floor_seconds=0.0))
    engine = Engine(config)

    def first_step(name: str, prompt: list[int]) -> float:
        engine.submit(Request(name, np.array(prompt, np.uint32), 1), 0.0)
        seconds = engine.step(0.0).duration_seconds
        while engine.busy:
            engine.step(0.0)
        engine.step(0.0)
        return seconds

    computed = first_step("cold", spread(0, 3000))
    first_step("other", spread(1, 3500))  # evicts it from the device
    loaded = first_step("again", spread(0, 3000))
    on_device = first_step("once more", spread(0, 3000))
    assert on_device < loaded < computed / 3
    assert loaded - on_device == pytest.approx(2992 * config.load_back_token_seconds)


async def test_a_worker_says_which_tier() -> None:
    config = WorkerConfig(max_total_tokens=1024, enable_hierarchical_cache=True, timing=StepTiming(speed=100.0))
    async with FakeWorker(config) as worker, aiohttp.ClientSession() as session:
        async with session.get(f"{worker.url}/server_info") as reply:
            info = await reply.json()
        assert (info["enable_hierarchical_cache"], info["hicache_ratio"]) == (True, 2.0)
        details = []
        for seed in (0, 1, 2, 0, 0):
            body = {"input_ids": spread(seed, 600), "sampling_params": {"max_new_tokens": 1}}
            async with session.post(f"{worker.url}/generate", json=body) as reply:
                details.append((await reply.json())["meta_info"]["cached_tokens_details"])
            await asyncio.sleep(0)
        assert details == [None, None, None, {"device": 0, "host": 592}, {"device": 592, "host": 0}]
