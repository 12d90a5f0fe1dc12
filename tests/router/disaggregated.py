"""A whole router in this process, before fake workers of any mixture of parts; caches are predicted."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

import aiohttp

from router.config import RouterConfig
from router.service.app import RouterService
from sim import tinymodel
from sim.engine import StepTiming, TransferTiming
from sim.worker import FakeWorker, WorkerConfig

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from router.service.roster import Roster

MODEL = "tinymodel"
WHOLE, PREFILL, DECODE = "null", "prefill", "decode"
FAST = StepTiming(speed=20.0)


class Router(RouterService):
    """One that says where it is instead of writing it."""

    url = ""
    roster: Roster

    async def _say_ready(self, roster: Roster, url: str, stopping: asyncio.Event) -> None:
        while roster.ready_workers() < self.config.min_workers:
            await asyncio.sleep(0.01)
        self.roster, self.url = roster, url


class Site:
    """The router, its workers, and a client."""

    def __init__(self, router: Router, workers: list[FakeWorker], session: aiohttp.ClientSession) -> None:
        self.router, self.workers, self.session = router, workers, session

    async def complete(self, prompt: list[int], tokens: int = 6, **fields: Any) -> tuple[int, Any, str]:
        """Status, body and worker of a completion."""
        body = {"model": MODEL, "prompt": prompt, "max_tokens": tokens, **fields}
        async with self.session.post(f"{self.router.url}/v1/completions", json=body) as reply:
            return reply.status, await reply.json(content_type=None), reply.headers.get("X-Warmpath-Worker", "")

    @contextlib.asynccontextmanager
    async def stream(self, prompt: list[int], tokens: int, **fields: Any) -> AsyncIterator[aiohttp.ClientResponse]:
        """A completion's stream; leaving the block is leaving."""
        body = {"model": MODEL, "prompt": prompt, "max_tokens": tokens, "stream": True, **fields}
        async with self.session.post(f"{self.router.url}/v1/completions", json=body) as reply:
            yield reply

    async def get(self, path: str) -> Any:
        async with self.session.get(self.router.url + path) as reply:
            return await reply.json(content_type=None)

    async def count(self, name: str) -> float:
        """A line of `/metrics`."""
        async with self.session.get(f"{self.router.url}/metrics") as reply:
            lines = (await reply.text()).splitlines()
        return next((float(line.rpartition(" ")[2]) for line in lines if line.startswith(f"warmpath_{name} ")), 0.0)

    async def paths(self) -> tuple[int, int]:
        """Requests that went whole, and to a pair."""
        return int(await self.count('paths_total{path="whole"}')), int(await self.count('paths_total{path="pair"}'))

    async def fault(self, worker: FakeWorker, **order: Any) -> None:
        async with self.session.post(f"{worker.url}/_fault", json=order) as reply:
            assert reply.status == 200

    async def idle(self, seconds: float = 2.0) -> None:
        """All engines and all bookings are free, within so many seconds."""
        async with asyncio.timeout(seconds):
            while self.router.scheduler.statistics().requests or any(
                rank.engine.busy for worker in self.workers for rank in worker.ranks
            ):
                await asyncio.sleep(0.01)
        assert all(rank.load().used_tokens == 0 for worker in self.workers for rank in worker.ranks)


@contextlib.asynccontextmanager
async def site(
    *parts: str | dict[str, Any], others: tuple[str, ...] = (), **router_options: Any
) -> AsyncIterator[Site]:
    """Workers of these parts (or with these settings), others that run already, at these URLs, and the router."""
    async with contextlib.AsyncExitStack() as stack:
        workers = []
        for part in parts:
            settings = {"disaggregation_mode": part} if isinstance(part, str) else dict(part)
            settings = {"timing": FAST, "transfer": TransferTiming(speed=20.0), "heartbeat_seconds": 0.1} | settings
            workers.append(await stack.enter_async_context(FakeWorker(WorkerConfig(**settings))))
        session = await stack.enter_async_context(aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(30)))
        config: dict[str, Any] = {
            "model_path": tinymodel.PATH,
            "http_host": "127.0.0.1",
            "http_port": 0,
            "kv_events": False,
            "discovery": "memory",
            "block_size": 16,
            "seed": 1,
            "min_workers": len(workers) + len(others),
            "workers": others + tuple(worker.url for worker in workers),
        }
        router = Router(RouterConfig(**(config | router_options)))
        stopping = asyncio.Event()
        running = asyncio.create_task(router.run(stopping))
        while not router.url and not running.done():
            await asyncio.sleep(0.01)
        try:
            yield Site(router, workers, session)
        finally:
            stopping.set()
            await running


async def alone(prompt: list[int], tokens: int = 6) -> str:
    """What a worker that does all of it says."""
    async with FakeWorker(WorkerConfig(timing=FAST)) as worker, aiohttp.ClientSession() as session:
        body = {"input_ids": prompt, "sampling_params": {"max_new_tokens": tokens}}
        async with session.post(f"{worker.url}/generate", json=body) as reply:
            return str((await reply.json())["text"])
