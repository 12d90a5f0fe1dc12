"""SGLang's own `/generate` through the router."""

from __future__ import annotations

import json
from typing import Any

import pytest

from router.core import Target
from sim.worker import FakeWorker, WorkerConfig
from tests.router.frontend.fleet import TOKENIZER, Routed, routed

SAMPLING = {"max_new_tokens": 6, "temperature": 0, "ignore_eos": True}
IDS = [7] * 100


async def asked(router: Routed, **fields: Any) -> tuple[int, Any, Any]:
    return await router.post("/generate", {"sampling_params": SAMPLING, **fields})


async def streamed(router: Routed, **fields: Any) -> tuple[list[dict[str, Any]], str]:
    body = {"sampling_params": SAMPLING, "stream": True, **fields}
    async with router.session.post(f"{router.url}/generate", json=body) as reply:
        events = [line.decode().strip()[6:] async for line in reply.content if line.startswith(b"data: ")]
        worker = reply.headers["X-Warmpath-Worker"]
    assert events.pop() == "[DONE]"
    return [json.loads(event) for event in events], worker


async def test_answers_are_the_engines_own_whole_and_streamed() -> None:
    async with FakeWorker(WorkerConfig(served_model_name="m")) as fake, routed(fake.url) as router:
        status, whole, _ = await asked(router, input_ids=IDS)
        assert (status, len(whole["output_ids"]), whole["meta_info"]["prompt_tokens"]) == (200, 6, 100)
        events, _ = await streamed(router, input_ids=IDS)
        assert events[-1]["output_ids"] == whole["output_ids"]
        assert events[-1]["meta_info"]["cached_tokens"] == 96
        text = router.metrics.exposition().decode()
    assert "warmpath_prompt_tokens_total 200.0" in text
    assert "warmpath_cached_tokens_total 96.0" in text
    assert "warmpath_completion_tokens_total 12.0" in text


async def test_a_stream_that_passes_through_shows_that_its_worker_is_alive() -> None:
    sampling = {"max_new_tokens": 100, "ignore_eos": True}
    async with FakeWorker(WorkerConfig(served_model_name="m")) as fake, routed(fake.url) as router:
        target = Target(fake.url.removeprefix("http://"), 0)
        body = {"input_ids": IDS, "sampling_params": sampling, "stream": True}
        seen = []
        async with router.session.post(f"{router.url}/generate", json=body) as reply:
            async for _ in reply.content:
                seen.append(router.roster._scheduler.progress_of(target))
        progress = [look.progress for look in seen if look is not None]
    assert progress == sorted(progress)
    assert len(set(progress)) > 10


@pytest.mark.parametrize("as_text", [False, True])
async def test_a_prefix_finds_its_holder(as_text: bool) -> None:
    text = "the cat sat on the mat and the dog sat on the log, " * 8
    fields: dict[str, Any] = {"text": text} if as_text else {"input_ids": (await TOKENIZER.text(text)).tolist()}
    fakes = [FakeWorker(WorkerConfig(served_model_name="m")) for _ in range(2)]
    async with fakes[0], fakes[1], routed(*(fake.url for fake in fakes)) as router:
        _, _, headers = await asked(router, **fields)
        holder = headers["X-Warmpath-Worker"]
        tokens = (await TOKENIZER.text(text)).tolist()
        _, decision, _ = await router.post("/explain", {"input_ids": tokens, "model": "m"})
        held = {f"{row['target']['worker_id']}/0": row["predicted_blocks"] for row in decision["candidates"]}
        assert held.pop(holder) == len(tokens) // 16
        assert list(held.values()) == [0]


async def test_the_rank_that_was_chosen_answers() -> None:
    async with FakeWorker(WorkerConfig(served_model_name="m", dp_size=3)) as fake, routed(fake.url) as router:
        for number in range(5):
            _, reply, headers = await asked(router, input_ids=[number + 3] * 40, routed_dp_rank=7)
            assert headers["X-Warmpath-Worker"].endswith(f"/{reply['meta_info']['dp_rank']}")


async def test_a_model_is_named_where_there_are_several() -> None:
    first, second = (FakeWorker(WorkerConfig(served_model_name=name)) for name in ("a", "b"))
    async with first, second, routed(first.url, second.url) as router:
        status, reply, _ = await asked(router, input_ids=IDS)
        assert (status, reply["error"]["param"]) == (400, "model")
        for name, fake in (("a", first), ("b", second)):
            status, _, headers = await router.post(
                f"/generate?model={name}", {"input_ids": IDS, "sampling_params": SAMPLING}
            )
            assert (status, f"http://{headers['X-Warmpath-Worker'][:-2]}") == (200, fake.url)


async def test_adapters_by_lora_path() -> None:
    plain = FakeWorker(WorkerConfig(served_model_name="m"))
    able = FakeWorker(WorkerConfig(served_model_name="m", lora_paths=("sql=/x",)))
    async with plain, able, routed(plain.url, able.url) as router:
        for _ in range(3):
            status, _, headers = await asked(router, input_ids=IDS, lora_path="sql")
            assert (status, f"http://{headers['X-Warmpath-Worker'][:-2]}") == (200, able.url)
        assert (await asked(router, input_ids=IDS, lora_path="other"))[0] == 404


@pytest.mark.parametrize(
    ("fields", "status", "said"),
    [
        ({}, 400, "Either text or input_ids"),
        ({"input_ids": [1, -1]}, 400, "input_ids"),
        ({"input_ids": [2**40]}, 400, "input_ids"),
        ({"input_ids": IDS, "sampling_params": {"n": 2}}, 400, "n: only 1 is modelled"),
    ],
)
async def test_what_is_wrong_is_said_by_whom_it_concerns(fields: dict[str, Any], status: int, said: str) -> None:
    async with FakeWorker(WorkerConfig(served_model_name="m")) as fake, routed(fake.url) as router:
        got, reply, _ = await asked(router, **fields)
        assert (got, said in reply["error"]["message"]) == (status, True), reply


async def test_nobody_generates() -> None:
    async with FakeWorker(WorkerConfig(is_embedding=True)) as fake, routed(fake.url) as router:
        assert (await asked(router, input_ids=IDS))[0] in (400, 404)
    async with routed() as router:
        assert (await asked(router, input_ids=IDS))[0] == 503
