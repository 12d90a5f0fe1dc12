"""Several processes on one port: real ones."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from asyncio.subprocess import PIPE
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiohttp

if TYPE_CHECKING:
    from asyncio.subprocess import Process
    from collections.abc import AsyncIterator

ROOT = Path(__file__).resolve().parents[3]
OPTIONS = [
    "--use-sglang-tokenizer",
    "--no-kv-events",
    "--http-host",
    "127.0.0.1",
    "--http-port",
    "0",
    "--processes",
    "2",
]


@contextlib.asynccontextmanager
async def router(folder: Path, *options: str) -> AsyncIterator[tuple[Process, dict[str, Any]]]:
    """A running router, and what it says when it is ready."""
    command = [sys.executable, "-m", "router", *OPTIONS, "--discovery-path", str(folder), *options]
    process = await asyncio.create_subprocess_exec(*command, cwd=ROOT, stdout=PIPE, stderr=PIPE)
    try:
        assert process.stdout is not None
        line = await process.stdout.readline()
        assert line.startswith(b"ready "), await process.stderr.read() if process.stderr else line
        yield process, json.loads(line.removeprefix(b"ready "))
    finally:
        if process.returncode is None:
            process.terminate()
        await process.communicate()


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


async def gone(*pids: int) -> None:
    while any(alive(pid) for pid in pids):
        await asyncio.sleep(0.01)


async def metric(url: str, name: str) -> int:
    async with aiohttp.ClientSession() as session, session.get(url + "/metrics") as response:
        lines = (await response.text()).splitlines()
    return int(float(next(line.split()[1] for line in lines if line.startswith(f"warmpath_{name} "))))


async def index(url: str) -> int:
    return await metric(url, "process_index")


async def test_one_port_and_each_alone(tmp_path: Path) -> None:
    async with router(tmp_path) as (process, ready):
        pids = children(process.pid)
        assert len(pids) == 2
        assert [await index(url) for url in ready["processes"]] == [0, 1]
        while {await index(ready["http"]) for _ in range(8)} != {0, 1}:
            pass  # the system shares connections out as it likes; in the end both have had some
        process.terminate()
        assert await process.wait() == 0
        assert not any(alive(pid) for pid in pids)


async def test_they_hear_of_each_other_over_one_broker(tmp_path: Path) -> None:
    options = ("--share-bookings", "--nats", "embedded", "--nats-port", "0")
    async with router(tmp_path, *options) as (_, ready), asyncio.timeout(30):
        for url in ready["processes"]:
            while await metric(url, "other_routers") != 1:
                await asyncio.sleep(0.02)


async def test_one_that_dies_ends_the_whole(tmp_path: Path) -> None:
    async with router(tmp_path) as (process, _):
        first, second = children(process.pid)
        os.kill(first, signal.SIGKILL)
        _, said = await process.communicate()
        assert process.returncode == 1
        assert f"process {first} of the router ended with status -9".encode() in said.splitlines()[-1]
        assert not alive(second)


async def test_without_a_parent_they_end(tmp_path: Path) -> None:
    async with router(tmp_path) as (process, _):
        pids = children(process.pid)
        process.kill()
        await gone(*pids)


async def test_a_port_in_use(tmp_path: Path) -> None:
    async with router(tmp_path) as (_, ready):
        port = ready["processes"][0].rsplit(":", 1)[1]
        command = [sys.executable, "-m", "router", *OPTIONS, "--discovery-path", str(tmp_path), "--http-port", port]
        second = await asyncio.create_subprocess_exec(*command, cwd=ROOT, stdout=PIPE, stderr=PIPE)
        _, said = await second.communicate()
    assert second.returncode == 2
    assert said.decode().splitlines()[-1].startswith(f"python -m router: error: --http-port {port}: ")
