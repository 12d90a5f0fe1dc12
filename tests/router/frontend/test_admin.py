"""Administration: who may, whom it reaches, what each worker said, and what the router makes of it."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import pytest

from router.core import Target
from sim.worker import FakeWorker, WorkerConfig
from tests.router.frontend.fleet import Routed, routed

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

TOKEN = "secret"
ASK = {"model": "m", "prompt": [5] * 200, "max_tokens": 1}


class Operator:
    """A router, its workers, and somebody with the token."""

    def __init__(self, router: Routed, workers: list[FakeWorker]) -> None:
        self.router = router
        self.workers = workers
        self.ids = [worker.url.removeprefix("http://") for worker in workers]

    async def do(self, name: str, body: Any = None, query: str = "") -> tuple[int, Any]:
        headers = {"Authorization": f"Bearer {TOKEN}"}
        url = f"{self.router.url}/admin/{name}{query}"
        async with self.router.session.post(url, json=body, headers=headers) as reply:
            return reply.status, await reply.json()

    async def done(self, name: str, body: Any = None, query: str = "") -> list[dict[str, Any]]:
        status, content = await self.do(name, body, query)
        assert (status, content["ok"]) == (200, True), content
        workers: list[dict[str, Any]] = content["workers"]
        return workers

    def held(self) -> list[list[str]]:
        return [list(worker["held"]) for worker in self.router.roster.workers()]


@contextlib.asynccontextmanager
async def operating(count: int = 2, stated: dict[str, Any] | None = None, **options: Any) -> AsyncIterator[Operator]:
    async with contextlib.AsyncExitStack() as parts:
        config = WorkerConfig(served_model_name="m", **options)
        workers = [await parts.enter_async_context(FakeWorker(config)) for _ in range(count)]
        urls = [worker.url for worker in workers]
        router = await parts.enter_async_context(routed(*urls, admin_token=TOKEN, **stated or {}))
        yield Operator(router, workers)


# ---- who may


async def test_it_is_off_by_default_and_says_so() -> None:
    async with routed() as router:
        for status, reply in ((await router.post("/admin/flush_cache", {}))[:2], await router.get("/admin")):
            assert (status, reply["error"]["code"]) == (403, "administration_off")
            assert "--admin-token" in reply["error"]["message"]


@pytest.mark.parametrize("given", [{}, {"Authorization": "Bearer wrong"}, {"Authorization": TOKEN}])
async def test_only_the_token_opens_it(given: dict[str, str]) -> None:
    async with operating(1) as operator:
        status, reply, headers = await operator.router.post("/admin/flush_cache", {}, **given)
        assert (status, reply["error"]["code"], headers["WWW-Authenticate"]) == (401, "invalid_token", "Bearer")


# ---- whom it reaches


async def test_all_workers_or_chosen_ones() -> None:
    async with operating(2) as operator:
        first, second = operator.ids
        assert [outcome["worker_id"] for outcome in await operator.done("flush_cache")] == [first, second]
        (outcome,) = await operator.done("flush_cache", query=f"?worker={second}")
        assert (outcome["worker_id"], outcome["status"], outcome["error"]) == (second, 200, None)
        assert outcome["reply"].startswith("Cache flushed.")
        assert len(await operator.done("flush_cache", query="?model=m&timeout=1")) == 2
        status, reply = await operator.do("flush_cache", query="?worker=nobody")
        assert (status, reply["error"]["code"]) == (404, "unknown_worker")
        assert (await operator.do("flush_cache", query="?model=other"))[0] == 503


async def test_one_that_fails_is_named_and_the_others_do_it() -> None:
    async with operating(2) as operator:
        await operator.workers[0].stop()
        status, reply = await operator.do("flush_cache")
        assert (status, reply["ok"]) == (502, False)
        failed, done = reply["workers"]
        assert (failed["ok"], failed["status"], done["ok"]) == (False, None, True)
        assert "Cannot connect" in failed["error"]


async def test_a_body_that_is_none() -> None:
    async with operating(1) as operator:
        status, reply = await operator.do("pause", [1])
        assert (status, reply["error"]["message"]) == (400, "the body must be a JSON object")


# ---- what follows


async def test_a_flushed_cache_is_not_believed_in_any_more() -> None:
    async with operating(1) as operator:
        assert (await operator.router.post("/v1/completions", ASK))[0] == 200
        body = {"input_ids": ASK["prompt"], "model": "m"}
        _, before, _ = await operator.router.post("/explain", body)
        await operator.done("flush_cache")
        _, after, _ = await operator.router.post("/explain", body)
        assert before["candidates"][0]["predicted_blocks"] > 0
        assert after["candidates"][0]["predicted_blocks"] == 0


@pytest.mark.parametrize(("stop", "go_on"), [("pause", "continue"), ("memory/release", "memory/resume")])
async def test_a_worker_that_cannot_generate_gets_no_requests(stop: str, go_on: str) -> None:
    async with operating(2) as operator:
        first, second = operator.ids
        await operator.done(stop, query=f"?worker={first}")
        assert [bool(reasons) for reasons in operator.held()] == [True, False]
        for _ in range(4):
            _, _, headers = await operator.router.post("/v1/completions", ASK)
            assert headers["X-Warmpath-Worker"] == f"{second}/0"
        operator.router.roster._scheduler.set_available(Target(first, 0), available=True)  # found fit meanwhile
        await operator.done(stop, query=f"?worker={second}")
        status, reply, _ = await operator.router.post("/v1/completions", ASK)
        assert (status, reply["error"]["code"]) == (503, "no_worker")
        await operator.done(go_on)
        assert operator.held() == [[], []]
        assert (await operator.router.post("/v1/completions", ASK))[0] == 200


async def test_two_reasons_end_one_by_one() -> None:
    async with operating(1) as operator:
        await operator.done("pause")
        await operator.done("memory/release")
        await operator.done("continue")
        assert operator.held() == [["its memory is released"]]


async def test_weights_are_replaced_while_no_requests_come_and_the_cache_is_gone() -> None:
    async with operating(1) as operator:
        await operator.router.post("/v1/completions", ASK)
        (outcome,) = await operator.done("weights/update_from_disk", {"model_path": "/models/new"})
        assert outcome["reply"]["success"]
        assert operator.held() == [[]]
        _, decision, _ = await operator.router.post("/explain", {"input_ids": ASK["prompt"], "model": "m"})
        assert decision["candidates"][0]["predicted_blocks"] == 0


async def test_profiles_are_started_and_stopped() -> None:
    async with operating(1) as operator:
        await operator.done("profile/start", {"output_dir": "/tmp"})
        status, reply = await operator.do("profile/start")
        assert (status, reply["workers"][0]["status"]) == (502, 400)
        await operator.done("profile/stop")


async def test_the_question_that_kills_is_not_asked() -> None:
    async with operating(1) as operator:
        for name in ("start", "stop", "dump"):
            status, reply = await operator.do(f"expert_distribution/{name}")
            (outcome,) = reply["workers"]
            assert (status, outcome["status"]) == (502, None)
            assert "--expert-distribution-recorder-mode" in outcome["error"]
        assert (await operator.router.post("/v1/completions", ASK))[0] == 200


async def test_a_worker_that_records_is_asked() -> None:
    async with operating(1, expert_distribution_recorder_mode="stat") as operator:
        for name in ("start", "stop", "dump"):
            await operator.done(f"expert_distribution/{name}")


async def test_routes_that_workers_were_started_with() -> None:
    async with operating(1, {"engine_routes": (("gc", "/freeze_gc"),)}) as operator:
        (outcome,) = await operator.done("engine/gc")
        assert outcome["reply"] == "Garbage collection frozen.\n"
        status, reply = await operator.do("engine/slow_down")
        assert (status, reply["error"]["code"]) == (404, "unknown_engine_route")
        index = await operator.router.get("/admin", Authorization=f"Bearer {TOKEN}")
        assert index[1]["engine_routes"] == ["gc"]
        assert "weights/update_from_disk" in index[1]["operations"]


async def test_calls_are_counted() -> None:
    async with operating(1) as operator:
        await operator.done("flush_cache")
        text = operator.router.metrics.exposition().decode()
        assert 'warmpath_admin_calls_total{operation="flush_cache",outcome="ok"} 1.0' in text


# ---- adapters


async def test_adapters_are_loaded_routed_by_and_unloaded() -> None:
    async with operating(2, enable_lora=True) as operator:
        first, _ = operator.ids
        asked = {**ASK, "model": "m:sql"}
        assert (await operator.router.post("/v1/completions", asked))[0] == 404
        (outcome,) = await operator.done("lora/load", {"lora_name": "sql", "lora_path": "/x"}, f"?worker={first}")
        assert outcome["reply"]["loaded_adapters"] == {"sql": "/x"}
        _, listed = await operator.router.get("/v1/models")
        assert [model["id"] for model in listed["data"]] == ["m", "m:sql"]
        for body in (asked, {**ASK, "lora_path": "sql"}, asked):
            status, _, headers = await operator.router.post("/v1/completions", body)
            assert (status, headers["X-Warmpath-Worker"]) == (200, f"{first}/0")
        status, listed = await operator.router.get("/admin/lora", Authorization=f"Bearer {TOKEN}")
        assert [worker["reply"] for worker in listed["workers"]] == [[{"name": "sql", "path": "/x"}], []]
        status, reply = await operator.do("lora/load", {"lora_name": "sql", "lora_path": "/x"}, f"?worker={first}")
        assert (status, reply["workers"][0]["error"]) == (502, "sql is already loaded.")
        await operator.done("lora/unload", {"lora_name": "sql"}, f"?worker={first}")
        assert (await operator.router.post("/v1/completions", asked))[0] == 404


async def test_an_adapters_prefixes_are_its_own() -> None:
    async with operating(1, lora_paths=("sql=/x", "law=/y")) as operator:
        await operator.router.post("/v1/completions", {**ASK, "model": "m:sql"})
        blocks = {}
        for model in ("m", "m:sql", "m:law"):
            _, decision, _ = await operator.router.post("/explain", {"input_ids": ASK["prompt"], "model": model})
            blocks[model] = decision["candidates"][0]["predicted_blocks"]
        assert blocks["m:sql"] > 0
        assert blocks["m"] == blocks["m:law"] == 0
        _, reply, _ = await operator.router.post("/v1/completions", {**ASK, "model": "m:sql"})
        assert reply["usage"]["prompt_tokens_details"]["cached_tokens"] > 0
        _, reply, _ = await operator.router.post("/v1/completions", ASK)
        assert reply["usage"]["prompt_tokens_details"]["cached_tokens"] == 0


@pytest.mark.parametrize(
    ("fields", "status", "param"),
    [
        ({"model": "m", "lora_path": "other"}, 404, "lora_path"),
        ({"model": "m:sql", "lora_path": "law"}, 400, "lora_path"),
        ({"model": "m:other"}, 404, "model"),
    ],
)
async def test_an_adapter_that_cannot_be_meant(fields: dict[str, Any], status: int, param: str) -> None:
    async with operating(1, lora_paths=("sql=/x", "law=/y")) as operator:
        got, reply, _ = await operator.router.post("/v1/completions", {**ASK, **fields})
        assert (got, reply["error"]["param"]) == (status, param)
