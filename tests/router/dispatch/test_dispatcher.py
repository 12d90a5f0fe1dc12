from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from router.core import NoTarget, Target
from router.dispatch.errors import EngineFailed, EngineRefused, EngineTimeout, EngineUnreachable
from router.dispatch.request import Output, TokenRequest
from tests.router.dispatch.fleet import MODEL, Stack, stack
from tests.router.dispatch.upstream import Upstream, chain

if TYPE_CHECKING:
    from router.dispatch.errors import EngineError

PROMPT = list(range(100, 140))
BROKEN_BEFORE = ["hang", "hang_before_token", "cut", "status_500", "malformed"]
BROKEN_AFTER = ["hang_mid", "cut_mid", "end_mid", "abort_mid", "malformed_mid"]


def request(name: str = "r", count: int = 12, **fields: Any) -> TokenRequest:
    return TokenRequest(name, MODEL, np.array(PROMPT, np.uint32), max_new_tokens=count, **fields)


async def run(built: Stack, asked: TokenRequest | None = None) -> list[Output]:
    async with aclosing(built.dispatcher.run(asked or request())) as outputs:
        return [output async for output in outputs]


def tokens(outputs: list[Output]) -> list[int]:
    return [token for output in outputs for token in output.token_ids]


async def test_a_request_goes_through() -> None:
    async with stack(Upstream(cached_tokens=32)) as built:
        outputs = await run(built, request(sampling={"temperature": 0.5}, cache_salt="s", extra_key="k"))
        (body,) = built.upstreams[0].bodies
    assert tokens(outputs) == chain(PROMPT[-1], 12)
    *others, last = [output.finish_reason for output in outputs]
    assert last == "length"
    assert not any(others)
    assert {(output.target, output.cached_tokens) for output in outputs} == {(Target("w0"), 32)}
    assert body == {
        "rid": "r-0",
        "input_ids": PROMPT,
        "sampling_params": {"temperature": 0.5, "max_new_tokens": 12},
        "stream": True,
        "cache_salt": "s",
        "extra_key": "k",
    }
    assert built.first_tokens == [32]
    assert built.freed == [("r", False)]
    assert built.count("decisions_total", policy="round-robin") == 1
    errors = [built.count("cached_tokens_error_bucket", le=bound) for bound in ("-64.0", "-1.0")]
    assert errors == [0, 1]  # nothing was believed to be there
    assert built.failures == []


async def test_a_rank_is_named_where_there_are_several() -> None:
    async with stack("cumulative", ranks=2) as built:
        await asyncio.gather(*(run(built, request(str(i))) for i in range(4)))
        ranks = [body["routed_dp_rank"] for body in built.upstreams[0].bodies]
    assert sorted(ranks) == [0, 0, 1, 1]


@pytest.mark.parametrize("mode", BROKEN_BEFORE + BROKEN_AFTER)
async def test_a_failure_moves_the_request_on(mode: str) -> None:
    async with stack(mode, "incremental", impatient=True) as built:
        outputs = await run(built)
        first, second = built.upstreams
    made = 3 if mode in BROKEN_AFTER else 0
    assert tokens(outputs) == chain(PROMPT[-1], 12)
    assert outputs[-1].finish_reason == "length"
    assert second.bodies[0]["input_ids"] == PROMPT + chain(PROMPT[-1], made)
    assert second.bodies[0]["sampling_params"]["max_new_tokens"] == 12 - made
    assert second.bodies[0]["rid"] != first.bodies[0]["rid"]
    assert built.freed == [("r", True), ("r", False)]
    assert [target for target, _ in built.failures] == [Target("w0")]
    ((_, error),) = built.failures
    assert built.count("migrations_total", reason=error.kind) == 1


@pytest.mark.parametrize("mode", ["hang", "hang_before_token", "hang_mid"])
async def test_a_hung_engine_is_told_to_give_up(mode: str) -> None:
    async with stack(mode, "cumulative", impatient=True) as built:
        await run(built)
        await built.upstreams[0].abort_called.wait()
    assert built.upstreams[0].aborted == ["r-0"]
    assert built.count("aborts_total", reason="timeout") == 1


async def test_the_prompts_cached_tokens_count_once() -> None:
    async with stack(Upstream("cut_mid", cached_tokens=16), Upstream(cached_tokens=32)) as built:
        outputs = await run(built)
    assert {output.cached_tokens for output in outputs} == {16}
    assert built.first_tokens == [16, 32]  # but the scheduler learns both


async def test_each_failing_worker_is_asked_once() -> None:
    async with stack("status_500", "cut_mid", "malformed", "cumulative") as built:
        outputs = await run(built)
    assert tokens(outputs) == chain(PROMPT[-1], 12)
    assert [len(upstream.bodies) for upstream in built.upstreams] == [1, 1, 1, 1]


async def test_the_limit_of_migrations() -> None:
    async with stack(*["status_500"] * 4, migration_limit=2) as built:
        with pytest.raises(EngineFailed, match="500"):
            await run(built)
    assert sum(len(upstream.bodies) for upstream in built.upstreams) == 3
    assert built.freed == [("r", True)] * 3


@pytest.mark.parametrize(
    ("mode", "kind"), [("hang", EngineTimeout), ("cut", EngineUnreachable), ("status_500", EngineFailed)]
)
async def test_when_all_have_failed_the_last_failure_is_told(mode: str, kind: type[EngineError]) -> None:
    async with stack(mode, mode, impatient=True) as built:
        with pytest.raises(kind):
            await run(built)
    assert len(built.failures) == 2
    assert built.count("unplaced_total", reason="all excluded") == 1


