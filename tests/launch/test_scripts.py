"""Every launch script, run with `--fake`: it serves, answers what the upstream guide asks with curl, and leaves nothing behind."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

LAUNCH = Path(__file__).resolve().parents[2] / "launch"
CHAT = {
    "messages": [
        {"role": "user", "content": "Explain why Roger Federer is considered one of the greatest tennis players"}
    ],
    "stream": True,
    "max_tokens": 30,
}
READY_SECONDS = 60.0
STOP_SECONDS = 60.0
WORKERS = {
    "agg.sh": ["aggregated"],
    "agg_router.sh": ["aggregated"] * 2,
    "agg_embed.sh": ["aggregated"],
    "agg_hicache.sh": ["aggregated"] * 2,
    "disagg.sh": ["decode", "prefill"],
    "disagg_router.sh": ["decode", "decode", "prefill", "prefill"],
    "disagg_dp_attn.sh": ["decode", "prefill"],
}


def left_behind(folder: Path) -> list[str]:
    """Command lines of processes that name the folder."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if str(folder) in command:
            found.append(command)
    return found


@contextlib.asynccontextmanager
async def running(script: str, folder: Path) -> AsyncIterator[str]:
    """A script that serves; the router's URL. It is stopped by SIGTERM, and everything with it."""
    process = await asyncio.create_subprocess_exec(
        *("bash", str(LAUNCH / script), "--fake", "--http-port", "0", "--", "--grace-seconds", "0.6"),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env=os.environ | {"TMPDIR": str(folder), "PYTHON": sys.executable},
    )
    assert process.stdout is not None
    log: list[str] = []
    try:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(READY_SECONDS):
                async for line in process.stdout:
                    log.append(line.decode())
                    if log[-1].startswith("[router] ready "):
                        break
        assert log[-1].startswith("[router] ready "), "".join(log)
        yield json.loads(log[-1].removeprefix("[router] ready "))["http"]
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGTERM)
        log.append("stopping\n")
        try:
            rest, _ = await asyncio.wait_for(process.communicate(), STOP_SECONDS)
        except TimeoutError:
            process.kill()
            pytest.fail("".join(log) + "did not stop; still there:\n" + "\n".join(left_behind(folder)))
    assert process.returncode == 128 + signal.SIGTERM, rest.decode()
    assert b"Traceback" not in rest
    assert left_behind(folder) == []
    assert list(folder.iterdir()) == []


async def answered(session: aiohttp.ClientSession, url: str, model: str) -> None:
    """A chat as the upstream guide asks for it."""
    async with session.post(f"{url}/v1/chat/completions", json={"model": model, **CHAT}) as reply:
        assert reply.status == 200, await reply.text()
        events = [line.decode().strip() async for line in reply.content if line.startswith(b"data: ")]
    assert events[-1] == "data: [DONE]"
    chunks = [json.loads(event[6:]) for event in events[:-1]]
    assert "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks)
    assert chunks[-1]["choices"][0]["finish_reason"] == "length"


async def embedded(session: aiohttp.ClientSession, url: str, model: str) -> None:
    """The guide's embeddings."""
    body = {"model": model, "input": "Hello, world!"}
    async with session.post(f"{url}/v1/embeddings", json=body) as reply:
        content: Any = await reply.json()
        assert reply.status == 200, content
    assert len(content["data"][0]["embedding"]) == 64


@pytest.mark.timeout(150)
@pytest.mark.parametrize("script", WORKERS)
async def test_it_serves_and_stops_in_order(script: str, tmp_path: Path) -> None:
    async with running(script, tmp_path) as url, aiohttp.ClientSession() as session:
        async with session.get(f"{url}/workers") as reply:
            workers = (await reply.json())["workers"]
        assert sorted(worker["role"] for worker in workers) == WORKERS[script]
        assert all(len(worker["ranks"]) == (2 if "dp_attn" in script else 1) for worker in workers)
        assert all(rank["exact"] for worker in workers for rank in worker["ranks"]) or script == "agg_embed.sh"
        ask = embedded if script == "agg_embed.sh" else answered
        await ask(session, url, workers[0]["model"])


def test_every_script_is_run_here() -> None:
    assert {path.name for path in LAUNCH.glob("*.sh")} - {"together.sh"} == WORKERS.keys()


@pytest.mark.parametrize(
    ("arguments", "status", "said"), [(["--help"], 0, "--fake"), (["--nothing"], 2, "no option --nothing")]
)
async def test_its_options(arguments: list[str], status: int, said: str) -> None:
    process = await asyncio.create_subprocess_exec(
        *("bash", str(LAUNCH / "agg.sh"), *arguments), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    out, _ = await process.communicate()
    assert (process.returncode, said in out.decode()) == (status, True), out.decode()
