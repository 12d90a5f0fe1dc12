"""Embeddings, rankings and classifications through the router, with OpenAI's own client, from fake workers that make them."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import numpy as np
import openai
import pytest

from sim.worker import FakeWorker, WorkerConfig
from tests.router.frontend.fleet import Routed, routed

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

MODEL = "vectors"
WORDS = ["a cat sat on the mat", "the dog ate my homework"]


@contextlib.asynccontextmanager
async def embedding(workers: int = 1) -> AsyncIterator[tuple[openai.AsyncOpenAI, Routed, list[FakeWorker]]]:
    async with contextlib.AsyncExitStack() as parts:
        config = WorkerConfig(is_embedding=True, served_model_name=MODEL)
        fakes = [await parts.enter_async_context(FakeWorker(config)) for _ in range(workers)]
        router = await parts.enter_async_context(routed(*(fake.url for fake in fakes)))
        client = openai.AsyncOpenAI(base_url=f"{router.url}/v1", api_key="none", max_retries=0)
        yield await parts.enter_async_context(client), router, fakes


async def test_openais_client_gets_the_same_vectors_however_it_asks() -> None:
    async with embedding() as (client, _, (fake,)):
        plain: Any = await client.embeddings.create(model=MODEL, input=WORDS, encoding_format="float")
        packed: Any = await client.embeddings.create(model=MODEL, input=WORDS)  # base64, unpacked by the client
        assert fake._text_model is not None
        ids = [fake._text_model.encode(text).tolist() for text in WORDS]
        by_ids: Any = await client.embeddings.create(model=MODEL, input=ids, encoding_format="float")
        one: Any = await client.embeddings.create(model=MODEL, input=ids[0], encoding_format="float")
        text: Any = await client.embeddings.create(model=MODEL, input=WORDS[0], encoding_format="float")
    vectors = [item.embedding for item in plain.data]
    assert [item.index for item in plain.data] == [0, 1]
    assert plain.usage.prompt_tokens == sum(map(len, ids))
    for other in (packed, by_ids):
        assert np.allclose([item.embedding for item in other.data], vectors)
    assert one.data[0].embedding == text.data[0].embedding == vectors[0]
    assert np.linalg.norm(vectors[0]) == pytest.approx(1)
    assert vectors[0] != vectors[1]


async def test_fewer_dimensions() -> None:
    async with embedding() as (client, router, _):
        reply = await client.embeddings.create(model=MODEL, input="x", dimensions=8, encoding_format="float")
        assert len(reply.data[0].embedding) == 8
        with pytest.raises(openai.BadRequestError, match="dimensions must lie between 1 and"):
            await client.embeddings.create(model=MODEL, input="x", dimensions=100_000)
        del router


async def test_an_engine_that_knows_neither_base64_nor_dimensions(monkeypatch: pytest.MonkeyPatch) -> None:
    """As older versions: the router packs the vectors, and does not pass long ones off as short."""
    monkeypatch.setattr("sim.worker.embedding_routes._encoded", lambda vector, encoding: vector.tolist())
    async with embedding() as (client, _, _):
        packed = await client.embeddings.create(model=MODEL, input="x")
        plain = await client.embeddings.create(model=MODEL, input="x", encoding_format="float")
        assert np.allclose(packed.data[0].embedding, plain.data[0].embedding)
        monkeypatch.setattr("sim.worker.embedding_routes._normalised", lambda vector: np.ones(64, np.float32))
        with pytest.raises(openai.BadRequestError, match="dimensions is not supported"):
            await client.embeddings.create(model=MODEL, input="x", dimensions=8)


async def test_documents_in_order() -> None:
    async with embedding() as (_, router, _):
        body = {"query": "the cat on the mat", "documents": [*WORDS[::-1]], "top_n": 1}
        status, reply, _ = await router.post("/v1/rerank", body)
        assert (status, len(reply), reply[0]["index"], reply[0]["document"]) == (200, 1, 1, WORDS[0])


async def test_labels() -> None:
    async with embedding() as (_, router, _):
        status, reply, _ = await router.post("/v1/classify", {"model": MODEL, "input": WORDS})
        assert (status, [item["index"] for item in reply["data"]]) == (200, [0, 1])
        assert all(sum(item["probs"]) == pytest.approx(1) for item in reply["data"])


@pytest.mark.parametrize(
    ("path", "body", "status", "param"),
    [
        ("embeddings", {"input": "x"}, 400, "model"),
        ("embeddings", {"model": MODEL}, 400, "input"),
        ("embeddings", {"model": MODEL, "input": ""}, 400, "input"),
        ("embeddings", {"model": MODEL, "input": []}, 400, "input"),
        ("embeddings", {"model": MODEL, "input": ["a", 1]}, 400, "input"),
        ("embeddings", {"model": MODEL, "input": [1, -1]}, 400, "input"),
        ("embeddings", {"model": MODEL, "input": [[1], []]}, 400, "input"),
        ("embeddings", {"model": MODEL, "input": {"a": 1}}, 400, "input"),
        ("embeddings", {"model": MODEL, "input": "x", "dimensions": 0}, 400, "dimensions"),
        ("embeddings", {"model": MODEL, "input": "x", "encoding_format": "hex"}, 400, "encoding_format"),
        ("embeddings", {"model": "other", "input": "x"}, 404, "model"),
        ("rerank", {"query": "x", "documents": []}, 400, "documents"),
        ("rerank", {"query": "", "documents": ["x"]}, 400, "query"),
        ("rerank", {"documents": ["x"]}, 400, "query"),
        ("rerank", {"query": "x", "documents": ["x"], "top_n": 0}, 400, "top_n"),
        ("classify", {"input": []}, 400, "input"),
        ("chat/completions", {"model": MODEL, "messages": [{"role": "user", "content": "x"}]}, 400, "model"),
        ("completions", {"model": MODEL, "prompt": "x"}, 400, "model"),
    ],
)
async def test_what_is_wrong_is_named_in_openais_shape(path: str, body: Any, status: int, param: str) -> None:
    async with embedding() as (_, router, _):
        got, reply, _ = await router.post(f"/v1/{path}", body)
        assert (got, reply["error"]["param"]) == (status, param), reply
        assert set(reply["error"]) == {"message", "type", "param", "code"}


async def test_a_model_that_generates_makes_none() -> None:
    async with FakeWorker(WorkerConfig(served_model_name="m")) as fake, routed(fake.url) as router:
        status, reply, _ = await router.post("/v1/embeddings", {"model": "m", "input": "x"})
        assert (status, reply["error"]["code"]) == (400, "wrong_kind_of_model")
        status, reply, _ = await router.post("/v1/rerank", {"query": "x", "documents": ["x"]})
        assert (status, reply["error"]["code"]) == (503, "no_worker")


async def test_load_is_shared_and_a_dead_worker_costs_no_answer() -> None:
    async with embedding(workers=2) as (client, router, fakes):
        seen = set()
        for number in range(6):
            _, _, headers = await router.post("/v1/embeddings", {"model": MODEL, "input": [3, number + 3]})
            seen.add(headers["X-Warmpath-Worker"])
        assert len(seen) == 2
        await fakes[0].stop()
        for _ in range(3):
            assert (await client.embeddings.create(model=MODEL, input="x")).data
