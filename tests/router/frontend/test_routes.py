from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

import aiohttp
import msgspec
import openai
import pytest

from router.core import Target
from router.frontend.routes import Frontend
from router.frontend.server import listen
from router.frontend.tokenizer import ModelTokenizer
from sim import tinymodel
from tests.router.dispatch.fleet import MODEL, Stack, stack
from tests.router.dispatch.upstream import Upstream

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

ANSWER = "Größe: 🙂 — the end, my friend."
MESSAGES: list[Any] = [{"role": "user", "content": "Say something."}]
TOKENIZER = ModelTokenizer(tinymodel.PATH)
ANSWER_TOKENS = TOKENIZER._tokenizer.encode(ANSWER, add_special_tokens=False).ids


class Server:
    """The frontend on a port, before scripted engines."""

    def __init__(self, built: Stack, url: str, client: openai.AsyncOpenAI, session: aiohttp.ClientSession) -> None:
        self.built = built
        self.url = url
        self.client = client
        self.session = session

    async def post(self, path: str, body: Any, **headers: str) -> tuple[int, Any, Any]:
        data = body if isinstance(body, bytes) else msgspec.json.encode(body)
        async with self.session.post(self.url + path, data=data, headers=headers) as response:
            return response.status, await response.json(content_type=None), response.headers

    async def get(self, path: str) -> tuple[int, Any]:
        async with self.session.get(self.url + path) as response:
            return response.status, await response.json(content_type=None)


def speaking(mode: str = "cumulative", text_tokens: list[int] = ANSWER_TOKENS, **options: Any) -> Upstream:
    """An engine that says `ANSWER`, from wherever a prompt left off, and then stops."""
    upstream = Upstream(mode, **options)
    upstream.eos = tinymodel.EOS
    spoken = [*text_tokens, tinymodel.EOS]

    def answer(ids: list[int]) -> list[int]:
        said = max(count for count in range(len(spoken)) if ids[len(ids) - count :] == spoken[:count])
        return spoken[said:]

    upstream.answer = answer
    return upstream


@contextlib.asynccontextmanager
async def serving(*modes: str | Upstream, max_body_bytes: int = 2**20, **options: Any) -> AsyncIterator[Server]:
    upstreams = [speaking(mode) if isinstance(mode, str) else mode for mode in modes]
    async with stack(*upstreams, **options) as built:
        frontend = Frontend(built.fleet, built.dispatcher, lambda model: TOKENIZER, built.metrics)
        async with contextlib.AsyncExitStack() as parts, aiohttp.ClientSession() as session:
            url = await listen(frontend.application(max_body_bytes), "127.0.0.1", 0, parts)
            async with openai.AsyncOpenAI(base_url=url + "/v1", api_key="none", max_retries=0) as client:
                yield Server(built, url, client, session)


async def streamed_text(server: Server) -> str:
    stream = await server.client.chat.completions.create(model=MODEL, messages=MESSAGES, stream=True)
    return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])


# ---- with OpenAI's own client


async def test_a_chat() -> None:
    async with serving(speaking(cached_tokens=6)) as server:
        reply = await server.client.chat.completions.create(model=MODEL, messages=MESSAGES)
        prompt = (await TOKENIZER.chat(MESSAGES)).tolist()
        (body,) = server.built.upstreams[0].bodies
    (choice,) = reply.choices
    assert (choice.message.role, choice.message.content, choice.finish_reason) == ("assistant", ANSWER, "stop")
    assert reply.usage is not None
    assert (reply.usage.prompt_tokens, reply.usage.completion_tokens) == (len(prompt), len(ANSWER_TOKENS) + 1)
    assert reply.usage.prompt_tokens_details is not None
    assert reply.usage.prompt_tokens_details.cached_tokens == 6
    assert body["input_ids"] == prompt
    assert body["sampling_params"] == {"max_new_tokens": 4096 - len(prompt)}


@pytest.mark.parametrize("mode", ["cumulative", "incremental", "one_message"])
async def test_a_streamed_chat(mode: str) -> None:
    async with serving(mode) as server:
        options: Any = {"include_usage": True}
        stream = await server.client.chat.completions.create(
            model=MODEL, messages=MESSAGES, stream=True, stream_options=options
        )
        chunks = [chunk async for chunk in stream]
    *spoken, last = chunks
    assert "".join(chunk.choices[0].delta.content or "" for chunk in spoken) == ANSWER
    assert spoken[0].choices[0].delta.role == "assistant"
    assert spoken[-1].choices[0].finish_reason == "stop"
    assert last.usage is not None
    assert last.usage.completion_tokens == len(ANSWER_TOKENS) + 1
    assert len({chunk.id for chunk in chunks}) == 1


