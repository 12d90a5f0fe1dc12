"""What the router believes of a real engine's cache is what the engine then says it reused.

Two SGLang servers on the CPU, an adapter beside each, NATS, the router; one request at a time. Before each request the router's
belief is read from `/explain`; after it, the engine's `cached_tokens` from the answer. A *barrier* (a request of its own, straight
to the engine, waited for in the router's index) ends each step: events of a rank are ordered, so all before it have arrived.
"""

from __future__ import annotations

import asyncio
import itertools
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import aiohttp
import pytest

from launch.stack import Stack
from tests.engine.script import Step, steps
from tests.engine.server import MODEL_NAME, EngineServer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from launch.process import Process

pytestmark = pytest.mark.engine

BARRIER_TIMEOUT_SECONDS = 30.0
POOL_TOKENS = 4096


class Fleet:
    """Two engines behind one router."""

    def __init__(
        self, engines: list[EngineServer], router: Process, session: aiohttp.ClientSession, block_size: int
    ) -> None:
        self.engines = engines
        self.url = router.announced["http"]
        self.session = session
        self.block_size = block_size
        self._barriers = itertools.count()

    async def post(self, url: str, body: dict[str, Any]) -> tuple[dict[str, str], Any]:
        async with self.session.post(url, json=body) as reply:
            assert reply.status == 200, await reply.text()
            return dict(reply.headers), await reply.json()

    async def beliefs(self, prompt: list[int]) -> dict[str, dict[str, Any]]:
        """The router's decision table for a prompt, by worker."""
        _, decision = await self.post(f"{self.url}/explain", {"input_ids": prompt, "model": MODEL_NAME})
        return {row["target"]["worker_id"]: row for row in decision["candidates"]}

    async def ask(self, prompt: list[int], max_tokens: int) -> tuple[str, int]:
        """Send through the router: the worker that answered and the tokens it had cached."""
        body = {"model": MODEL_NAME, "prompt": prompt, "max_tokens": max_tokens, "temperature": 0, "ignore_eos": True}
        headers, answer = await self.post(f"{self.url}/v1/completions", body)
        assert answer["usage"]["completion_tokens"] == max_tokens
        worker = headers["X-Warmpath-Worker"].rsplit("/", 1)[0]
        return worker, answer["usage"]["prompt_tokens_details"]["cached_tokens"]

    async def abort(self, prompt: list[int]) -> None:
        """Start a long answer, take its first piece, hang up."""
        body = {"model": MODEL_NAME, "prompt": prompt, "max_tokens": 500, "ignore_eos": True, "stream": True}
        async with self.session.post(f"{self.url}/v1/completions", json=body) as reply:
            await reply.content.readany()
        for engine in self.engines:
            await self.idle(engine)

    async def idle(self, engine: EngineServer) -> None:
        """Wait until an engine runs nothing: a disconnect reached it."""
        async with asyncio.timeout(BARRIER_TIMEOUT_SECONDS):
            while True:
                async with self.session.get(f"{engine.url}/v1/loads") as reply:
                    loads = (await reply.json())["loads"]
                if not any(load["num_running_reqs"] + load["num_waiting_reqs"] for load in loads):
                    return
                await asyncio.sleep(0.05)

    async def flush(self, engine: EngineServer) -> None:
        async with self.session.post(f"{engine.url}/flush_cache", params={"timeout": "10"}) as reply:
            assert reply.status == 200, await reply.text()

    async def barrier(self, engine: EngineServer) -> None:
        """Wait until the router has applied all that this engine has done so far."""
        number = next(self._barriers)
        length = 2 * max(self.block_size, engine.page_size)
        prompt = [2000 + number % 40, 3 + number // 40, *[2041] * (length - 2)]
        body = {"input_ids": prompt, "sampling_params": {"max_new_tokens": 1, "temperature": 0, "ignore_eos": True}}
        await self.post(f"{engine.url}/generate", body)
        worker = engine.url.removeprefix("http://")
        async with asyncio.timeout(BARRIER_TIMEOUT_SECONDS):
            while not (await self.beliefs(prompt))[worker]["device_blocks"]:
                await asyncio.sleep(0.005)

    async def settle(self) -> None:
        await asyncio.gather(*(self.barrier(engine) for engine in self.engines))


@asynccontextmanager
async def fleet(
    folder: Path, engines: list[EngineServer], block_size: int, *options: str, flush: bool = True
) -> AsyncIterator[Fleet]:
    """Adapters, NATS and a router over running engines, whose caches are emptied first unless told otherwise."""
    async with Stack(folder, workers=0, block_size=block_size) as stack, aiohttp.ClientSession() as session:
        adapters = [await stack.attach(engine.url, f"adapter{n}") for n, engine in enumerate(engines)]
        await asyncio.gather(*(adapter.ready() for adapter in adapters))
        router = await stack.route("--min-workers", str(len(engines)), *options)
        result = Fleet(engines, router, session, block_size)
        for engine in engines if flush else []:
            await result.flush(engine)
        yield result


@asynccontextmanager
async def engines(folder: Path, page_size: int) -> AsyncIterator[list[EngineServer]]:
    """Two servers, started side by side."""
    servers = [EngineServer(folder, page_size=page_size, pool_tokens=POOL_TOKENS, core=core) for core in range(2)]
    async with AsyncExitStack() as exits:
        await asyncio.gather(*(exits.enter_async_context(server) for server in servers))
        yield servers


class Comparison(NamedTuple):
    """One request: what the router believed, what the engine said."""

    prompt_tokens: int
    believed_blocks: int
    cached_tokens: int
    block_size: int
    page_size: int
    at_holder: bool
    """It went to the worker with the longest overlap."""

    @property
    def agrees(self) -> bool:
        """Equal up to the engine's last page (at least one token is computed again) and the rounding to blocks."""
        most = (self.prompt_tokens - 1) // self.page_size * self.page_size
        if self.cached_tokens < most:
            return self.believed_blocks == self.cached_tokens // self.block_size
        whole = self.prompt_tokens // self.block_size
        return self.cached_tokens // self.block_size <= self.believed_blocks <= whole


async def play(there: Fleet, script: list[Step], field: str) -> list[Comparison]:
    """Run a script; `field` is the kind of belief that is compared with the engine."""
    comparisons = []
    for step in script:
        if field == "device_blocks":
            await there.settle()
        if step.kind == "flush":
            await there.flush(there.engines[step.worker])
        elif step.kind == "abort":
            await there.abort(step.prompt)
        else:
            beliefs = await there.beliefs(step.prompt)
            worker, cached = await there.ask(step.prompt, step.max_tokens)
            believed = beliefs[worker][field]
            at_holder = believed == max(row[field] for row in beliefs.values())
            page = there.engines[0].page_size
            comparisons.append(Comparison(len(step.prompt), believed, cached, there.block_size, page, at_holder))
    return comparisons


@pytest.mark.parametrize("page_size", [16, 1])
async def test_belief_is_the_engines_truth(tmp_path: Path, page_size: int, capsys: pytest.CaptureFixture[str]) -> None:
    lines = []
    async with engines(tmp_path, page_size) as servers:
        for block_size in (16, 64):
            async with fleet(tmp_path / f"block{block_size}", servers, block_size) as there:
                comparisons = await play(there, steps(seed=page_size * 100 + block_size), "device_blocks")
            wrong = [comparison for comparison in comparisons if not comparison.agrees]
            hits = sum(comparison.cached_tokens > 0 for comparison in comparisons)
            lines.append(
                f"page {page_size}, block {block_size}: {len(comparisons)} requests, {hits} hits, {len(wrong)} wrong"
            )
            assert len(comparisons) >= 100
            assert hits >= 30
            assert wrong == []
        async with fleet(tmp_path / "predicted", servers, 64, "--no-kv-events") as there:
            comparisons = await play(there, steps(seed=page_size), "predicted_blocks")
        agreeing = sum(comparison.agrees for comparison in comparisons)
        lines.append(f"page {page_size}, predicted: {agreeing} of {len(comparisons)} requests agree with the engine")
        assert agreeing >= 0.7 * len(comparisons)
        check_holders(comparisons)
    with capsys.disabled():
        print("\n" + "\n".join(lines))


def check_holders(comparisons: list[Comparison]) -> None:
    """On an idle fleet the holder of the longest prefix gets the request; few may not, if a core ran much slower for a while."""
    assert sum(comparison.at_holder for comparison in comparisons) >= 0.9 * len(comparisons)


async def test_a_late_router_and_a_chat(tmp_path: Path) -> None:
    """A router that starts after the caches were filled believes what the engines reuse; a chat reads as the engine's own."""
    async with engines(tmp_path, 16) as servers:
        prompt = list(range(100, 400))
        async with fleet(tmp_path / "early", servers, 64) as there:
            worker, _ = await there.ask(prompt, 1)
        async with fleet(tmp_path / "late", servers, 64, flush=False) as there:
            await there.settle()
            assert (await there.beliefs(prompt))[worker]["device_blocks"] == 300 // 64
            assert await there.ask(prompt, 1) == (worker, 288)
            await check_chat(there)


async def check_chat(there: Fleet) -> None:
    """Template, tokens and text are those of the engine's own OpenAI route."""
    messages = [
        {"role": "system", "content": "Answer in one word."},
        {"role": "user", "content": "Grüße, 世界! 🚀 What holds my prefix?"},
    ]
    body = {"model": MODEL_NAME, "messages": messages, "max_tokens": 24, "temperature": 0, "ignore_eos": True}
    _, ours = await there.post(f"{there.url}/v1/chat/completions", body)
    _, theirs = await there.post(f"{there.engines[0].url}/v1/chat/completions", body)
    assert ours["usage"]["prompt_tokens"] == theirs["usage"]["prompt_tokens"]
    assert ours["choices"][0]["message"]["content"] == theirs["choices"][0]["message"]["content"]
    assert ours["choices"][0]["finish_reason"] == theirs["choices"][0]["finish_reason"] == "length"
