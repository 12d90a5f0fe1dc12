"""Fleets that share requests out, end to end: a router, fake prefill, decode and whole workers, real sockets."""

from __future__ import annotations

import asyncio
import signal
import time
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest

from launch.process import Process
from router.core import Target
from sim.engine import StepTiming
from tests.router.disaggregated import DECODE, PREFILL, WHOLE, Site, alone, site

if TYPE_CHECKING:
    from pathlib import Path

SLOW_PREFILL = {"disaggregation_mode": PREFILL, "timing": StepTiming(prefill_floor_seconds=0.3)}
SLOW_DECODE = {"disaggregation_mode": DECODE, "timing": StepTiming(decode_base_seconds=0.05)}
MODES = [{"text_mode": False}, {"text_mode": True}]


def prompt(seed: int = 0, count: int = 200) -> list[int]:
    return [3 + (seed * 7919 + i * i) % 1900 for i in range(count)]


@pytest.mark.parametrize("mode", MODES, ids=["tokens", "text"])
async def test_a_pair_says_what_one_worker_says(mode: dict[str, Any]) -> None:
    async with site(PREFILL, DECODE, **mode) as there:
        for tokens in (1, 2, 12):
            status, body, worker = await there.complete(prompt(), tokens)
            assert (status, body["choices"][0]["text"]) == (200, await alone(prompt(), tokens))
            assert body["usage"]["completion_tokens"] == tokens
            assert worker == f"{there.workers[1].url.removeprefix('http://')}/0"
        async with there.stream(prompt(), 12) as reply:
            assert reply.status == 200
            assert (await reply.text()).rstrip().endswith("data: [DONE]")
        assert await there.paths() == (0, 4)
        await there.idle()
        states = {state.part: state for state in there.router.scheduler.targets()}
        assert states["prefill"].predicted_blocks >= 12
        assert states["decode"].predicted_blocks == 0  # SGLang's default: it keeps nothing


async def test_a_chat_and_its_usage_go_through_a_pair() -> None:
    async with site(PREFILL, DECODE) as there:
        body = {"model": "tinymodel", "messages": [{"role": "user", "content": "a word " * 50}], "max_tokens": 5}
        for cached in (False, True):
            async with there.session.post(f"{there.router.url}/v1/chat/completions", json=body) as reply:
                usage = (await reply.json())["usage"]
            assert (usage["prompt_tokens_details"]["cached_tokens"] > 0) is cached  # the prefill worker's


async def test_ranks_on_both_sides_agree() -> None:
    two, three = {"disaggregation_mode": PREFILL, "dp_size": 3}, {"disaggregation_mode": DECODE, "dp_size": 2}
    async with site(two, three, policy="round-robin") as there:
        answers = await asyncio.gather(*(there.complete(prompt(seed)) for seed in range(9)))
        assert {status for status, _, _ in answers} == {200}
        assert {worker.rpartition("/")[2] for _, _, worker in answers} == {"0", "1"}
        assert all(rank.engine.statistics().prefill_steps for rank in there.workers[0].ranks)
        for seed in range(9):
            assert answers[seed][1]["choices"][0]["text"] == await alone(prompt(seed))
        await there.idle()


async def test_prefill_goes_where_the_prefix_is() -> None:
    async with site(PREFILL, PREFILL, DECODE) as there:
        for seed in range(6):
            _, first, _ = await there.complete(prompt(seed))
            _, again, _ = await there.complete([*prompt(seed), *prompt(seed + 100, 40)])
            assert first["usage"]["prompt_tokens_details"]["cached_tokens"] == 0
            assert again["usage"]["prompt_tokens_details"]["cached_tokens"] == 192
        shares = [worker.ranks[0].engine.statistics().requests for worker in there.workers[:2]]
        assert min(shares) >= 2


async def test_what_a_decode_worker_keeps_is_found_again() -> None:
    keeps = {"disaggregation_mode": DECODE, "disaggregation_decode_enable_radix_cache": True}
    async with site(PREFILL, keeps, keeps) as there:
        chosen = []
        for _ in range(4):
            _, body, worker = await there.complete(prompt())
            chosen.append(worker)
            assert body["choices"][0]["text"] == await alone(prompt())
        assert len(set(chosen)) == 1
        assert sum(worker.ranks[0].engine.statistics().cached_tokens for worker in there.workers[1:]) == 3 * 192


