"""`--durable-events` from the command lines on: a router that starts while the adapter stands still knows the cache nonetheless."""

from __future__ import annotations

import asyncio
import os
import signal
from typing import TYPE_CHECKING

import aiohttp
import pytest

from events.bus import BusError
from events.bus.broker import EmbeddedBroker
from events.bus.log import Limits
from events.bus.nats import NatsBus
from events.history import jetstream_history
from events.snapshot import SnapshotError
from launch.stack import NAMESPACE, Stack
from tests.live.conftest import ROUTER_OPTIONS
from tests.live.test_stack import complete, router

if TYPE_CHECKING:
    from pathlib import Path

PROMPT = list(range(100, 400))
BLOCKS = len(PROMPT) // 64
PATIENT = ("--discovery-ttl", "100")  # the card stays while its adapter stands still


async def kept_blocks(bus: NatsBus, worker_id: str) -> int:
    """Blocks that the broker's history knows of."""
    history = jetstream_history(bus, NAMESPACE, Limits())
    try:
        snapshot = await history.recall(worker_id, 0)
    except (BusError, SnapshotError):
        return -1
    changes = [*snapshot.stored, *(event for message in snapshot.following for event in message.events)]
    return sum(len(change.hashes) // 8 for change in changes)


@pytest.mark.timeout(120)
async def test_a_router_that_starts_while_the_adapter_stands_still(tmp_path: Path, eventually) -> None:
    stack = Stack(tmp_path, workers=1, adapters=False)
    stack.broker = EmbeddedBroker(store_dir=tmp_path / "jetstream")
    async with stack, aiohttp.ClientSession() as session:
        (url,) = stack.worker_urls
        options = ["--attach", url, *stack.place(), "--durable-events", "--no-parity-probe", *PATIENT]
        options_of_routers = [*ROUTER_OPTIONS, "--durable-events", "--min-workers", "1", *PATIENT]
        adapter = await stack.spawn("workers.sglang", options, "adapter")
        await adapter.ready()
        await stack.route(*options_of_routers)
        status, _, _ = await complete(session, router(stack), PROMPT)
        assert status == 200
        async with NatsBus(stack.nats_url) as bus:
            async with asyncio.timeout(20):
                while await kept_blocks(bus, url.removeprefix("http://")) < BLOCKS:
                    await asyncio.sleep(0.05)
        os.kill(adapter.pid, signal.SIGSTOP)
        try:
            await stack.route(*options_of_routers, name="router2")
            async with session.get(f"{router(stack)}/metrics") as reply:
                assert 'warmpath_resyncs_total{source="history"} 1.0' in await reply.text()
            status, answer, _ = await complete(session, router(stack), PROMPT)
            assert (status, answer["usage"]["prompt_tokens_details"]["cached_tokens"]) == (200, 288)
        finally:
            os.kill(adapter.pid, signal.SIGCONT)
