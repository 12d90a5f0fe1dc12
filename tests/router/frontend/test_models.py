"""What clients may call a model, and which models' requests go to the engines as they are."""

from __future__ import annotations

import contextlib
import logging
from typing import Any

import numpy as np
import pytest

from events.membership import Joined, Left, WorkerCard
from router.core import Target
from router.service.served import passing_reason, served_models
from sim.worker import FakeWorker, WorkerConfig
from tests.router.frontend.fleet import TOKENIZER, routed

MESSAGES = [{"role": "user", "content": "hello"}]


def card(worker_id: str = "w", **fields: Any) -> WorkerCard:
    plain = {"epoch": 1, "model": "m", "endpoint": "http://h:1", "capacity_tokens": 1024, "context_tokens": 1024}
    return WorkerCard(worker_id=worker_id, **plain | fields)


@pytest.mark.parametrize(
    ("fields", "reason", "everything"),
    [
        ({}, "", False),
        ({"tool_call_parser": "hermes"}, "--tool-call-parser hermes", False),
        ({"reasoning_parser": "qwen3"}, "--reasoning-parser qwen3", False),
        ({"named_template": "chatml"}, "--chat-template chatml", False),
        ({"engine_tokenizes": True}, "--use-sglang-tokenizer", True),
        ({"chat_template": "{{ messages }}"}, "", False),
    ],
)
def test_what_only_an_engine_can_do_has_chats_passed_to_it(
    fields: dict[str, Any], reason: str, everything: bool
) -> None:
    assert passing_reason(card(**fields)) == reason
    model = served_models([card("plain"), card(**fields)])["m"]
    assert (model.passes_chats, model.passes_all) == (reason, everything)


def test_a_models_workers_are_taken_together() -> None:
    first, second = card("a", migration_limit=5, adapters=("x",)), card("b", migration_limit=2, adapters=("y",))
    model = served_models([first, second, card("c")])["m"]
    assert (model.migration_limit, model.adapters) == (2, frozenset({"x", "y"}))


@pytest.mark.parametrize(("path", "passed"), [("chat/completions", True), ("completions", False)])
async def test_chats_of_a_parsed_model_pass_through_its_completions_do_not(path: str, passed: bool) -> None:
    async with FakeWorker(WorkerConfig(reasoning_parser="qwen3")) as fake, routed(fake.url) as router:
        fields = {"messages": MESSAGES} if path.startswith("chat") else {"prompt": "hello"}
        (model,) = router.roster.models()
        status, reply, _ = await router.post(f"/v1/{path}", {"model": model, "max_tokens": 2, **fields})
        assert status == 200
        assert ("metadata" in reply) == passed  # a field of SGLang's own answers


async def test_tools_reach_an_engine_that_parses_them_and_are_refused_else() -> None:
    body: dict[str, Any] = {
        "messages": MESSAGES,
        "max_tokens": 2,
        "tools": [{"type": "function", "function": {"name": "f"}}],
    }
    able, other = (
        FakeWorker(WorkerConfig(served_model_name=n, tool_call_parser=p)) for n, p in (("a", "hermes"), ("b", None))
    )
    async with able, other, routed() as router:
        await router.join(able.url)
        await router.join(other.url)
        assert (await router.post("/v1/chat/completions", {"model": "a", **body}))[0] == 200
        status, reply, _ = await router.post("/v1/chat/completions", {"model": "b", **body})
        assert (status, reply["error"]["param"]) == (400, "tools")


async def test_it_is_said_once_that_a_model_passes_through(caplog: pytest.LogCaptureFixture) -> None:
    async with routed() as router:
        with caplog.at_level(logging.WARNING):
            for number in range(3):
                router.roster._changed(Joined(card(f"w{number}", reasoning_parser="qwen3")))
    said = [record.getMessage() for record in caplog.records if "text mode" in record.getMessage()]
    assert said == [
        "model m: chats go to its engines as they are (text mode), for --reasoning-parser qwen3 is theirs to do"
    ]


async def test_one_name_stands_for_one_kind_of_model() -> None:
    async with routed() as router:
        router.roster._changed(Joined(card("a")))
        router.roster._changed(Joined(card("b", embedding=True)))
        (refused,) = [worker for worker in router.roster.workers() if "refused" in worker]
        assert refused["worker_id"] == "b"
        assert "it makes embeddings, and other workers of m do not" in refused["refused"]
        router.roster._changed(Left("a"))
        router.roster._changed(Joined(card("b", embedding=True)))
        assert router.roster.served()["m"].embedding


async def test_a_template_of_the_workers_is_applied_here() -> None:
    template = "{% for m in messages %}{{ m.content }} {% endfor %}and then"
    body: dict[str, Any] = {"model": "m", "messages": MESSAGES, "max_tokens": 1}
    fake = FakeWorker(WorkerConfig(served_model_name="m"))
    async with fake, routed() as router, routed() as plain:
        await router.join(fake.url, chat_template=template)
        await plain.join(fake.url)
        _, ours, _ = await router.post("/v1/chat/completions", body)
        _, usual, _ = await plain.post("/v1/chat/completions", body)
    tokens = len(TOKENIZER._tokenizer.encode("hello and then", add_special_tokens=False).ids)
    assert ours["usage"]["prompt_tokens"] == tokens != usual["usage"]["prompt_tokens"]


async def test_a_template_that_is_none_has_its_worker_refused() -> None:
    async with routed() as router:
        router.roster._changed(Joined(card(chat_template="{% for %}")))
        (refused,) = router.roster.workers()
        assert "chat template, line 1" in refused["refused"]


async def test_a_models_own_migration_limit_goes_before_the_routers() -> None:
    async with contextlib.AsyncExitStack() as parts:
        fakes = [await parts.enter_async_context(FakeWorker(WorkerConfig(served_model_name="m"))) for _ in range(3)]
        router = await parts.enter_async_context(routed(*(fake.url for fake in fakes), migration_limit=0))
        for fake in fakes:
            await router.session.post(f"{fake.url}/_fault", json={"kind": "error"})
        status, _, _ = await router.post("/v1/completions", {"model": "m", "prompt": "x", "max_tokens": 1})
        assert status == 502
        used = [(await (await router.session.get(f"{fake.url}/_fault")).json())["used"]["error"] for fake in fakes]
        assert sum(used) == 1


async def test_another_adapter_is_no_other_worker() -> None:
    async with routed() as router:
        router.roster._changed(Joined(card()))
        scheduler = router.roster._scheduler
        hashes = np.arange(4, dtype=np.uint64)
        scheduler.store(Target("w", 0), hashes)
        router.roster._changed(Joined(card(adapters=("sql",))))
        assert scheduler.targets()[0].device_blocks == 4
        assert router.roster.served()["m"].adapters == {"sql"}
        router.roster._changed(Joined(card(epoch=2, adapters=("sql",))))
        assert scheduler.targets()[0].device_blocks == 0