@pytest.mark.parametrize("mode", ["refuse", "refuse_in_stream", "refuse_by_abort"])
async def test_a_refusal_is_not_tried_elsewhere(mode: str) -> None:
    async with stack(mode, "cumulative") as built:
        with pytest.raises(EngineRefused, match="top_k must be sane"):
            await run(built)
    assert built.failures == []
    assert built.upstreams[1].bodies == []
    assert built.count("engine_errors_total", kind="refused") == 1


async def test_nobody_there() -> None:
    async with stack() as built:
        with pytest.raises(NoTarget):
            await run(built)
    assert built.freed == []


async def test_a_worker_that_left_between_decision_and_dispatch() -> None:
    async with stack("cumulative", "cumulative") as built:
        del built.fleet.urls["w0"]
        outputs = await run(built)
    assert tokens(outputs) == chain(PROMPT[-1], 12)
    assert isinstance(built.failures[0][1], EngineUnreachable)


async def test_without_a_connection_no_rank_behind_it_is_tried() -> None:
    async with stack("cumulative", "cumulative", ranks=3) as built:
        await built.upstreams[0].stop()
        outputs = await run(built)
    assert outputs[-1].target.worker_id == "w1"
    assert len(built.failures) == 1


async def test_an_answer_cut_before_its_finish_reason_only() -> None:
    async with stack(Upstream("cut_mid", after=12), "cumulative") as built:
        outputs = await run(built)
    assert tokens(outputs) == chain(PROMPT[-1], 12)
    assert outputs[-1] == Output([], Target("w0"), 0, "length")
    assert built.upstreams[1].bodies == []


async def test_an_answer_that_follows_a_grammar_is_not_continued() -> None:
    async with stack("cut_mid", "cumulative") as built:
        with pytest.raises(EngineFailed):
            await run(built, request(resumable=False))
    async with stack("status_500", "cumulative") as built:
        assert len(tokens(await run(built, request(resumable=False)))) == 12


async def test_least_tokens_shrink_with_what_was_made() -> None:
    async with stack("cut_mid", "cumulative") as built:
        await run(built, request(sampling={"min_new_tokens": 5}))
    assert built.upstreams[1].bodies[0]["sampling_params"]["min_new_tokens"] == 2


@pytest.mark.parametrize("mode", ["hang", "hang_before_token"])
async def test_cancelled_before_a_token_frees_and_aborts(mode: str) -> None:
    async with stack(mode, "cumulative") as built:
        task = asyncio.create_task(run(built))
        await built.upstreams[0].silent.wait()
        task.cancel()
        await check_abandoned(built, task)
    assert built.freed == [("r", True)]  # nobody knows whether the prompt was prefilled


async def test_cancelled_after_a_token_frees_and_aborts() -> None:
    async with stack("hang_mid", "cumulative") as built:
        begun = asyncio.Event()

        async def consume() -> None:
            async with aclosing(built.dispatcher.run(request())) as outputs:
                async for _ in outputs:
                    begun.set()

        task = asyncio.create_task(consume())
        await begun.wait()
        task.cancel()
        await check_abandoned(built, task)
    assert built.freed == [("r", False)]


async def check_abandoned(built: Stack, task: asyncio.Task[Any]) -> None:
    with pytest.raises(asyncio.CancelledError):
        await task
    assert built.scheduler.statistics().requests == 0
    await built.upstreams[0].left.wait()
    await built.upstreams[0].abort_called.wait()
    assert built.upstreams[0].aborted == ["r-0"]
    assert built.upstreams[1].bodies == []
    assert built.count("aborts_total", reason="left") == 1


async def test_closing_between_tokens_frees_and_aborts() -> None:
    async with stack("cumulative") as built:
        async with aclosing(built.dispatcher.run(request(count=1000))) as outputs:
            await anext(outputs)
        assert built.scheduler.statistics().requests == 0
        await built.upstreams[0].abort_called.wait()
    assert built.freed == [("r", False)]


async def test_an_abort_that_fails_is_counted() -> None:
    async with stack("hang") as built:

        async def unreachable(url: str, rid: str) -> None:
            raise EngineUnreachable(url)

        built.engine.abort = unreachable
        task = asyncio.create_task(run(built))
        await built.upstreams[0].silent.wait()
        task.cancel()
        await asyncio.wait([task])
        await built.dispatcher.close()
    assert built.count("failed_aborts_total") == 1


async def test_failures_disturb_nobody_else() -> None:
    modes = ["status_500", "cut_mid", "malformed", "cumulative", "incremental"]
    async with stack(*modes, migration_limit=len(modes)) as built:
        answers = await asyncio.gather(*(run(built, request(f"r{i}")) for i in range(40)))
    assert all(tokens(answer) == chain(PROMPT[-1], 12) for answer in answers)


async def test_an_exception_of_our_own_frees_too() -> None:
    async with stack("cumulative") as built:

        def fail(*arguments: object) -> None:
            raise ZeroDivisionError

        built.scheduler.first_token = fail
        with pytest.raises(ZeroDivisionError):
            await run(built)
        assert built.scheduler.statistics().requests == 0


async def test_without_events_the_output_is_predicted_too() -> None:
    async with stack("cumulative", exact=False) as built:
        await run(built, request(count=30))  # 40 + 30 tokens, the last of them not in the cache: 4 full blocks of 16
        (state,) = built.scheduler.targets()
    assert state.predicted_blocks == 4


async def test_explain_sends_and_books_nothing() -> None:
    async with stack("cumulative", "cumulative") as built:
        decision = built.dispatcher.explain(np.array(PROMPT, np.uint32), MODEL).first
        assert [candidate.target for candidate in decision.candidates] == [Target("w0"), Target("w1")]
        assert built.scheduler.statistics().placements == 0


def test_a_request_for_no_tokens_is_a_mistake() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        request(count=0)
