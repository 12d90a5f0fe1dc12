"""One live stack for the module's tests: NATS, two fake workers with adapters, a router, all processes of their own."""

from __future__ import annotations

from typing import TYPE_CHECKING

import aiohttp
import pytest_asyncio

from launch.stack import Stack

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    import pytest

WORKER_OPTIONS = ("--max-total-tokens", "32768", "--context-length", "4096", "--decode-step-ms", "5")
ROUTER_OPTIONS = (
    "--min-workers",
    "2",
    "--first-token-timeout",
    "2",
    "--idle-timeout",
    "2",
    "--max-body-bytes",
    "65536",
)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stack(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stack]:
    folder: Path = tmp_path_factory.mktemp("stack")
    async with Stack(folder, workers=2, worker_options=WORKER_OPTIONS) as running:
        await running.route(*ROUTER_OPTIONS)
        yield running


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(30)) as client:
        yield client