async def test_a_completion() -> None:
    async with serving("cumulative") as server:
        reply = await server.client.completions.create(model=MODEL, prompt="Say something.", max_tokens=100)
        assert (reply.choices[0].text, reply.choices[0].finish_reason) == (ANSWER, "stop")
        reply = await server.client.completions.create(model=MODEL, prompt="Say something.")
        assert (reply.choices[0].finish_reason, reply.usage and reply.usage.completion_tokens) == ("length", 16)


async def test_a_streamed_completion() -> None:
    async with serving("incremental") as server:
        stream = await server.client.completions.create(model=MODEL, prompt="x", max_tokens=100, stream=True)
        chunks = [chunk async for chunk in stream]
    assert "".join(chunk.choices[0].text for chunk in chunks) == ANSWER
    assert chunks[-1].choices[0].finish_reason == "stop"


async def test_a_prompt_of_tokens_reaches_the_engine_as_it_is() -> None:
    async with serving("cumulative") as server:
        await server.client.completions.create(model=MODEL, prompt=[5, 6, 7], max_tokens=100)
        assert server.built.upstreams[0].bodies[0]["input_ids"] == [5, 6, 7]


@pytest.mark.parametrize("streamed", [False, True])
async def test_a_stop_string_ends_the_answer_and_the_engines_work(streamed: bool) -> None:
    upstream = speaking("hang_mid", ANSWER_TOKENS, after=len(ANSWER_TOKENS) - 2)
    async with serving(upstream) as server:
        create = server.client.chat.completions.create
        if streamed:
            stream = await create(model=MODEL, messages=MESSAGES, stop=["e end"], stream=True)
            chunks = [chunk async for chunk in stream]
            text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
            reason = chunks[-1].choices[0].finish_reason
        else:
            reply = await create(model=MODEL, messages=MESSAGES, stop=["nothing", "e end"])
            text, reason = reply.choices[0].message.content or "", reply.choices[0].finish_reason
        await upstream.abort_called.wait()
        await upstream.left.wait()
    assert (text, reason) == ("Größe: 🙂 — th", "stop")


async def test_the_models() -> None:
    async with serving("cumulative") as server:
        assert [model.id async for model in server.client.models.list()] == [MODEL]
        assert (await server.client.models.retrieve(MODEL)).id == MODEL
        with pytest.raises(openai.NotFoundError):
            await server.client.models.retrieve("other/model")


# ---- failures


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize(
    ("mode", "status", "kind", "code"),
    [
        ("status_500", 502, openai.InternalServerError, "upstream_error"),
        ("cut", 502, openai.InternalServerError, "upstream_error"),
        ("malformed", 502, openai.InternalServerError, "upstream_error"),
        ("hang", 504, openai.InternalServerError, "upstream_timeout"),
        ("hang_before_token", 504, openai.InternalServerError, "upstream_timeout"),
        ("refuse", 400, openai.BadRequestError, "refused_by_engine"),
        ("refuse_in_stream", 400, openai.BadRequestError, "refused_by_engine"),
    ],
)
async def test_a_failure_before_the_first_token_has_a_status(
    mode: str, status: int, kind: type[openai.APIStatusError], code: str, streamed: bool
) -> None:
    async with serving(mode, impatient=True) as server:
        with pytest.raises(kind) as caught:
            await server.client.chat.completions.create(model=MODEL, messages=MESSAGES, stream=streamed)
    assert (caught.value.status_code, caught.value.code) == (status, code)
    assert "secret" not in str(caught.value)
    assert "127.0.0.1" not in str(caught.value)


@pytest.mark.parametrize("mode", ["hang_mid", "cut_mid", "end_mid", "abort_mid", "malformed_mid"])
async def test_a_failure_after_the_first_token_is_the_streams_last_event(mode: str) -> None:
    async with serving(speaking(mode), impatient=True) as server:
        body = msgspec.json.encode({"model": MODEL, "messages": MESSAGES, "stream": True})
        async with server.session.post(server.url + "/v1/chat/completions", data=body) as response:
            assert response.status == 200
            events = (await response.read()).removesuffix(b"\n\n").split(b"\n\n")
        error = msgspec.json.decode(events[-1].removeprefix(b"data: "))["error"]
        assert error["code"] == ("upstream_timeout" if mode == "hang_mid" else "upstream_error")
        assert b"data: [DONE]" not in events
        with pytest.raises(openai.APIError):
            await streamed_text(server)
        assert server.built.count("broken_streams_total", code=error["code"]) == 2


@pytest.mark.parametrize("mode", ["status_500", "cut", "malformed", "cut_mid", "hang", "hang_mid"])
async def test_with_a_second_worker_the_client_sees_no_failure(mode: str) -> None:
    async with serving(mode, "incremental", impatient=True) as server:
        assert await streamed_text(server) == ANSWER


