"""Two legs under one room: sent together, ended together, blamed apart."""

from __future__ import annotations

import asyncio
from contextlib import aclosing

import pytest

from router.core import NoTarget, Part, Target
from router.dispatch.engine import EngineTimeouts
from router.dispatch.errors import EngineFailed, EngineRefused, EngineTimeout, RendezvousFailed
from tests.router.dispatch.fleet import FOR_HUNG, Stack, stack
from tests.router.dispatch.test_dispatcher import PROMPT, request, run, tokens
from tests.router.dispatch.upstream import Upstream, chain

P, D, W = Part.PREFILL, Part.DECODE, Part.WHOLE
ANSWER = chain(PROMPT[-1], 12)
BROKEN = ["hang", "hang_before_token", "cut", "status_500", "malformed"]
QUICK = EngineTimeouts(first_token_seconds=20, idle_seconds=20, transfer_seconds=0.05)


async def test_both_legs_go_out_under_one_room() -> None:
    async with stack(Upstream(cached_tokens=32), "cumulative", parts=(P, D)) as built:
        outputs = await run(built, request(sampling={"temperature": 0.5, "min_new_tokens": 3}, cache_salt="s"))
        (prefill,), (decode,) = (upstream.bodies for upstream in built.upstreams)
    assert tokens(outputs) == ANSWER
    assert {output.target for output in outputs} == {Target("w1")}
    assert outputs[-1].cached_tokens == 32
    assert prefill["sampling_params"] == {"temperature": 0.5, "max_new_tokens": 1, "min_new_tokens": 1}
    assert decode["sampling_params"] == {"temperature": 0.5, "max_new_tokens": 12, "min_new_tokens": 3}
    for field, value in (("bootstrap_host", "w0.host"), ("bootstrap_port", 8998), ("rid", "r-0"), ("cache_salt", "s")):
        assert prefill[field] == decode[field] == value
    assert prefill["bootstrap_room"] == decode["bootstrap_room"]
    assert built.first_tokens == [32]  # the prefill's: a decode teaches nothing of prefills
    assert sorted(built.freed) == [("r", False), ("r/prefill", False)]
    statistics = built.paths.statistics(0.0)
    assert (statistics.whole, statistics.pair) == (0, 1)


async def test_rooms_and_ranks_agree() -> None:
    async with stack("cumulative", "cumulative", parts=(P, D), ranks=3) as built:
        await asyncio.gather(*(run(built, request(str(i))) for i in range(6)))
        prefills, decodes = ({body["bootstrap_room"]: body for body in upstream.bodies} for upstream in built.upstreams)
    assert len(prefills) == 6
    for room, prefill in prefills.items():
        assert room % 3 == prefill["routed_dp_rank"] == decodes[room]["disagg_prefill_dp_rank"]
    assert {body["routed_dp_rank"] for body in decodes.values()} == {0, 1, 2}


@pytest.mark.parametrize("mode", BROKEN)
async def test_a_failing_prefill_leg_ends_the_decode_leg(mode: str) -> None:
    """The decode worker waits for KV that will never come; it is told at once, and the request goes on at another pair."""
    waiting = Upstream("hang_first")
    async with stack(mode, "cumulative", waiting, parts=(P, P, D), impatient=True) as built:
        assert tokens(await run(built)) == ANSWER
        await waiting.abort_called.wait()
    assert waiting.aborted[0] == "r-0"
    assert waiting.left.is_set()
    assert built.count("aborts_total", reason="coupled") == 1
    assert {target for target, _ in built.failures} | {target for pair in built.apart for target in pair} >= {
        Target("w0")
    }
    assert built.freed.count(("r", True)) == built.freed.count(("r/prefill", True)) == 1


@pytest.mark.parametrize("mode", BROKEN)
async def test_a_failing_decode_leg_ends_the_prefill_leg(mode: str) -> None:
    waiting = Upstream("hang_first")
    async with stack(waiting, mode, "cumulative", parts=(P, D, D), impatient=True) as built:
        assert tokens(await run(built)) == ANSWER
        await waiting.abort_called.wait()
    assert waiting.aborted[0] == "r-0"
    assert built.count("aborts_total", reason="coupled") == 1
    assert built.freed.count(("r", True)) == built.freed.count(("r/prefill", True)) == 1


async def test_a_pair_that_does_not_meet_is_nobodys_fault_alone() -> None:
    async with stack("cumulative", "unmet", "cumulative", parts=(P, D, D)) as built:
        assert tokens(await run(built)) == ANSWER
    assert built.failures == []
    assert built.apart == [(Target("w0"), Target("w1"))]
    assert built.count("engine_errors_total", kind="rendezvous") == 1
    assert [len(upstream.bodies) for upstream in built.upstreams] == [2, 1, 1]  # the same prefill worker, with another


async def test_the_only_pair_apart() -> None:
    async with stack("cumulative", "unmet", parts=(P, D)) as built:
        with pytest.raises(RendezvousFailed):
            await run(built)
        with pytest.raises(NoTarget, match="all pairs apart"):
            await run(built, request("later"))


