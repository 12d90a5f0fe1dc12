"""The engine model finds in its cache what a real engine finds in its own, request by request, evictions included.

One SGLang on the CPU, one request at a time. What the real model said is fed to ours, for ours would say something else, and later
prompts go on from it. The scripted workload is the one of `script`, without its aborts: how far those got, nobody tells.
"""

from __future__ import annotations

import itertools
import random
from typing import TYPE_CHECKING, Any, NamedTuple

import aiohttp
import numpy as np
import pytest

from sim.calibrate.command import calibrate
from sim.calibrate.live import Plan
from sim.engine import Engine, EngineConfig, Request, StepKind
from tests.engine.script import VOCABULARY, steps
from tests.engine.server import EngineServer

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.engine

POOL_TOKENS = 4096


class Ask(NamedTuple):
    """One request; no prompt: empty the cache."""

    prompt: list[int]
    max_tokens: int


class Recited:
    """A sampler that says what it is told to."""

    def __init__(self) -> None:
        self.output: list[int] = []

    def read(self, _tokens: Any) -> int:
        return 0

    def next(self, state: int) -> int:
        return self.output[state]

    def append(self, state: int, _token: int) -> int:
        return state + 1


class Model:
    """Our engine, set up as the server is."""

    def __init__(self, page_size: int) -> None:
        config = EngineConfig(
            capacity_tokens=POOL_TOKENS, page_size=page_size, chunked_prefill_tokens=512, context_length=4096
        )
        self.engine = Engine(config)
        self.engine._sampler = self._sampler = Recited()  # type: ignore[assignment]
        self._ids = itertools.count()

    def ask(self, prompt: list[int], output: list[int]) -> int:
        """The tokens that are in the cache when this request comes, which will say `output`."""
        self._sampler.output = output
        request = Request(str(next(self._ids)), np.array(prompt, np.uint32), len(output), ignore_eos=True)
        self.engine.submit(request, 0.0)
        cached = 0
        while (step := self.engine.step(0.0)).kind is not StepKind.IDLE:
            self.engine._check()
            cached = step.outputs[0].cached_tokens if step.outputs else cached
        return cached


def scripted() -> Iterator[Ask]:
    for step in steps(seed=7, asks=60):
        if step.kind != "abort":
            yield Ask(step.prompt, step.max_tokens)


def conversations() -> Iterator[Ask]:
    """Turns of chats in random order: each goes on from what was said (prompts below are its beginning), or starts anew."""
    generator = random.Random(11)
    system = generator.choices(VOCABULARY, k=150)
    for _ in range(70):
        if generator.random() < 0.3:
            prompt = (system if generator.random() < 0.7 else []) + generator.choices(
                VOCABULARY, k=generator.randint(1, 700)
            )
        else:
            prompt = generator.choices(VOCABULARY, k=generator.randint(1, 90))
        yield Ask(prompt, generator.choice([1, 3, 16, 17, 40]))


async def generate(
    session: aiohttp.ClientSession, url: str, prompt: list[int], max_tokens: int
) -> tuple[int, list[int]]:
    """A real answer: cached tokens and output."""
    sampling = {"max_new_tokens": max_tokens, "temperature": 0, "ignore_eos": True}
    async with session.post(f"{url}/generate", json={"input_ids": prompt, "sampling_params": sampling}) as reply:
        assert reply.status == 200, await reply.text()
        answer = await reply.json()
    return answer["meta_info"]["cached_tokens"], answer["output_ids"]


async def flush(session: aiohttp.ClientSession, url: str) -> None:
    async with session.post(f"{url}/flush_cache", params={"timeout": "10"}) as reply:
        assert reply.status == 200, await reply.text()


async def play(
    session: aiohttp.ClientSession, server: EngineServer, asks: Iterator[Ask], *, chats: bool
) -> list[tuple[int, int]]:
    """Ask both; returns what each had cached, (real, model)."""
    model, generator = Model(server.page_size), random.Random(3)
    await flush(session, server.url)
    histories: list[list[int]] = []
    compared = []
    for ask in asks:
        if not ask.prompt:
            await flush(session, server.url)
            assert model.engine.flush()
            continue
        prompt = ask.prompt
        if chats and histories and len(prompt) <= 90:
            prompt = generator.choice(histories[-12:]) + prompt
        prompt = prompt[:1900]
        real, output = await generate(session, server.url, prompt, ask.max_tokens)
        assert len(output) == ask.max_tokens
        compared.append((real, model.ask(prompt, output)))
        histories.append(prompt + output)
    assert model.engine.statistics().evicted_tokens > POOL_TOKENS
    return compared


async def check_cached_tokens(session: aiohttp.ClientSession, server: EngineServer) -> list[str]:
    """Both workloads; returns what to say of them."""
    said = []
    for name, asks in (("scripted", scripted()), ("conversations", conversations())):
        compared = await play(session, server, asks, chats=name == "conversations")
        wrong = [(number, *pair) for number, pair in enumerate(compared) if pair[0] != pair[1]]
        hits = sum(real > 0 for real, _ in compared)
        said.append(f"page {server.page_size}, {name}: {len(compared)} requests, {hits} hits, {len(wrong)} differ")
        assert wrong == []
        assert hits >= 20
    return said


async def check_calibration(server: EngineServer) -> None:
    """`python -m sim calibrate --url` gets along with a real server; what a CPU's times are worth is another matter."""
    plan = Plan(
        new_tokens=(16, 400, 512, 1000),
        cached_tokens=(0, 512),
        batches=(1, 2),
        contexts=(64, 256),
        decode_tokens=24,
        repeats=1,
        chunk_tokens=512,
        graph_tokens=0,
        most_tokens=POOL_TOKENS,
    )
    timing, fit = await calibrate(server.url, plan, lambda _line: None)
    assert (fit["ttft"]["rows"], fit["decode"]["rows"]) == (8, 4)
    assert timing.prefill_seconds([512], [0]) > 0
    assert timing.decode_seconds(2, 500, 1) > 0


async def test_the_model_beside_an_engine(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    server = EngineServer(tmp_path, page_size=16, pool_tokens=POOL_TOKENS)
    async with server, aiohttp.ClientSession() as session:
        said = await check_cached_tokens(session, server)
        await check_calibration(server)
    with capsys.disabled():
        print("\n" + "\n".join(said))
