"""Real engines: two ranks that are routed by rank, and a host tier that is seen and scored."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest

from launch.stack import Stack
from router.core.policy.warm import HOST_COST, WORK_WEIGHT
from tests.engine.server import HOST_TIER, MODEL_NAME, EngineServer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

pytestmark = pytest.mark.engine

BLOCK = 16


def prompt(seed: int, count: int) -> list[int]:
    return [3 + (seed * 7919 + i * i * 31) % 1900 for i in range(count)]


class Site:
    """A server, a router before it, and a client."""

    def __init__(self, router: str, session: aiohttp.ClientSession) -> None:
        self.router, self.session = router, session

    async def post(self, path: str, body: dict[str, Any]) -> tuple[Any, str]:
        async with self.session.post(self.router + path, json=body) as reply:
            assert reply.status == 200, await reply.text()
            return await reply.json(), reply.headers.get("X-Warmpath-Worker", "")

    async def ask(self, ids: list[int], tokens: int = 1) -> tuple[int, str]:
        """Cached tokens, and who answered."""
        body = {"model": MODEL_NAME, "prompt": ids, "max_tokens": tokens, "temperature": 0, "ignore_eos": True}
        answer, worker = await self.post("/v1/completions", body)
        return answer["usage"]["prompt_tokens_details"]["cached_tokens"], worker

    async def rows(self, ids: list[int]) -> list[dict[str, Any]]:
        return list((await self.post("/explain", {"input_ids": ids, "model": MODEL_NAME}))[0]["candidates"])

    async def until(self, ids: list[int], wanted: tuple[int, int], rank: int = 0) -> dict[str, Any]:
        """Wait until so many leading blocks are on a rank's device, and so many further ones on its host."""
        async with asyncio.timeout(30):
            while True:
                row = next(row for row in await self.rows(ids) if row["target"]["rank"] == rank)
                if (row["device_blocks"], row["host_blocks"]) == wanted:
                    return row
                await asyncio.sleep(0.02)


@asynccontextmanager
async def site(folder: Path, server: EngineServer) -> AsyncIterator[Site]:
    async with AsyncExitStack() as exits:
        await exits.enter_async_context(server)
        stack = await exits.enter_async_context(Stack(folder, workers=0, block_size=BLOCK))
        session = await exits.enter_async_context(aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(120)))
        await (await stack.attach(server.url, "adapter")).ready()
        router = await stack.route("--min-workers", "1")
        yield Site(str(router.announced["http"]), session)


async def test_two_ranks_are_two_targets(tmp_path: Path) -> None:
    """Prompts are spread over both ranks, and come back to the one that holds them."""
    async with site(tmp_path, EngineServer(tmp_path, "--dp-size", "2", ranks=2)) as there:
        holders = {}
        for seed in range(8):
            _, worker = await there.ask(prompt(seed, 160))
            holders[seed] = int(worker.rpartition("/")[2])
            await there.until(prompt(seed, 160), (10, 0), holders[seed])
        assert set(holders.values()) == {0, 1}
        for seed, rank in holders.items():
            cached, worker = await there.ask([*prompt(seed, 160), *prompt(seed + 50, 20)])
            assert (cached, int(worker.rpartition("/")[2])) == (160, rank)


async def test_a_host_tier_is_seen_and_scored(tmp_path: Path) -> None:
    """What HiCache keeps in host memory is known by its events, charged for loading back, and found by the engine."""
    options = ("--enable-hierarchical-cache", "--hicache-ratio", "2", "--hicache-io-backend", "direct")
    layout = ("--hicache-mem-layout", "layer_first")
    server = EngineServer(tmp_path, *options, *layout, pool_tokens=1024, variables=HOST_TIER)
    async with site(tmp_path, server) as there:
        ids = prompt(0, 325)
        await there.ask(ids)
        await there.until(ids, (20, 0))
        for seed in range(1, 4):  # pushes it out of the device
            await there.ask(prompt(seed, 320))
        row = await there.until(ids, (0, 20))
        cold = (await there.rows(prompt(99, 325)))[0]
        assert row["score"] < cold["score"] * 0.2
        own = (5 + 320 * HOST_COST) * WORK_WEIGHT / row["prefill_rate"]
        assert row["score"] == pytest.approx(own, rel=0.1)
        assert (await there.ask(ids))[0] == 320
        await there.until(ids, (20, 0))
