"""The whole stack over real sockets: prefixes find their holders; what fails is said, and hurts nobody else."""

from __future__ import annotations

import asyncio
import json
import signal
import time
from typing import TYPE_CHECKING, Any

import aiohttp
import numpy as np
import pytest
from openai import AsyncOpenAI

from events.blocks import sequence_hashes
from launch.stack import MODEL_NAME
from sim import tinymodel
from tests.live.conftest import ROUTER_OPTIONS

if TYPE_CHECKING:
    from launch.stack import Stack

pytestmark = pytest.mark.asyncio(loop_scope="module")

DEADLINE_SECONDS = 15.0


def router(stack: Stack) -> str:
    assert stack.router is not None
    return str(stack.router.announced["http"])


async def until(condition: Any, what: str) -> None:
    """Poll an async condition until it holds."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not await condition():
        assert time.monotonic() < deadline, what
        await asyncio.sleep(0.02)


async def get(session: aiohttp.ClientSession, url: str) -> Any:
    async with session.get(url) as reply:
        return await reply.json(content_type=None)


async def complete(session: aiohttp.ClientSession, url: str, prompt: object, **fields: Any) -> tuple[int, Any, str]:
    """Status, body and worker of a completion."""
    body = {"model": MODEL_NAME, "prompt": prompt, "max_tokens": 4, **fields}
    async with session.post(f"{url}/v1/completions", json=body) as reply:
        return reply.status, await reply.json(), reply.headers.get("X-Warmpath-Worker", "")


async def in_step(session: aiohttp.ClientSession, url: str, workers: int) -> bool:
    listed = (await get(session, f"{url}/workers"))["workers"]
    ranks = [rank for worker in listed for rank in worker.get("ranks", [])]
    return len(ranks) == workers and all(rank["exact"] and rank["available"] for rank in ranks)


async def arm(session: aiohttp.ClientSession, worker_url: str, **fault: Any) -> None:
    async with session.post(f"{worker_url}/_fault", json=fault) as reply:
        assert reply.status == 200


async def repair(session: aiohttp.ClientSession, stack: Stack) -> None:
    for url in stack.worker_urls:
        async with session.delete(f"{url}/_fault") as reply:
            assert reply.status == 200
    await stack.route(*ROUTER_OPTIONS)  # one that remembers no failures


def fresh(seed: int, count: int = 300) -> list[int]:
    """A prompt that no other test uses."""
    return [3 + (seed * 7919 + i * i) % 2000 for i in range(count)]


async def test_a_repeated_prefix_lands_on_its_holder(stack: Stack, session: aiohttp.ClientSession) -> None:
    url = router(stack)
    for seed in range(6):
        _, _, holder = await complete(session, url, fresh(seed))

        async def known(seed: int = seed, holder: str = holder) -> bool:
            async with session.post(f"{url}/explain", json={"input_ids": fresh(seed)}) as reply:
                rows = (await reply.json())["candidates"]
            held = {f"{row['target']['worker_id']}/{row['target']['rank']}": row["device_blocks"] for row in rows}
            return held[holder] == 300 // 64

        await until(known, "the stored event never reached the index")
        listed = await get(session, f"{url}/workers/{holder}/blocks")
        assert set(sequence_hashes(np.array(fresh(seed), np.uint32), 64).tolist()) <= set(listed["device"])
        status, body, worker = await complete(session, url, [*fresh(seed), *fresh(seed + 100, 50)])
        assert (status, worker) == (200, holder)
        assert body["usage"]["prompt_tokens_details"]["cached_tokens"] == 300 // 16 * 16


async def test_blocks_of_a_rank_that_is_not_there(stack: Stack, session: aiohttp.ClientSession) -> None:
    async with session.get(f"{router(stack)}/workers/nobody/7/blocks") as reply:
        assert reply.status == 404
        assert "nobody/7" in (await reply.json())["error"]["message"]


async def test_openais_client_streams_a_chat(stack: Stack) -> None:
    async with AsyncOpenAI(base_url=f"{router(stack)}/v1", api_key="none") as client:
        pieces = []
        stream = await client.chat.completions.create(
            model=MODEL_NAME, messages=[{"role": "user", "content": "hello"}], max_tokens=6, stream=True
        )
        async for chunk in stream:
            pieces.append(chunk.choices[0].delta.content or "")
        whole = await client.chat.completions.create(
            model=MODEL_NAME, messages=[{"role": "user", "content": "hello"}], max_tokens=6
        )
        assert "".join(pieces) == whole.choices[0].message.content
        assert [model.id async for model in client.models.list()] == [MODEL_NAME]


@pytest.mark.parametrize(
    ("route", "data", "status", "mention"),
    [
        ("chat/completions", b'{"model": ', 400, "JSON"),
        (
            "chat/completions",
            json.dumps({"model": "gpt-9", "messages": [{"role": "user", "content": "x"}]}),
            404,
            "gpt-9",
        ),
        ("completions", json.dumps({"model": MODEL_NAME, "prompt": [5] * 5000}), 400, "5000"),
        ("completions", json.dumps({"model": MODEL_NAME, "prompt": "x", "temperature": 3}), 400, "temperature"),
        ("completions", json.dumps({"model": MODEL_NAME, "prompt": "x" * 70000}), 413, "large"),
        ("nothing", b"{}", 404, "/v1/nothing"),
    ],
)
async def test_bad_requests_say_what_is_wrong(
    stack: Stack, session: aiohttp.ClientSession, route: str, data: str | bytes, status: int, mention: str
) -> None:
    good = asyncio.create_task(complete(session, router(stack), "a good one beside it"))
    async with session.post(f"{router(stack)}/v1/{route}", data=data) as reply:
        error = (await reply.json())["error"]
        assert reply.status == status
    assert mention in error["message"]
    assert set(error) == {"message", "type", "param", "code"}
    assert (await good)[0] == 200


@pytest.mark.parametrize("kind", ["error", "hang", "cut"])
@pytest.mark.parametrize("after_tokens", [0, 3])
async def test_one_failing_worker_costs_nobody_an_answer(
    stack: Stack, session: aiohttp.ClientSession, kind: str, after_tokens: int
) -> None:
    expected = (await complete(session, router(stack), "the same text wherever it runs", max_tokens=8))[1]
    for url in stack.worker_urls:
        await arm(session, url, kind=kind, after_tokens=after_tokens, count=1)
    async with session.delete(f"{stack.worker_urls[0]}/_fault"):
        pass  # only the second fails: several requests, so that it gets one
    answers = await asyncio.gather(
        *(complete(session, router(stack), "the same text wherever it runs", max_tokens=8) for _ in range(6))
    )
    assert [status for status, _, _ in answers] == [200] * 6
    assert {body["choices"][0]["text"] for _, body, _ in answers} == {expected["choices"][0]["text"]}
    await repair(session, stack)


async def test_all_workers_failing_is_an_error_in_openais_shape(stack: Stack, session: aiohttp.ClientSession) -> None:
    for url in stack.worker_urls:
        await arm(session, url, kind="error", count=5, message="out of order")
    status, body, _ = await complete(session, router(stack), "nobody answers this")
    assert (status, body["error"]["type"]) == (502, "upstream_error")
    await repair(session, stack)
    assert (await complete(session, router(stack), "back again"))[0] == 200


async def test_a_client_that_leaves_frees_engine_and_booking(stack: Stack, session: aiohttp.ClientSession) -> None:
    body = {"model": MODEL_NAME, "prompt": fresh(50), "max_tokens": 3000, "stream": True, "ignore_eos": True}
    async with session.post(f"{router(stack)}/v1/completions", json=body) as reply:
        await reply.content.readany()

    async def idle() -> bool:
        for url in stack.worker_urls:
            loads = (await get(session, f"{url}/v1/loads"))["loads"]
            if any(load["num_running_reqs"] + load["num_waiting_reqs"] for load in loads):
                return False
        listed = (await get(session, f"{router(stack)}/workers"))["workers"]
        return not any(rank["requests"] for worker in listed for rank in worker["ranks"])

    await until(idle, "the request still runs, or is still booked")


async def test_without_nats_requests_go_on_and_events_come_back(stack: Stack, session: aiohttp.ClientSession) -> None:
    url = router(stack)
    port = stack.broker.port
    assert stack.broker.pid is not None
    await stack.broker.stop()
    assert (await complete(session, url, fresh(60)))[0] == 200
    await stack.broker.start()
    assert stack.broker.port == port

    async def caught_up() -> bool:
        async with session.post(f"{url}/explain", json={"input_ids": fresh(60)}) as reply:
            rows = (await reply.json())["candidates"]
        return max(row["device_blocks"] for row in rows) == 300 // 64

    await until(caught_up, "what happened while NATS was away never reached the index")
    await until(lambda: in_step(session, url, 2), "not in step again")


async def test_another_block_size_is_refused_and_nobody_else_disturbed(
    stack: Stack, session: aiohttp.ClientSession
) -> None:
    options = ["--attach", stack.worker_urls[0], "--worker-id", "odd", "--block-size", "32"]
    adapter = await stack.spawn("workers.sglang", [*options, *stack.place()], "adapter-odd")
    await adapter.ready()

    async def refused() -> bool:
        listed = (await get(session, f"{router(stack)}/workers"))["workers"]
        return any("blocks of 32 tokens" in worker.get("refused", "") for worker in listed)

    await until(refused, "the router took a worker whose hashes can never match")
    assert (await complete(session, router(stack), "still served"))[0] == 200
    assert await adapter.stop() == 0

    async def gone() -> bool:
        return len((await get(session, f"{router(stack)}/workers"))["workers"]) == 2

    await until(gone, "an adapter that was stopped left its card")


async def test_servers_without_adapters_are_predicted(stack: Stack, session: aiohttp.ClientSession) -> None:
    """`--no-kv-events --worker URL`: no NATS, no adapters, and a repeated prefix still finds its holder."""
    before = stack.router
    options = ["--no-kv-events", "--discovery", "memory", "--min-workers", "2"]
    model = ["--model-path", str(tinymodel.PATH), "--http-port", "0"]
    static = [word for url in stack.worker_urls for word in ("--worker", url)]
    alone = await (await stack.spawn("router", [*model, *options, *static], "router-static")).ready()
    url = alone.announced["http"]
    for seed in range(80, 84):
        _, _, holder = await complete(session, url, fresh(seed))
        _, body, worker = await complete(session, url, [*fresh(seed), *fresh(seed + 100, 50)])
        assert worker == holder
        assert body["usage"]["prompt_tokens_details"]["cached_tokens"] == 300 // 16 * 16
    assert await alone.stop() == 0
    assert stack.router is before


async def test_a_worker_that_stands_still_loses_its_requests_to_others(
    stack: Stack, session: aiohttp.ClientSession
) -> None:
    """Its connections stay open, and nothing comes: no error ever says so."""
    await stack.route("--min-workers", "2", "--stall-timeout", "1")
    url = router(stack)
    fields = {"max_tokens": 100, "temperature": 0, "ignore_eos": True}
    _, whole, holder = await complete(session, url, fresh(90), **fields)
    worker = stack.workers[stack.worker_urls.index(f"http://{holder.rsplit('/', 1)[0]}")]
    worker.send(signal.SIGSTOP)
    try:
        answers = await asyncio.gather(*(complete(session, url, fresh(90), **fields) for _ in range(6)))
        assert {body["choices"][0]["text"] for _, body, _ in answers} == {whole["choices"][0]["text"]}
        listed = (await get(session, f"{url}/workers"))["workers"]
        assert sum("nothing for" in (rank["quarantined"] or "") for worker in listed for rank in worker["ranks"]) == 1
    finally:
        worker.send(signal.SIGCONT)

    async def back() -> bool:
        await complete(session, url, fresh(91))
        return await in_step(session, url, 2)

    await until(back, "the worker goes on, and gets no requests")
    await stack.route(*ROUTER_OPTIONS)


async def test_a_worker_killed_in_mid_stream(stack: Stack, session: aiohttp.ClientSession) -> None:
    """The last test here: its worker does not come back. The stream goes on elsewhere, and reads as if nothing had happened."""
    fields = {"max_tokens": 200, "temperature": 0, "ignore_eos": True}
    _, whole, _ = await complete(session, router(stack), fresh(70), **fields)
    body = {"model": MODEL_NAME, "prompt": fresh(70), "stream": True, **fields}
    text = []
    async with session.post(f"{router(stack)}/v1/completions", json=body) as reply:
        worker = reply.headers["X-Warmpath-Worker"].rsplit("/", 1)[0]
        index = stack.worker_urls.index(f"http://{worker}")
        async for line in reply.content:
            if line.startswith(b"data: {"):
                text.append(json.loads(line[6:])["choices"][0]["text"])
            if len(text) == 5:
                stack.workers[index].send(signal.SIGKILL)
    assert "".join(text) == whole["choices"][0]["text"]

    async def one_left() -> bool:
        return len((await get(session, f"{router(stack)}/workers"))["workers"]) == 1

    await until(one_left, "the adapter of a dead engine keeps it registered")
    assert (await complete(session, router(stack), fresh(71)))[0] == 200


async def test_nobody_there_and_nats_away_at_the_start(stack: Stack, session: aiohttp.ClientSession) -> None:
    """A router starts without workers and without NATS, says so, lets a request wait, and finds both later."""
    await stack.broker.stop()
    for adapter in stack.adapters:
        await adapter.stop()
    lonely = await stack.route(*ROUTER_OPTIONS, "--min-workers", "0", "--discovery-ttl", "60", name="router-lonely")
    url = lonely.announced["http"]
    assert (await get(session, f"{url}/health"))["status"] == "no workers"
    waiting = asyncio.create_task(complete(session, url, "anybody?"))
    await stack.broker.start()
    (alive,) = [url for url in stack.worker_urls if await answers(session, url)]
    await (await stack.attach(alive, "adapter-late")).ready()
    await until(lambda: in_step(session, url, 1), "a late worker over a late broker was not found")
    assert (await waiting)[0] == 200
    assert (await complete(session, url, "anybody?"))[0] == 200


async def answers(session: aiohttp.ClientSession, url: str) -> bool:
    try:
        async with session.get(f"{url}/ready") as reply:
            return reply.status == 200
    except aiohttp.ClientError:
        return False
