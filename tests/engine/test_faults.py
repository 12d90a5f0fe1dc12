"""Real engines that are flushed while idle, killed, started again, or spill to host memory: belief equals what is reused."""

from __future__ import annotations

import asyncio
import itertools
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest

from launch.stack import Stack
from tests.engine.server import HOST_TIER, MODEL_NAME, EngineServer

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.engine

BLOCK = PAGE = 16
RANKS = 2
PATIENCE_SECONDS = 60.0


class Site:
    """A router over one engine."""

    def __init__(self, url: str, engine: EngineServer, session: aiohttp.ClientSession, ranks: int = RANKS) -> None:
        self._ranks = ranks
        self.url = url
        self.engine = engine
        self.session = session
        self._barriers = itertools.count()

    async def post(self, url: str, body: dict[str, Any]) -> tuple[dict[str, str], Any]:
        async with self.session.post(url, json=body) as reply:
            assert reply.status == 200, await reply.text()
            return dict(reply.headers), await reply.json()

    async def believed(self, prompt: list[int]) -> list[int]:
        """Leading tokens of a prompt that the router believes cached on the device, by rank."""
        return [device for device, _ in await self.tiers(prompt)]

    async def tiers(self, prompt: list[int]) -> list[tuple[int, int]]:
        """Leading tokens of a prompt that the router believes cached on the device, and further ones on the host, by rank."""
        _, decision = await self.post(f"{self.url}/explain", {"input_ids": prompt, "model": MODEL_NAME})
        rows = {row["target"]["rank"]: row for row in decision["candidates"]}
        found = [(rows[rank]["device_blocks"], rows[rank]["host_blocks"]) for rank in range(self._ranks)]
        return [(device * BLOCK, host * BLOCK) for device, host in found]

    async def ask(self, prompt: list[int]) -> tuple[int, int]:
        """Through the router: the rank that answered, and what it had cached."""
        body = {"model": MODEL_NAME, "prompt": prompt, "max_tokens": 1, "temperature": 0}
        headers, answer = await self.post(f"{self.url}/v1/completions", body)
        rank = int(headers["X-Warmpath-Worker"].rsplit("/", 1)[1])
        return rank, answer["usage"]["prompt_tokens_details"]["cached_tokens"]

    async def settle(self) -> None:
        """Wait until all that each rank has done so far is in the index."""
        for rank in range(self._ranks):
            prompt = [2000 + next(self._barriers), *[2041] * (2 * BLOCK)]
            body = {"input_ids": prompt, "sampling_params": {"max_new_tokens": 1}}
            body |= {"routed_dp_rank": rank} if self._ranks > 1 else {}
            await self.post(f"{self.engine.url}/generate", body)
            await self.until(lambda prompt=prompt, rank=rank: self._knows(prompt, rank))

    async def _knows(self, prompt: list[int], rank: int) -> bool:
        return (await self.believed(prompt))[rank] > 0

    async def workers(self) -> list[dict[str, Any]]:
        async with self.session.get(f"{self.url}/workers") as reply:
            workers: list[dict[str, Any]] = (await reply.json())["workers"]
            return workers

    async def has_workers(self, count: int) -> bool:
        """Whether so many are there, with every rank in step."""
        workers = await self.workers()
        ranks = [rank for worker in workers for rank in worker.get("ranks", ())]
        return len(workers) == count and all(rank["events"]["live"] for rank in ranks)

    async def until(self, condition: Any) -> None:
        async with asyncio.timeout(PATIENCE_SECONDS):
            while not await condition():
                await asyncio.sleep(0.05)

    async def flush(self) -> None:
        async with self.session.post(f"{self.engine.url}/flush_cache", params={"timeout": "10"}) as reply:
            assert reply.status == 200, await reply.text()


async def check_prompts(site: Site, first: int) -> None:
    """New prompts, one after another: none is believed, then each where it went, and then it is reused there."""
    for start in range(first, first + 3):
        prompt = [3 + start, *range(100, 399)]
        await site.settle()
        assert await site.believed(prompt) == [0, 0]
        rank, cached = await site.ask(prompt)
        assert cached == 0
        await site.settle()
        whole = len(prompt) // BLOCK * BLOCK
        assert await site.believed(prompt) == [whole if other == rank else 0 for other in range(RANKS)]
        assert await site.ask(prompt) == (rank, whole)


async def test_an_engine_that_is_flushed_and_killed_leaves_no_ghosts(tmp_path: Path) -> None:
    async with (
        EngineServer(tmp_path, "--dp-size", str(RANKS), page_size=PAGE, ranks=RANKS) as engine,
        Stack(tmp_path / "stack", workers=0, block_size=BLOCK) as stack,
        aiohttp.ClientSession() as session,
    ):
        adapter = await stack.attach(engine.url, "adapter")
        await adapter.ready()
        router = await stack.route("--min-workers", "1")
        site = Site(router.announced["http"], engine, session)
        await check_prompts(site, 0)
        await site.flush()
        await check_prompts(site, 0)  # the same prompts: nothing is left of them
        (before,) = await site.workers()
        engine.kill()
        await engine.stop()
        await site.until(lambda: site.has_workers(0))
        await engine.start()
        await site.until(lambda: site.has_workers(1))
        (after,) = await site.workers()
        assert after["epoch"] > before["epoch"]
        await check_prompts(site, 0)


async def test_what_goes_to_host_memory_is_believed_there_and_reused(tmp_path: Path) -> None:
    options = ("--enable-hierarchical-cache", "--hicache-ratio", "2", "--hicache-io-backend", "direct")
    options += ("--hicache-mem-layout", "layer_first", "--hicache-write-policy", "write_through")
    async with (
        EngineServer(tmp_path, *options, page_size=PAGE, pool_tokens=1024, variables=HOST_TIER) as engine,
        Stack(tmp_path / "stack", workers=0, block_size=BLOCK) as stack,
        aiohttp.ClientSession() as session,
    ):
        adapter = await stack.attach(engine.url, "adapter")
        await adapter.ready()
        router = await stack.route("--min-workers", "1")
        site = Site(router.announced["http"], engine, session, ranks=1)
        prompts = [[3 + number, *range(100 + number, 339 + number)] for number in range(6)]
        from_host = 0
        for prompt in [*prompts, *prompts, prompts[-1], prompts[0]]:  # 1,440 tokens over 1,024 on the device
            await site.settle()
            ((device, host),) = await site.tiers(prompt)
            _, cached = await site.ask(prompt)
            most = (len(prompt) - 1) // PAGE * PAGE  # the last token is always computed
            assert min(device + host, most) == cached, (device, host, cached)
            from_host += host > 0
        assert from_host > 0
