"""A mirror of a real engine's cache that is wrong, doubted, and built anew from the engine's own replay."""

from __future__ import annotations

import asyncio
import json
import random
from typing import TYPE_CHECKING

import aiohttp
import numpy as np
import pytest

from events import messages, subjects
from events.blocks import sequence_hashes
from events.bus.memory import MemoryBroker, MemoryBus
from events.membership.memory import MemoryRegistry
from events.messages import SnapshotChunk, SnapshotRequest, unpack_hashes
from events.snapshot import assemble
from tests.engine.server import EngineServer
from workers.sglang.adapter import Adapter
from workers.sglang.card import Chosen
from workers.sglang.wire import EngineRemoved, EngineStored

if TYPE_CHECKING:
    from pathlib import Path

    from workers.sglang.relay import RankRelay

pytestmark = pytest.mark.engine

BLOCK = PAGE = 16
POOL_TOKENS = 1024
PROMPTS = 40
GHOST = np.arange(PAGE, dtype=np.uint32)


class Site:
    """An engine, its adapter, and a router's place on the bus."""

    def __init__(self, engine: EngineServer, session: aiohttp.ClientSession) -> None:
        broker = MemoryBroker()
        self.engine, self.session = engine, session
        self.bus, self.adapters_bus, self.registry = MemoryBus(broker), MemoryBus(broker), MemoryRegistry()
        self.adapter = Adapter(Chosen(engine.url, "w", BLOCK), self.adapters_bus, self.registry)

    async def generate(self, prompt: list[int]) -> int:
        """Cached tokens, by the engine's word."""
        body = {"input_ids": prompt, "sampling_params": {"max_new_tokens": 1, "temperature": 0}}
        async with self.session.post(f"{self.engine.url}/generate", json=body) as reply:
            cached: int = (await reply.json())["meta_info"]["cached_tokens"]
            return cached

    async def snapshot(self, *, distrusted: bool = False) -> set[int]:
        request = messages.encode(SnapshotRequest("w", 0, distrusted))
        parts = [
            messages.decode(part) async for part in self.bus.request(subjects.snapshot("default", "w", 0), request)
        ]
        stored = assemble([part for part in parts if isinstance(part, SnapshotChunk)]).stored
        return {block for part in stored for block in unpack_hashes(part.hashes).tolist()}

    @property
    def relay(self) -> RankRelay:
        ((relay, _),) = self.adapter._ranks
        return relay


def prompts() -> list[list[int]]:
    """More than the pool has room for, some of them with a beginning that others have too."""
    draw = random.Random(1)
    beginnings = [draw.choices(range(1000), k=4 * PAGE) for _ in range(5)]
    return [draw.choice(beginnings) + draw.choices(range(1000), k=4 * PAGE + 1) for _ in range(PROMPTS)]


def falsify(relay: RankRelay) -> None:
    """Every third page is gone, and one is there that the engine has never had."""
    mirror = relay._reader.mirror
    mirror.apply(EngineRemoved([*mirror._places][::3]))
    mirror.apply(EngineStored([-1], None, GHOST, PAGE))


@pytest.mark.parametrize("buffer_steps", [10_000, 8], ids=["from the beginning", "from the last batches"])
async def test_the_engines_replay_brings_the_truth_back(tmp_path: Path, buffer_steps: int, eventually) -> None:
    engine = EngineServer(tmp_path, page_size=PAGE, pool_tokens=POOL_TOKENS)
    events = {"publisher": "zmq", "buffer_steps": buffer_steps, "endpoint": f"tcp://*:{engine.kv_port}"}
    events |= {"replay_endpoint": f"tcp://*:{engine.replay_port}"}
    engine._options += ["--kv-events-config", json.dumps(events)]
    async with engine, aiohttp.ClientSession() as session:
        site = Site(engine, session)
        async with site.bus, site.adapters_bus:
            running = asyncio.create_task(site.adapter.run())
            await eventually(lambda: site.adapter.statistics().card, 60)
            for prompt in prompts():
                await site.generate(prompt)
            last = prompts()[-1]
            await eventually(lambda: site.relay.holds(sequence_hashes(np.array(last[:-1], np.uint32), BLOCK).tolist()))
            truth = await site.snapshot()
            falsify(site.relay)
            assert await site.snapshot(distrusted=True) != truth
            await eventually(lambda: site.relay.rebuilds == 1, 30)
            rebuilt = await site.snapshot()
            statistics = site.relay.statistics()
            if buffer_steps > PROMPTS:
                assert rebuilt == truth
                assert (statistics.corrections, statistics.resets) == (1, 0)
                assert statistics.mirror.unknown_removals == 0
                assert await site.generate(last) == len(last) - 1
            else:
                assert rebuilt < truth
                assert (statistics.corrections, statistics.resets) == (0, 1)
            running.cancel()
            await asyncio.wait([running])
        await site.registry.close()