async def test_the_path_is_chosen_for_each_request() -> None:
    """A short prompt stays on the worker that does all of it, though others decode there; a long one goes to a pair."""
    whole = {"timing": StepTiming(decode_base_seconds=0.02)}
    async with site(whole, PREFILL, DECODE) as there:
        streams = [asyncio.create_task(there.complete(prompt(90 + seed, 40), 150)) for seed in range(12)]
        while there.router.scheduler.statistics().requests < 12:
            await asyncio.sleep(0.01)
        before = await there.paths()
        assert before[0] >= 1
        explained = await explain(there, prompt(1, 3000))
        assert explained["path"] == "pair"
        assert explained["whole_seconds"] > explained["pair_seconds"]
        assert explained["decode"]["policy"] == "decode-load"
        await there.complete(prompt(1, 3000))
        assert await there.paths() == (before[0], before[1] + 1)
        assert (await explain(there, prompt(2, 8)))["path"] == "whole"
        await there.complete(prompt(2, 8), 1)
        assert await there.paths() == (before[0] + 1, before[1] + 1)
        assert {status for status, _, _ in await asyncio.gather(*streams)} == {200}
        await there.idle()


async def explain(there: Site, ids: list[int]) -> Any:
    async with there.session.post(f"{there.router.url}/explain", json={"input_ids": ids}) as reply:
        return await reply.json()


async def test_unconditional_means_pairs() -> None:
    async with site(WHOLE, PREFILL, DECODE, conditional_disagg=False) as there:
        for seed in range(3):
            assert (await there.complete(prompt(seed, 8)))[0] == 200
        assert await there.paths() == (0, 3)


@pytest.mark.parametrize("mode", MODES, ids=["tokens", "text"])
async def test_a_client_that_leaves_during_prefill_frees_both(mode: dict[str, Any]) -> None:
    async with site(SLOW_PREFILL, DECODE, **mode) as there:
        asked = asyncio.create_task(there.complete(prompt()))
        while not there.workers[0].ranks[0].load().used_tokens:
            await asyncio.sleep(0.005)
        asked.cancel()
        await there.idle()


@pytest.mark.parametrize("mode", MODES, ids=["tokens", "text"])
async def test_a_client_that_leaves_during_decode_frees_both(mode: dict[str, Any]) -> None:
    async with site(PREFILL, SLOW_DECODE, **mode) as there:
        async with there.stream(prompt(), 200) as reply:
            await reply.content.readany()
        await there.idle()
        assert await there.count('aborts_total{reason="left"}') == 1


@pytest.mark.parametrize("mode", MODES, ids=["tokens", "text"])
@pytest.mark.parametrize("kind", ["error", "cut", "hang"])
@pytest.mark.parametrize("leg", [0, 1])
async def test_a_leg_that_fails_takes_the_other_with_it(leg: int, kind: str, mode: dict[str, Any]) -> None:
    """The request goes on at the other pair, and what the first one held is free within a second or so of the failure."""
    timeouts = {"first_token_timeout_seconds": 1.0, "transfer_timeout_seconds": 0.3} if kind == "hang" else {}
    parts = (PREFILL, PREFILL, DECODE) if leg == 0 else (PREFILL, DECODE, DECODE)
    async with site(*parts, policy="round-robin", decode_policy="round-robin", **timeouts, **mode) as there:
        await there.fault(there.workers[leg], kind=kind)
        status, body, _ = await there.complete(prompt(), stream=False)
        assert (status, body["choices"][0]["text"]) == (200, await alone(prompt()))
        await there.idle(1.5)


@pytest.mark.parametrize("part", [PREFILL, DECODE])
async def test_kill_9_of_a_leg(part: str, tmp_path: Path) -> None:
    """A process that is gone from one moment to the next: the request goes on at the other of its kind."""
    options = ["--disaggregation-mode", part, "--speed", "0.05" if part == PREFILL else "1", "--decode-step-ms", "50"]
    victim = Process("sim.worker", options, tmp_path / "victim.log")
    async with AsyncExitStack() as exits:
        exits.push_async_callback(victim.stop)
        await (await victim.start()).ready()
        url = f"http://127.0.0.1:{victim.announced['http']}"
        there = await exits.enter_async_context(site(PREFILL, DECODE, others=(url,)))
        other = Target(there.workers[part == DECODE].url.removeprefix("http://"))
        there.router.scheduler.set_available(other, available=False)
        asked = asyncio.create_task(there.complete(prompt(), 40))
        async with asyncio.timeout(10):
            while not await used(there, url):
                await asyncio.sleep(0.01)
        there.router.scheduler.set_available(other, available=True)
        await victim.stop(signal.SIGKILL)
        status, body, _ = await asked
        assert (status, body["choices"][0]["text"]) == (200, await alone(prompt(), 40))
        await there.idle()


