"""A real prefill/decode fleet over NIXL, on CPU: two prefill servers, a decode server, and one that does all of a request.

One test, as the four servers take minutes to start; each step says what it shows.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest

from launch.stack import Stack
from tests.engine.install import transfers
from tests.engine.server import MODEL_NAME, EngineServer, decode_server, prefill_server

if TYPE_CHECKING:
    from pathlib import Path

    from launch.process import Process

pytestmark = [
    pytest.mark.engine,
    pytest.mark.skipif(not transfers(), reason="no NIXL here: `make test-engine` adds it"),
]

BLOCK = 16
IDLE_SECONDS = 2.0
"""In which both engines must be idle after a client left."""


def prompt(seed: int, count: int) -> list[int]:
    return [3 + (seed * 7919 + i * i * 31) % 1900 for i in range(count)]


class Site:
    """The servers, the router before them, and a client."""

    def __init__(self, servers: dict[str, EngineServer], session: aiohttp.ClientSession) -> None:
        self.servers, self.session = servers, session
        self.router = ""

    async def post(self, url: str, body: dict[str, Any]) -> tuple[int, Any, str]:
        async with self.session.post(url, json=body) as reply:
            return reply.status, await reply.json(content_type=None), reply.headers.get("X-Warmpath-Worker", "")

    async def complete(self, ids: list[int], tokens: int, **fields: Any) -> tuple[int, Any, str]:
        body = {"model": MODEL_NAME, "prompt": ids, "max_tokens": tokens, "temperature": 0, "ignore_eos": True}
        return await self.post(f"{self.router}/v1/completions", body | fields)

    async def alone(self, ids: list[int], tokens: int) -> str:
        """What the server that does all of a request says, asked directly."""
        sampling = {"max_new_tokens": tokens, "temperature": 0, "ignore_eos": True}
        body = {"input_ids": ids, "sampling_params": sampling}
        _, reply, _ = await self.post(f"{self.servers['whole'].url}/generate", body)
        return str(reply["text"])

    async def explain(self, ids: list[int]) -> Any:
        return (await self.post(f"{self.router}/explain", {"input_ids": ids, "model": MODEL_NAME}))[1]

    async def held(self, ids: list[int], blocks: int) -> str:
        """Wait until some prefill server is known to hold so many blocks of a prompt; which one."""
        async with asyncio.timeout(20):
            while True:
                for row in (await self.explain(ids))["candidates"]:
                    if row["device_blocks"] >= blocks and row["refusal"] is None:
                        return str(row["target"]["worker_id"])
                await asyncio.sleep(0.02)

    async def paths(self) -> dict[str, int]:
        async with self.session.get(f"{self.router}/metrics") as reply:
            lines = (await reply.text()).splitlines()
        return {
            path: int(float(line.rpartition(" ")[2]))
            for path in ("whole", "pair")
            for line in lines
            if line.startswith(f'warmpath_paths_total{{path="{path}"}}')
        }

    async def busy(self, *names: str) -> bool:
        """Whether any of these engines has anything to do, in any of its queues."""
        for name in names:
            async with self.session.get(f"{self.servers[name].url}/v1/loads?include=core,disagg") as reply:
                for load in (await reply.json())["loads"]:
                    queues = [value for key, value in load["disaggregation"].items() if key.endswith("_reqs")]
                    if load["num_running_reqs"] + load["num_waiting_reqs"] + sum(queues):
                        return True
        return False

    async def idle(self, *names: str) -> float:
        """Seconds until these engines are idle."""
        started = time.monotonic()
        while await self.busy(*names):
            assert time.monotonic() - started < IDLE_SECONDS, f"{names} still have something to do"
            await asyncio.sleep(0.02)
        return time.monotonic() - started


async def test_a_real_pair(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    servers = {
        "p0": prefill_server(tmp_path, core=0),
        "p1": prefill_server(tmp_path, core=1),
        "decode": decode_server(tmp_path, "--disaggregation-decode-enable-radix-cache", core=0, pool_tokens=8192),
        "whole": EngineServer(tmp_path, core=1),
    }
    said = []
    async with AsyncExitStack() as exits:
        for first, second in (("p0", "p1"), ("decode", "whole")):  # two at a time: starting takes all of two cores
            await asyncio.gather(*(exits.enter_async_context(servers[name]) for name in (first, second)))
        stack = await exits.enter_async_context(Stack(tmp_path / "stack", workers=0, block_size=BLOCK))
        timeout = aiohttp.ClientTimeout(120)
        session = await exits.enter_async_context(aiohttp.ClientSession(timeout=timeout))
        there = Site(servers, session)
        adapters = [await stack.attach(server.url, name) for name, server in servers.items()]
        await asyncio.gather(*(adapter.ready() for adapter in adapters))
        for options, step in (
            (("--no-conditional-disagg",), one_says_what_two_say),
            (("--no-conditional-disagg",), prefill_goes_to_the_holder),
            (("--no-conditional-disagg",), leaving_frees_both),
            (("--no-conditional-disagg", "--use-sglang-tokenizer"), text_goes_through_a_pair),
            (("--conditional-disagg",), the_path_is_chosen),
            (("--no-conditional-disagg",), a_killed_leg_ends_the_other),
        ):
            router: Process = await stack.route("--min-workers", "4", *options)
            there.router = str(router.announced["http"])
            said.append(f"{step.__name__}: {await step(there)}")
    with capsys.disabled():
        print("\n" + "\n".join(said))


async def one_says_what_two_say(there: Site) -> str:
    """Output is token-identical to the aggregated server's; usage has what the prefill server had cached."""
    lengths = [(20, 1), (40, 6), (200, 24), (700, 12)]
    for seed, (count, tokens) in enumerate(lengths):
        status, body, worker = await there.complete(prompt(seed, count), tokens)
        assert status == 200, body
        assert body["choices"][0]["text"] == await there.alone(prompt(seed, count), tokens)
        assert worker == there.servers["decode"].url.removeprefix("http://") + "/0"
    assert (await there.paths())["pair"] == len(lengths)
    return f"{len(lengths)} answers identical"


