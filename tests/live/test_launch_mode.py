"""Workers launched by `python -m workers.sglang`, and how they end: no client loses an answer."""

from __future__ import annotations

import asyncio
import json
import signal
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest

from launch.stack import MODEL_NAME, Stack

if TYPE_CHECKING:
    from pathlib import Path

    from launch.process import Process

STREAMS = 6
STEP_MS = "10"


async def stream(
    session: aiohttp.ClientSession, url: str, prompt: list[int], begun: asyncio.Semaphore
) -> tuple[str, str]:
    """The worker that began an answer of 120 tokens, and its text; `begun` is released after its first piece."""
    body: dict[str, Any] = {"model": MODEL_NAME, "prompt": prompt, "max_tokens": 120, "stream": True}
    body |= {"temperature": 0, "ignore_eos": True}
    text: list[str] = []
    ended = False
    async with session.post(f"{url}/v1/completions", json=body) as reply:
        async for line in reply.content:
            if line.startswith(b"data: {"):
                text.append(json.loads(line[6:])["choices"][0]["text"])
                if len(text) == 1:
                    begun.release()
            ended = ended or line.startswith(b"data: [DONE]")
        assert ended, "the stream broke off"
        return reply.headers["X-Warmpath-Worker"].rsplit("/", 1)[0], "".join(text)


async def through(session: aiohttp.ClientSession, url: str, stopped: Process) -> tuple[list[tuple[str, str]], float]:
    """Streams in turn over all workers, one of which gets SIGTERM in their midst: what came of each, and of migrations so far."""
    begun = asyncio.Semaphore(0)
    streams = [asyncio.create_task(stream(session, url, [100 + n] * 70, begun)) for n in range(STREAMS)]
    for _ in streams:
        await begun.acquire()
    stopped.send(signal.SIGTERM)
    answers = await asyncio.gather(*streams)
    async with session.get(f"{url}/metrics") as reply:
        lines = (await reply.text()).splitlines()
    return answers, sum(
        float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith("warmpath_migrations_total{")
    )


async def test_a_worker_that_is_stopped_loses_no_stream(tmp_path: Path) -> None:
    """Given the time, its streams end where they began; without it, they go on elsewhere. Either way they read the same."""
    patient = ("--grace-seconds", "0.7")
    hasty = ("--grace-seconds", "0.01", "--drain-seconds", "0.01", "--stop-seconds", "2")
    async with Stack(tmp_path, workers=0) as stack, aiohttp.ClientSession() as session:
        endings = (patient, hasty, hasty)
        workers = [
            await stack.launch("--decode-step-ms", STEP_MS, *ending, name=f"worker{n}")
            for n, ending in enumerate(endings)
        ]
        await asyncio.gather(*(worker.ready() for worker in workers))
        url = (await stack.route("--policy", "round-robin", "--min-workers", "3")).announced["http"]

        first, migrations = await through(session, url, workers[0])
        assert migrations == 0
        assert len([name for name, _ in first if name == workers[0].announced["worker_id"]]) == STREAMS // 3
        assert await workers[0].ended() == 0
        log = workers[0].log.read_text()
        assert "still in flight" not in log
        assert log.index("withdraws") < log.index("stopped: AdapterStatistics(")

        second, migrations = await through(session, url, workers[1])
        assert migrations >= 1
        assert await workers[1].ended() == 0
        assert "still in flight" in workers[1].log.read_text()
        assert [text for _, text in first] == [text for _, text in second]


async def test_an_engine_that_dies_takes_its_worker_with_it(tmp_path: Path) -> None:
    async with Stack(tmp_path, workers=0) as stack, aiohttp.ClientSession() as session:
        worker = await (await stack.launch(name="worker")).ready()
        engine = worker.announced["endpoint"]
        async with session.post(f"{engine}/_fault", json={"kind": "die"}) as reply:
            assert reply.status == 200
        with pytest.raises(aiohttp.ClientError):
            await session.post(f"{engine}/generate", json={"text": "x"})
        assert await worker.ended() == 1  # as the engine did
        assert list((tmp_path / "registry" / "default").iterdir()) == []


async def test_a_refused_option_is_said_by_the_engine_and_passed_on(tmp_path: Path) -> None:
    async with Stack(tmp_path, workers=0) as stack:
        worker = await stack.launch("--no-such-option", "1", name="worker")
        assert await worker.ended() == 2
        assert "unrecognized arguments: --no-such-option" in worker.last_words()