async def used(there: Site, url: str) -> int:
    async with there.session.get(f"{url}/v1/loads") as reply:
        return int((await reply.json())["loads"][0]["num_used_tokens"])


async def test_a_decode_that_breaks_off_goes_on_elsewhere() -> None:
    async with site(PREFILL, DECODE, DECODE, decode_policy="round-robin") as there:
        await there.fault(there.workers[1], kind="cut", after_tokens=4)
        status, body, worker = await there.complete(prompt(), 12)
        assert (status, body["choices"][0]["text"]) == (200, await alone(prompt(), 12))
        assert worker.startswith(there.workers[2].url.removeprefix("http://"))
        await there.idle()


async def test_the_only_pair_that_does_not_meet_is_kept_apart_for_a_while() -> None:
    """The prefill worker's bootstrap port is taken from it: nobody can fetch its KV, though it answers."""
    lost = {"disaggregation_mode": PREFILL, "bootstrap_timeout_seconds": 5.0}
    async with site(lost, DECODE, migration_limit=0) as there:
        assert there.workers[0]._bootstrap is not None
        await there.workers[0]._bootstrap.cleanup()
        started = time.monotonic()
        status, body, _ = await there.complete(prompt())
        assert (status, body["error"]["message"]) == (502, "the engine failed: rendezvous")
        assert time.monotonic() - started < 4  # not what either engine would have waited
        status, body, _ = await there.complete(prompt())
        assert (status, body["error"]["message"]) == (503, "no worker can take this request: all pairs apart")
        assert await there.count("pairs_apart") == 1
        assert await there.count("pair_quarantines_total") == 1
        ranks = [rank for worker in (await there.get("/workers"))["workers"] for rank in worker["ranks"]]
        assert {bool(rank["apart_from"]) for rank in ranks} == {True}
        await there.idle()


async def test_a_fleet_without_decode_workers_serves_no_model() -> None:
    async with site(PREFILL, discovery_ttl_seconds=0.1) as there:  # so long a request waits for somebody
        assert (await there.get("/v1/models"))["data"] == []
        status, body, _ = await there.complete(prompt())
        assert (status, body["error"]["code"]) == (503, "no_worker")


@pytest.mark.parametrize("asked", [{"n": 2}, {"prompt": [[5, 6], [7]]}, {"prompt": ["a", "b"]}])
async def test_several_answers_need_a_worker_that_does_all(asked: dict[str, Any]) -> None:
    async with site(PREFILL, DECODE, text_mode=True) as there:
        body = {"model": "tinymodel", "prompt": prompt(), "max_tokens": 2} | asked
        async with there.session.post(f"{there.router.url}/v1/completions", json=body) as reply:
            assert (reply.status, (await reply.json())["error"]["code"]) == (400, "unsupported_parameter")
    async with site(WHOLE, PREFILL, DECODE, text_mode=True, conditional_disagg=False) as there:
        await there.complete(prompt(), n=2)
        assert await there.paths() == (1, 0)  # what the fake worker makes of it is its own affair


async def test_many_at_once_through_two_pairs() -> None:
    async with site(PREFILL, PREFILL, DECODE, DECODE) as there:
        asked = [there.complete(prompt(seed % 7, 60 + 30 * (seed % 5)), 1 + seed % 9) for seed in range(40)]
        answers = await asyncio.gather(*asked)
        assert {status for status, _, _ in answers} == {200}
        for seed in (0, 13, 39):
            said = answers[seed][1]["choices"][0]["text"]
            assert said == await alone(prompt(seed % 7, 60 + 30 * (seed % 5)), 1 + seed % 9)
        await there.idle()
        assert await there.paths() == (0, 40)
        statistics = there.router.scheduler.statistics()
        assert statistics.unknown_requests == statistics.repeated_first_tokens == 0


async def test_a_client_of_its_own_beside_the_router_loses_nothing() -> None:
    """Rooms of the router do not meet those that another client draws."""
    async with site(PREFILL, DECODE) as there:
        body = {
            "input_ids": prompt(5),
            "sampling_params": {"max_new_tokens": 4},
            "bootstrap_host": "127.0.0.1",
            "bootstrap_port": there.workers[0].ports.bootstrap,
            "bootstrap_room": 0,
        }

        async def direct(url: str) -> int:
            async with aiohttp.ClientSession() as session, session.post(f"{url}/generate", json=body) as reply:
                return reply.status

        results = await asyncio.gather(
            *(direct(worker.url) for worker in there.workers), *(there.complete(prompt(seed)) for seed in range(5))
        )
        assert results[:2] == [200, 200]
        assert {result[0] for result in results[2:] if isinstance(result, tuple)} == {200}