async def prefill_goes_to_the_holder(there: Site) -> str:
    """A prompt that goes on from an earlier one is prefilled where that one was; both servers had their share."""
    holders = set()
    for seed in range(20, 26):
        ids = prompt(seed, 160)
        await there.complete(ids, 1)
        holders.add(holder := await there.held(ids, 10))
        longer = [*ids, *prompt(seed + 100, 40)]
        assert (await there.explain(longer))["path"] == "pair"
        _, body, _ = await there.complete(longer, 2)
        assert body["usage"]["prompt_tokens_details"]["cached_tokens"] == 160, holder
    assert len(holders) == 2
    return "6 of 6 prefixes found again, on both prefill servers"


async def leaving_frees_both(there: Site) -> str:
    """A client that leaves, during prefill or during decode, leaves nothing at either engine within two seconds."""
    longest = 0.0
    for seed in range(40, 43):
        asked = asyncio.create_task(there.complete(prompt(seed, 3500), 50))
        async with asyncio.timeout(20):
            while not await there.busy("p0", "p1"):
                await asyncio.sleep(0.01)
        asked.cancel()
        longest = max(longest, await there.idle("p0", "p1", "decode"))
    for seed in range(43, 46):
        body = {
            "model": MODEL_NAME,
            "prompt": prompt(seed, 100),
            "max_tokens": 2000,
            "ignore_eos": True,
            "stream": True,
        }
        async with there.session.post(f"{there.router}/v1/completions", json=body) as reply:
            await reply.content.readany()
        longest = max(longest, await there.idle("p0", "p1", "decode"))
    async with there.session.get(f"{there.router}/workers") as reply:
        ranks = [rank for worker in (await reply.json())["workers"] for rank in worker["ranks"]]
    assert not any(rank["requests"] for rank in ranks)
    return f"both engines idle at most {longest:.2f} s after the client left"


async def text_goes_through_a_pair(there: Site) -> str:
    """SGLang's own OpenAI routes, with the fields of a pair added to the client's bytes."""
    chat = {
        "model": MODEL_NAME,
        "messages": [{"role": "user", "content": "Which worker holds my prefix?"}],
        "max_tokens": 12,
        "temperature": 0,
        "ignore_eos": True,
    }
    _, theirs, _ = await there.post(f"{there.servers['whole'].url}/v1/chat/completions", chat)
    status, ours, worker = await there.post(f"{there.router}/v1/chat/completions", chat)
    assert status == 200, ours
    assert ours["choices"] == theirs["choices"]
    assert worker.startswith(there.servers["decode"].url.removeprefix("http://"))
    async with there.session.post(f"{there.router}/v1/chat/completions", json=chat | {"stream": True}) as reply:
        assert (await reply.text()).rstrip().endswith("data: [DONE]")
    return "a chat reads the same"


async def the_path_is_chosen(there: Site) -> str:
    """On an idle fleet a request stays whole; while others decode there, a long one goes to a pair."""
    before = await there.paths()
    assert (await there.explain(prompt(60, 30)))["path"] == "whole"
    status, _, _ = await there.complete(prompt(60, 30), 2)
    assert status == 200
    streams = [asyncio.create_task(there.complete(prompt(62 + seed, 30), 120)) for seed in range(6)]
    while sum((await there.paths()).values()) < sum(before.values()) + 7:
        await asyncio.sleep(0.05)
    explained = await there.explain(prompt(70, 1500))
    status, _, worker = await there.complete(prompt(70, 1500), 2)
    assert status == 200
    assert explained["path"] == "pair", explained
    assert worker.startswith(there.servers["decode"].url.removeprefix("http://"))
    await asyncio.gather(*streams)
    after = await there.paths()
    assert after["whole"] > before["whole"]
    assert after["pair"] > before["pair"]
    return f"{after}; whole {explained['whole_seconds']:.3f} s against pair {explained['pair_seconds']:.3f} s"


async def a_killed_leg_ends_the_other(there: Site) -> str:
    """kill -9 of a prefill server: the request goes on with the other one. Of the decode server: it goes on as a whole."""
    asked = asyncio.create_task(there.complete(prompt(80, 3500), 4))
    async with asyncio.timeout(20):
        while not (working := [name for name in ("p0", "p1") if await there.busy(name)]):
            await asyncio.sleep(0.01)
    other = {"p0": "p1", "p1": "p0"}[working[0]]
    there.servers[working[0]].kill()
    started = time.monotonic()
    status, body, _ = await asked
    took = time.monotonic() - started
    assert status == 200, body
    assert body["choices"][0]["text"] == await there.alone(prompt(80, 3500), 4)
    stream = {"model": MODEL_NAME, "prompt": prompt(81, 100), "max_tokens": 60, "temperature": 0, "ignore_eos": True}
    asked = asyncio.create_task(there.post(f"{there.router}/v1/completions", stream))
    async with asyncio.timeout(20):
        while not await there.busy("decode"):
            await asyncio.sleep(0.005)
    there.servers["decode"].kill()
    status, body, worker = await asked
    assert status == 200, body
    assert worker.startswith(there.servers["whole"].url.removeprefix("http://"))
    assert body["choices"][0]["text"] == await there.alone(prompt(81, 100), 60)
    await there.idle(other)
    return f"answered {took:.1f} s after a prefill server was killed, and as a whole after the decode server was"