async def test_failing_requests_disturb_no_others() -> None:
    async with serving("cumulative", "cut_mid", "incremental", "status_500") as server:

        async def good() -> str:
            reply = await server.client.chat.completions.create(model=MODEL, messages=MESSAGES)
            return reply.choices[0].message.content or ""

        async def bad() -> int:
            return (await server.post("/v1/chat/completions", {"model": MODEL}))[0]

        answers = await asyncio.gather(*(good() if i % 3 else bad() for i in range(45)))
    assert set(answers) == {ANSWER, 400}


async def test_no_worker() -> None:
    async with serving() as server:
        status, body, headers = await server.post("/v1/chat/completions", {"model": MODEL, "messages": MESSAGES})
        assert (status, body["error"]["code"], headers["Retry-After"]) == (503, "no_worker", "1")
        assert await server.get("/health") == (200, {"status": "no workers", "workers": 0, "models": []})


async def test_no_worker_that_may_take_it() -> None:
    async with serving("cumulative") as server:
        server.built.scheduler.set_available(Target("w0"), False)
        with pytest.raises(openai.InternalServerError) as caught:
            await server.client.chat.completions.create(model=MODEL, messages=MESSAGES)
    assert (caught.value.status_code, caught.value.code) == (503, "no_worker")
    assert caught.value.response.headers["Retry-After"] == "1"


async def test_an_unknown_model_names_the_known() -> None:
    async with serving("cumulative") as server:
        with pytest.raises(openai.NotFoundError, match=f"served here: {MODEL}") as caught:
            await server.client.chat.completions.create(model="gpt-9", messages=MESSAGES)
    assert caught.value.code == "model_not_found"


async def test_a_prompt_too_long_reaches_no_worker() -> None:
    async with serving("cumulative") as server:
        with pytest.raises(openai.BadRequestError, match="4096") as caught:
            await server.client.completions.create(model=MODEL, prompt="word " * 5000)
        assert (caught.value.code, caught.value.param) == ("context_length_exceeded", "prompt")
        assert server.built.upstreams[0].bodies == []


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/v1/chat/completions", {"model": MODEL, "messages": MESSAGES, "temperature": 9}, "temperature"),
        ("/v1/completions", {"model": MODEL, "prompt": [99_999]}, "prompt"),
        ("/v1/completions", {"model": MODEL, "prompt": []}, "prompt"),
        ("/v1/completions", {"model": MODEL, "prompt": ""}, "prompt"),
        ("/v1/completions", b"{", None),
        ("/explain", {"prompt": "x"}, "model"),
    ],
)
async def test_a_wrong_request(path: str, body: Any, param: str | None) -> None:
    async with serving("cumulative") as server:
        status, reply, headers = await server.post(path, body)
    assert (status, reply["error"]["type"], reply["error"]["param"]) == (400, "invalid_request_error", param)
    assert headers["X-Request-Id"]


async def test_wrong_routes_methods_and_sizes_have_the_same_shape() -> None:
    async with serving("cumulative", max_body_bytes=1000) as server:
        status, body, headers = await server.post("/v1/nothing", b"")
        assert (status, body["error"]["code"]) == (404, "unknown_route")
        assert headers["X-Request-Id"]
        status, body = await server.get("/v1/completions")
        assert (status, body["error"]["code"]) == (405, "method_not_allowed")
        status, body, _ = await server.post("/v1/completions", b" " * 2000)
        assert (status, body["error"]["code"]) == (413, "body_too_large")


async def test_a_fault_of_ours_tells_nothing_of_the_inside(caplog: pytest.LogCaptureFixture) -> None:
    async with serving("cumulative") as server:

        def fail(model: str) -> None:
            raise RuntimeError("the secret of the inside")

        server.built.fleet.context_tokens = fail
        request = {"model": MODEL, "messages": MESSAGES}
        status, body, headers = await server.post("/v1/chat/completions", request, **{"X-Request-Id": "mine-7"})
    assert (status, body["error"]["message"], headers["X-Request-Id"]) == (500, "internal error", "mine-7")
    assert "mine-7" in caplog.text
    assert "the secret of the inside" in caplog.text


async def test_a_fault_of_ours_within_a_stream() -> None:
    async with serving("one_more") as server:
        stream = await server.client.chat.completions.create(model=MODEL, messages=MESSAGES, stream=True)

        def fail(request_id: str, output_tokens: int) -> None:
            raise RuntimeError("the secret of the inside")

        server.built.scheduler.progress = fail
        server.built.upstreams[0].release.set()
        with pytest.raises(openai.APIError, match="internal error"):
            assert [chunk async for chunk in stream]