async def test_a_decode_worker_that_never_takes_the_kv() -> None:
    async with stack("cumulative", "hang", "cumulative", parts=(P, D, D), timeouts=QUICK) as built:
        assert tokens(await run(built)) == ANSWER
        await built.upstreams[1].abort_called.wait()
    assert built.apart == [(Target("w0"), Target("w1"))]
    assert built.count("aborts_total", reason="timeout") == 1


async def test_silence_on_both_sides_is_the_pairs() -> None:
    async with stack("hang", "hang", parts=(P, D), timeouts=FOR_HUNG["hang"]) as built:
        with pytest.raises(EngineTimeout):
            await run(built)
    assert built.apart == [(Target("w0"), Target("w1"))]
    assert built.failures == []


async def test_a_refusal_is_the_clients() -> None:
    async with stack("hang", "refuse", parts=(P, D)) as built:
        with pytest.raises(EngineRefused, match="top_k must be sane"):
            await run(built)
        await built.upstreams[0].abort_called.wait()
    assert built.failures == built.apart == []


@pytest.mark.parametrize("mode", ["cut_mid", "abort_mid", "malformed_mid"])
async def test_an_answer_goes_on_at_another_pair(mode: str) -> None:
    async with stack("cumulative", mode, "cumulative", parts=(P, D, D)) as built:
        assert tokens(await run(built)) == ANSWER
        prefills = built.upstreams[0].bodies
    assert [len(body["input_ids"]) for body in prefills] == [len(PROMPT), len(PROMPT) + 3]
    assert prefills[0]["bootstrap_room"] != prefills[1]["bootstrap_room"]
    assert [target for target, _ in built.failures] == [Target("w1")]


async def test_an_answer_goes_on_as_a_whole() -> None:
    async with stack("cumulative", "cut_mid", "cumulative", parts=(P, D, W)) as built:
        built.scheduler.set_available(Target("w2"), available=False)
        task = asyncio.create_task(run(built))
        await built.upstreams[1].asked.wait()
        built.scheduler.set_available(Target("w2"), available=True)
        assert tokens(await task) == ANSWER
    assert "bootstrap_room" not in built.upstreams[2].bodies[0]


@pytest.mark.parametrize(
    "modes", [("hang", "hang"), ("cumulative", "hang"), ("hang_before_token", "hang_before_token")]
)
async def test_a_client_that_leaves_during_prefill_ends_both(modes: tuple[str, str]) -> None:
    async with stack(*modes, parts=(P, D)) as built:
        task = asyncio.create_task(run(built))
        prefill, decode = built.upstreams
        await asyncio.gather(prefill.asked.wait(), decode.silent.wait())
        task.cancel()
        await left(built, task, decode)
        if modes[0] != "cumulative":
            await prefill.abort_called.wait()
    assert built.count("aborts_total", reason="coupled") == 0


async def test_a_client_that_leaves_during_decode_ends_both() -> None:
    async with stack("cumulative", "hang_mid", parts=(P, D)) as built:
        begun = asyncio.Event()

        async def consume() -> None:
            async with aclosing(built.dispatcher.run(request())) as outputs:
                async for _ in outputs:
                    begun.set()

        task = asyncio.create_task(consume())
        await begun.wait()
        task.cancel()
        await left(built, task, built.upstreams[1])
    assert sorted(built.freed) == [("r", False), ("r/prefill", False)]


async def left(built: Stack, task: asyncio.Task[object], decode: Upstream) -> None:
    with pytest.raises(asyncio.CancelledError):
        await task
    assert built.scheduler.statistics().requests == 0
    await decode.left.wait()
    await decode.abort_called.wait()
    assert decode.aborted == ["r-0"]


async def test_a_late_prefill_answer_does_not_hold_up_tokens() -> None:
    """A decode worker's token proves that the KV is across, whatever becomes of the prefill worker's own answer."""
    async with stack("hang_before_token", "cumulative", parts=(P, D)) as built:
        assert tokens(await run(built)) == ANSWER
        await built.upstreams[0].abort_called.wait()
    assert sorted(built.freed) == [("r", False), ("r/prefill", True)]


async def test_a_prefill_worker_that_left_between_decision_and_dispatch() -> None:
    async with stack("cumulative", "cumulative", "cumulative", parts=(P, P, D)) as built:
        del built.fleet.urls["w0"]
        assert tokens(await run(built)) == ANSWER
    assert built.upstreams[0].bodies == []


async def test_half_a_fleet_serves_nobody() -> None:
    async with stack("cumulative", parts=(P,)) as built:
        with pytest.raises(NoTarget, match="no worker for this part: decode"):
            await run(built)
    async with stack("cumulative", parts=(D,)) as built:
        with pytest.raises(NoTarget, match="no worker for this part: whole"):
            await run(built)


async def test_all_that_fails_is_told_as_it_was() -> None:
    async with stack("status_500", "hang", parts=(P, D)) as built:
        with pytest.raises(EngineFailed, match="500"):
            await run(built)
    assert built.paths.statistics(0.0).pair == 1
