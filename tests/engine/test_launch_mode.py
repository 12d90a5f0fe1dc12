"""`python -m workers.sglang` with a real SGLang on the CPU: launched, routed to, administered, drained."""

from __future__ import annotations

import asyncio
import json
import shlex
import signal
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import aiohttp
import pytest
from openai import AsyncOpenAI

from launch.stack import Stack, free_port
from sim import tinymodel
from tests.engine.install import environment, interpreter
from tests.engine.server import MODEL_NAME

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from launch.process import Process

pytestmark = pytest.mark.engine

TOKEN = "secret"
SETTINGS = ("PYTHONPATH", "SGLANG_USE_CPU_ENGINE", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
ON_CPU = (
    *("--load-format", "dummy", "--device", "cpu", "--attention-backend", "torch_native"),
    *("--sampling-backend", "pytorch", "--cuda-graph-backend-decode", "disabled"),
    *("--cuda-graph-backend-prefill", "disabled", "--disable-overlap-schedule", "--sleep-on-idle"),
    *("--mem-fraction-static", "0.1", "--skip-server-warmup", "--context-length", "4096", "--max-total-tokens", "4096"),
)


def sglang_python(folder: Path) -> Path:
    """An interpreter that has SGLang, with the settings that it needs on a CPU, and that the adapter must not have."""
    settings = environment() | {"SGLANG_CPU_OMP_THREADS_BIND": "0"}
    names = (*SETTINGS, "SGLANG_CPU_OMP_THREADS_BIND")
    script = folder / "python"
    exports = "\n".join(f"export {name}={shlex.quote(settings[name])}" for name in names)
    script.write_text(f'#!/bin/sh\n{exports}\nexec {interpreter()} -W ignore::UserWarning "$@"\n')
    script.chmod(0o755)
    return script


class Launched(NamedTuple):
    """A launched engine behind a router."""

    stack: Stack
    worker: Process
    url: str
    session: aiohttp.ClientSession

    @property
    def engine_url(self) -> str:
        return str(self.worker.announced["endpoint"])

    async def post(self, path: str, body: Any = None, **headers: str) -> tuple[int, Any]:
        async with self.session.post(self.url + path, json=body, headers=headers) as reply:
            return reply.status, await reply.json(content_type=None)

    async def admin(self, name: str, body: Any = None) -> tuple[int, dict[str, Any]]:
        """Status, and the outcome at the one worker."""
        status, reply = await self.post(f"/admin/{name}", body, Authorization=f"Bearer {TOKEN}")
        return status, reply["workers"][0]

    async def server_info(self) -> dict[str, Any]:
        async with self.session.get(f"{self.engine_url}/server_info") as reply:
            info: dict[str, Any] = await reply.json()
            return info


@asynccontextmanager
async def launched(folder: Path, *options: str) -> AsyncIterator[Launched]:
    async with Stack(folder, workers=0) as stack, aiohttp.ClientSession() as session:
        arguments = ["--python", str(sglang_python(folder)), "--model-path", str(tinymodel.PATH), *ON_CPU]
        arguments += ["--served-model-name", MODEL_NAME, "--port", str(free_port()), *stack.place()]
        worker = await stack.spawn("workers.sglang", [*arguments, *options], "worker")
        await worker.ready(seconds=500)
        router = await stack.route("--min-workers", "1", "--admin-token", TOKEN, "--first-token-timeout", "60")
        yield Launched(stack, worker, router.announced["http"], session)


async def test_a_generating_worker_from_launch_to_end(tmp_path: Path) -> None:
    options = ("--page-size", "16", "--tp", "1", "--chunked-prefill-size=512", "--engine-route", "gc=/freeze_gc")
    async with launched(tmp_path, *options, "--drain-seconds", "200", "--stop-seconds", "20") as running:
        await arguments_are_passed_on_and_completed(running)
        await prefixes_are_known_by_events(running)
        await sglangs_own_route_passes_through(running)
        await operators_reach_it(running)
        await it_drains(running)


async def arguments_are_passed_on_and_completed(running: Launched) -> None:
    info = await running.server_info()
    assert (info["page_size"], info["chunked_prefill_size"], info["tp_size"]) == (16, 512, 1)
    assert info["decode_log_interval"] == 4
    assert info["kv_events"]["endpoint_host"] == "127.0.0.1"
    assert info["kv_events"]["load_endpoint_port_base"]
    assert running.worker.announced["kv_events"]
    log = running.worker.log.read_text()
    for added in ("--kv-events-config", "--load-publish-endpoint", "--decode-log-interval 4"):
        assert f"added {added}" in log
    assert "added --page-size" not in log


async def prefixes_are_known_by_events(running: Launched) -> None:
    prompt = [3 + i % 1900 for i in range(300)]
    body = {"model": MODEL_NAME, "prompt": prompt, "max_tokens": 2, "temperature": 0, "ignore_eos": True}
    assert (await running.post("/v1/completions", body))[0] == 200
    async with asyncio.timeout(20):
        while True:
            _, decision = await running.post("/explain", {"input_ids": prompt, "model": MODEL_NAME})
            if decision["candidates"][0]["device_blocks"] == 300 // 64:
                break
            await asyncio.sleep(0.05)
    _, reply = await running.post("/v1/completions", body)
    assert reply["usage"]["prompt_tokens_details"]["cached_tokens"] == 288


async def sglangs_own_route_passes_through(running: Launched) -> None:
    body = {"input_ids": [5] * 40, "sampling_params": {"max_new_tokens": 4, "ignore_eos": True}, "return_logprob": True}
    status, reply = await running.post("/generate", body)
    assert (status, len(reply["output_ids"])) == (200, 4)
    assert len(reply["meta_info"]["output_token_logprobs"]) == 4


async def operators_reach_it(running: Launched) -> None:
    status, outcome = await running.admin("flush_cache?timeout=10")
    assert (status, outcome["ok"]) == (200, True), outcome
    status, outcome = await running.admin("expert_distribution/start")
    assert (status, outcome["status"]) == (502, None)  # not asked: it would die
    assert (await running.admin("engine/gc"))[0] == 200
    ask = {"model": MODEL_NAME, "prompt": "hello", "max_tokens": 2}
    assert (await running.admin("pause"))[0] == 200
    assert (await running.post("/v1/completions", ask))[0] == 503
    assert (await running.admin("continue"))[0] == 200
    assert (await running.post("/v1/completions", ask))[0] == 200
    status, outcome = await running.admin("lora/load", {"lora_name": "x", "lora_path": "/nowhere"})
    assert (status, outcome["ok"]) == (502, False)


async def it_drains(running: Launched) -> None:
    """SIGTERM with a stream open: the stream ends as if nothing were, then the engine does."""
    body = {"model": MODEL_NAME, "prompt": [9] * 20, "max_tokens": 50, "ignore_eos": True, "stream": True}
    async with running.session.post(f"{running.url}/v1/completions", json=body) as reply:
        chunks = []
        async for line in reply.content:
            if line.startswith(b"data: {"):
                chunks.append(json.loads(line[6:]))
                if len(chunks) == 3:  # once: a second signal would not wait
                    running.worker.send(signal.SIGTERM)
    assert chunks[-1]["choices"][0]["finish_reason"] == "length"
    async with running.session.get(f"{running.url}/metrics") as reply:
        assert "warmpath_migrations_total{" not in await reply.text()
    assert await running.worker.ended(seconds=300) == 0
    log = running.worker.log.read_text()
    assert "still in flight" not in log  # whether SGLang then ends by itself or is killed is up to it


async def test_an_embedding_worker(tmp_path: Path) -> None:
    async with launched(tmp_path, "--embedding-worker") as running:
        assert (await running.server_info())["is_embedding"]
        async with AsyncOpenAI(base_url=f"{running.url}/v1", api_key="none", max_retries=0) as client:
            packed: Any = await client.embeddings.create(model=MODEL_NAME, input=["a cat", "a dog"])
            plain: Any = await client.embeddings.create(
                model=MODEL_NAME, input=["a cat", "a dog"], encoding_format="float"
            )
            by_ids: Any = await client.embeddings.create(
                model=MODEL_NAME, input=[[5, 6, 7], [8]], encoding_format="float"
            )
        for ours, theirs in zip(packed.data, plain.data, strict=True):
            assert ours.embedding == pytest.approx(theirs.embedding, abs=1e-3)
        assert len(by_ids.data) == 2
        status, reply = await running.post("/v1/completions", {"model": MODEL_NAME, "prompt": "x"})
        assert (status, reply["error"]["code"]) == (400, "wrong_kind_of_model")


async def test_sglangs_own_parser_refuses_before_anything_starts(tmp_path: Path) -> None:
    async with Stack(tmp_path, workers=0) as stack:
        options = ["--python", str(sglang_python(tmp_path)), "--model-path", "m", "--tool-call-parser", "no-such"]
        worker = await stack.spawn("workers.sglang", [*options, *stack.place()], "worker")
        assert await worker.ended(seconds=500) == 2
        log = worker.log.read_text()
        assert "error: SGLang: argument --tool-call-parser: invalid choice: 'no-such'" in log
        assert "engine started" not in log