# ---- a client that leaves


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("mode", ["hang", "hang_before_token", "hang_mid"])
async def test_a_client_that_leaves_ends_the_engines_work(mode: str, streamed: bool) -> None:
    async with serving(speaking(mode), "cumulative") as server:
        first = server.built.upstreams[0]
        body = {"model": MODEL, "messages": MESSAGES, "stream": streamed}
        task = asyncio.create_task(server.post("/v1/chat/completions", body))
        await first.silent.wait()
        assert server.built.scheduler.statistics().requests == 1
        task.cancel()
        await asyncio.wait([task])
        await first.left.wait()
        await first.abort_called.wait()
        assert server.built.scheduler.statistics().requests == 0
        assert server.built.count("aborts_total", reason="left") == 1
        assert server.built.count("requests_total", endpoint="/v1/chat/completions", status="499") == 1
        assert server.built.count("requests_in_flight") == 0


# ---- the router's own routes


async def test_headers() -> None:
    async with serving("cumulative") as server:
        for streamed in (False, True):
            body = {"model": MODEL, "messages": MESSAGES, "stream": streamed}
            data = msgspec.json.encode(body)
            headers = {"X-Request-Id": "mine"}
            async with server.session.post(server.url + "/v1/chat/completions", data=data, headers=headers) as response:
                await response.read()
            assert response.headers["X-Warmpath-Worker"] == "w0/0"
            assert response.headers["X-Request-Id"] == "mine"
        async with server.session.get(server.url + "/live", headers={"X-Request-Id": "with space"}) as response:
            assert response.headers["X-Request-Id"] not in {"", "with space"}


async def test_equal_request_ids_are_no_clash() -> None:
    async with serving("cumulative") as server:
        body = {"model": MODEL, "messages": MESSAGES}
        replies = await asyncio.gather(
            *(server.post("/v1/chat/completions", body, **{"X-Request-Id": "same"}) for _ in range(8))
        )
    assert {status for status, _, _ in replies} == {200}


async def test_health_and_workers() -> None:
    async with serving("cumulative", "cumulative") as server:
        assert await server.get("/health") == (200, {"status": "ok", "workers": 2, "models": [MODEL]})
        server.built.fleet.workers = lambda: [{"worker_id": "w0"}, {"worker_id": "w1", "refused": "why"}]
        assert (await server.get("/health"))[1]["workers"] == 1
        assert await server.get("/live") == (200, {"status": "alive"})
        assert (await server.get("/workers"))[1]["workers"][1] == {"worker_id": "w1", "refused": "why"}


@pytest.mark.parametrize(
    "body", [{"model": MODEL, "messages": MESSAGES}, {"model": MODEL, "prompt": "Hi"}, {"input_ids": [5, 6, 7]}]
)
async def test_explain_shows_the_table_and_sends_nothing(body: dict[str, Any]) -> None:
    async with serving("cumulative", "cumulative") as server:
        status, reply, _ = await server.post("/explain", body)
        assert all(upstream.bodies == [] for upstream in server.built.upstreams)
    assert (status, reply["policy"], reply["chosen"]) == (200, "round-robin", {"worker_id": "w0", "rank": 0})
    assert [row["target"]["worker_id"] for row in reply["candidates"]] == ["w0", "w1"]
    assert [row["chosen"] for row in reply["candidates"]] == [True, False]


async def test_metrics_and_ignored_fields(caplog: pytest.LogCaptureFixture) -> None:
    async with serving(speaking(cached_tokens=4)) as server:
        body = {"model": MODEL, "messages": MESSAGES, "nvext": {}}
        for _ in range(2):
            await server.post("/v1/chat/completions", body)
        async with server.session.get(server.url + "/metrics") as response:
            text = await response.text()
        assert response.headers["Content-Type"].startswith("text/plain")
    assert 'warmpath_requests_total{endpoint="/v1/chat/completions",status="200"} 2.0' in text
    assert 'warmpath_ignored_fields_total{field="nvext"} 2.0' in text
    assert "warmpath_cached_tokens_total 8.0" in text
    assert f"warmpath_completion_tokens_total {2.0 * (len(ANSWER_TOKENS) + 1)}" in text
    assert "warmpath_ttft_seconds_count 2.0" in text
    assert "warmpath_e2e_seconds_count 2.0" in text
    assert "warmpath_itl_seconds_count" in text
    assert caplog.text.count("nvext") == 1


async def test_ignored_fields_have_bounded_names() -> None:
    async with serving("cumulative") as server:
        body = {"model": MODEL, "messages": MESSAGES, **{f"field{i}": 1 for i in range(100)}}
        await server.post("/v1/chat/completions", body)
        assert server.built.count("ignored_fields_total", field="other") == 68
