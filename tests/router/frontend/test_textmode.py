"""Text mode, end to end: a client, the frontend, and engines that speak OpenAI's language themselves."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from typing import TYPE_CHECKING, Any

import aiohttp
import numpy as np
import pytest
from aiohttp import web

from events.blocks import sequence_hashes
from router.core import Scheduler, Target
from router.core.policy import create
from router.dispatch.dispatcher import Dispatcher
from router.dispatch.engine import EngineClient, EngineTimeouts
from router.dispatch.relay import Relay
from router.frontend.routes import Frontend
from router.frontend.server import listen
from router.frontend.tokenizer import ModelTokenizer
from router.metrics import Metrics
from sim import tinymodel
from tests.router.dispatch.fleet import BLOCK_SIZE, MODEL, StaticFleet

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from router.core import RoutingRequest
    from router.dispatch.errors import EngineError

TOKENIZER = ModelTokenizer(tinymodel.PATH)
PATIENT = EngineTimeouts(first_token_seconds=20, idle_seconds=20)
USAGE = {"prompt_tokens": 9, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 4}}
REPLY = json.dumps({"choices": [{"message": {"content": "ü"}}], "usage": USAGE}, indent=3).encode()
ROLE, HELLO, LAST = (
    b'data: {"choices": [{"delta": %s}]}\n\n' % delta
    for delta in (b'{"role": "assistant", "content": ""}', b'{"content": "hel"}', b'{"content": "lo"}')
)
ENDING = b'data: {"choices": [], "usage": %s}\n\ndata: [DONE]\n\n' % json.dumps(USAGE).encode()
ODDLY_SPACED = (
    b'{ "model" :"tiny",\n "messages": [{"role":"user", "content":"Say  \\u00fc."}], "tools": null, "x": 1.50 }'
)


def chat(**fields: Any) -> bytes:
    return json.dumps({"model": MODEL, "messages": [{"role": "user", "content": "Say something."}], **fields}).encode()


class Engine:
    """An engine's OpenAI routes; `mode` is the name of a `_mode_…` method."""

    def __init__(self, mode: str = "plain") -> None:
        self.mode = mode
        self.bodies: list[bytes] = []
        self.headers: list[Any] = []
        self.left = asyncio.Event()
        self.go_on = asyncio.Event()
        self.url = ""

    async def start(self) -> None:
        app = web.Application(client_max_size=2**30)
        app.add_routes([web.post("/v1/chat/completions", self.answer), web.post("/v1/completions", self.answer)])
        self._runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"

    async def stop(self) -> None:
        await self._runner.cleanup()

    async def answer(self, http: web.Request) -> web.StreamResponse:
        self.bodies.append(await http.read())
        self.headers.append(http.headers)
        try:
            return await getattr(self, f"_mode_{self.mode}")(http)
        except (asyncio.CancelledError, ConnectionResetError):
            self.left.set()
            raise

    async def _mode_plain(self, http: web.Request) -> web.StreamResponse:
        if b'"stream": true' in self.bodies[-1]:
            return await self._say(http, ROLE, HELLO, LAST, ENDING)
        return web.Response(body=REPLY, content_type="application/json")

    async def _mode_status_500(self, http: web.Request) -> web.StreamResponse:
        return web.Response(body=b"out of memory at /secret/path", status=500)

    async def _mode_refuse(self, http: web.Request) -> web.StreamResponse:
        return web.json_response({"object": "error", "message": "max_tokens is mad", "code": 400}, status=400)

    async def _mode_refuse_in_stream(self, http: web.Request) -> web.StreamResponse:
        return await self._say(http, b'data: {"error": {"message": "max_tokens is mad", "code": 400}}\n\n')

    async def _mode_fail_in_stream(self, http: web.Request) -> web.StreamResponse:
        return await self._say(http, b'data: {"error": {"message": "a fault", "code": 500}}\n\n')

    async def _mode_cut(self, http: web.Request) -> web.StreamResponse:
        assert http.transport is not None
        http.transport.abort()
        return web.Response()

    async def _mode_cut_mid(self, http: web.Request) -> web.StreamResponse:
        stream = await self._open(http, HELLO)
        await self.go_on.wait()
        assert http.transport is not None
        http.transport.abort()
        return stream

    async def _mode_slow(self, http: web.Request) -> web.StreamResponse:
        """The role at once; content when told to; then nothing."""
        stream = await self._open(http, ROLE)
        await self.go_on.wait()
        await stream.write(HELLO)
        await asyncio.Event().wait()
        return stream

    async def _mode_hang(self, http: web.Request) -> web.StreamResponse:
        self.go_on.set()
        await asyncio.Event().wait()
        return web.Response()

    async def _say(self, http: web.Request, *pieces: bytes) -> web.StreamResponse:
        stream = await self._open(http, *pieces)
        await stream.write_eof()
        return stream

    async def _open(self, http: web.Request, *pieces: bytes) -> web.StreamResponse:
        stream = web.StreamResponse(headers={"Content-Type": "text/event-stream; charset=utf-8"})
        await stream.prepare(http)
        for piece in pieces:
            await stream.write(piece)
        return stream


class Server:
    """The frontend in text mode before engines."""

    def __init__(self, engines: tuple[Engine, ...], ranks: int, tokenizes: bool, timeouts: EngineTimeouts) -> None:
        self.engines = engines
        self.scheduler = Scheduler(create("round-robin"), BLOCK_SIZE)
        self.metrics = Metrics()
        self.client = EngineClient(timeouts)
        self.failures: list[tuple[Target, str]] = []
        self.placed: list[RoutingRequest] = []
        self.freed: list[bool] = []
        self.first_tokens: list[int | None] = []
        fleet = StaticFleet(engines, ranks, context_tokens=4096)
        for name in fleet.urls:
            for rank in range(ranks):
                self.scheduler.add_target(Target(name, rank), capacity_tokens=10_000, model=MODEL)
        self._spy()
        dispatcher = Dispatcher(self.scheduler, self.client, fleet, self.metrics, block_size=BLOCK_SIZE)
        relay = Relay(self.scheduler, self.client, fleet, self.metrics, block_size=BLOCK_SIZE, on_failure=self._failed)
        self.frontend = Frontend(
            fleet, dispatcher, (lambda model: TOKENIZER) if tokenizes else None, self.metrics, relay
        )
        self.url = ""

    def _failed(self, target: Target, error: EngineError) -> None:
        self.failures.append((target, error.kind))

    def _spy(self) -> None:
        place, free, first_token = self.scheduler.place, self.scheduler.free, self.scheduler.first_token

        def placing(request: RoutingRequest, now: float) -> Any:
            self.placed.append(request)
            return place(request, now)

        def freed(request_id: str, now: float, **how: Any) -> None:
            self.freed.append(how["failed"])
            free(request_id, now, **how)

        def first(request_id: str, cached_tokens: int | None, now: float) -> None:
            self.first_tokens.append(cached_tokens)
            first_token(request_id, cached_tokens, now)

        self.scheduler.place, self.scheduler.free, self.scheduler.first_token = placing, freed, first

    def count(self, name: str, **labels: str) -> float:
        return self.metrics.registry.get_sample_value(f"warmpath_{name}", labels) or 0.0

    def check_all_freed(self) -> None:
        statistics = self.scheduler.statistics()
        assert statistics.requests == statistics.unknown_requests == statistics.repeated_first_tokens == 0
        assert len(self.freed) == statistics.placements
        assert self.count("requests_in_flight") == 0


class Asked:
    """A server, and a session to ask it with."""

    def __init__(self, server: Server, session: aiohttp.ClientSession) -> None:
        self.server = server
        self.session = session

    async def post(self, body: bytes, path: str = "/v1/chat/completions", **headers: str) -> tuple[int, bytes, Any]:
        async with self.session.post(self.server.url + path, data=body, headers=headers) as response:
            return response.status, await response.read(), response.headers


@contextlib.asynccontextmanager
async def serving(
    *modes: str, ranks: int = 1, tokenizes: bool = True, timeouts: EngineTimeouts = PATIENT
) -> AsyncIterator[Asked]:
    engines = tuple(Engine(mode) for mode in modes)
    async with contextlib.AsyncExitStack() as parts:
        for engine in engines:
            await engine.start()
            parts.push_async_callback(engine.stop)
        server = Server(engines, ranks, tokenizes, timeouts)
        parts.push_async_callback(server.client.close)
        session = await parts.enter_async_context(aiohttp.ClientSession())
        async with contextlib.AsyncExitStack() as listening:
            server.url = await listen(server.frontend.application(), "127.0.0.1", 0, listening)
            yield Asked(server, session)
        server.check_all_freed()


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
async def test_bytes_go_through_as_they_are(path: str) -> None:
    async with serving("plain") as asked:
        status, reply, headers = await asked.post(
            ODDLY_SPACED, path, Authorization="Bearer k", **{"X-Request-Id": "mine"}
        )
        (engine,) = asked.server.engines
    assert (status, reply) == (200, REPLY)
    assert headers["X-Warmpath-Worker"] == "w0/0"
    assert headers["X-Request-Id"] == engine.headers[0]["X-Request-Id"] == "mine"
    assert engine.headers[0]["Authorization"] == "Bearer k"
    assert engine.bodies == [ODDLY_SPACED]
    assert asked.server.first_tokens == [4]
    assert asked.server.freed == [False]
    assert asked.server.count("cached_tokens_total") == 4
    assert asked.server.count("ttft_seconds_count") == asked.server.count("e2e_seconds_count") == 1


async def test_a_stream_goes_through_as_it_is() -> None:
    async with serving("plain") as asked:
        status, reply, headers = await asked.post(chat(stream=True, stream_options={"include_usage": True}))
    assert (status, reply) == (200, ROLE + HELLO + LAST + ENDING)
    assert headers["Content-Type"] == "text/event-stream; charset=utf-8"
    assert headers["X-Warmpath-Worker"] == "w0/0"
    assert asked.server.freed == [False]
    assert len(asked.server.first_tokens) == 1
    assert asked.server.count("prompt_tokens_total") == 9


async def test_the_first_token_is_the_first_content() -> None:
    async with serving("slow") as asked:
        (engine,) = asked.server.engines
        async with asked.session.post(asked.server.url + "/v1/chat/completions", data=chat(stream=True)) as response:
            assert await response.content.readany() == ROLE
            assert asked.server.first_tokens == []
            engine.go_on.set()
            assert await response.content.readany() == HELLO
            assert asked.server.first_tokens == [None]
        await engine.left.wait()  # the client has left, and the engine's connection was closed for it
    assert asked.server.freed == [False]
    assert asked.server.count("aborts_total", reason="left") == 1


async def test_it_is_placed_by_its_tokens() -> None:
    messages = [{"role": "user", "content": [{"type": "text", "text": "A rather long text, " * 20}]}]
    async with serving("plain") as asked:
        await asked.post(chat(messages=messages))
        await asked.post(chat(messages=messages, cache_salt="other"))
        await asked.post(json.dumps({"model": MODEL, "prompt": [5] * 40}).encode(), "/v1/completions")
        tokens = await TOKENIZER.chat([{"role": "user", "content": "A rather long text, " * 20}])
    plain, salted, given = asked.server.placed
    np.testing.assert_array_equal(plain.hashes, sequence_hashes(tokens, BLOCK_SIZE))
    assert plain.prompt_tokens == len(tokens)
    assert not np.intersect1d(plain.hashes, salted.hashes).size
    assert (given.prompt_tokens, len(given.hashes)) == (40, 2)


async def test_a_known_prompt_is_placed_as_it_was_without_being_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving("plain") as asked:
        await asked.post(chat())
        await asked.post(chat(cache_salt="other"))

        async def unread(*arguments: Any) -> None:
            raise AssertionError("it was tokenized again")

        monkeypatch.setattr(TOKENIZER, "chat", unread)
        await asked.post(chat(temperature=0.5))
        await asked.post(chat(cache_salt="other", stream=True))
    first, salted, again, salted_again = asked.server.placed
    assert first.prompt_tokens == again.prompt_tokens
    np.testing.assert_array_equal(first.hashes, again.hashes)
    np.testing.assert_array_equal(salted.hashes, salted_again.hashes)
    assert not np.intersect1d(first.hashes, salted.hashes).size


async def test_what_cannot_be_tokenized_here_is_placed_by_load(caplog: pytest.LogCaptureFixture) -> None:
    picture = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:"}}]}]
    async with serving("plain") as asked:
        for _ in range(2):
            status, _, _ = await asked.post(chat(messages=picture, tools=[{"type": "function"}], n=2))
            assert status == 200
    assert [len(request.hashes) for request in asked.server.placed] == [0, 0]
    assert asked.server.count("untokenized_total") == 2
    assert caplog.text.count("by load alone") == 1


async def test_without_a_tokenizer_all_is_placed_by_load(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        async with serving("plain", tokenizes=False) as asked:
            assert (await asked.post(chat()))[0] == 200
            status, body, _ = await asked.post(chat(), "/explain")
    assert caplog.text.count("by load alone") == 1
    assert asked.server.placed[0].prompt_tokens == len(chat()) // 4
    assert (status, json.loads(body)["error"]["code"]) == (400, "unsupported_parameter")


async def test_a_rank_is_named_in_a_header() -> None:
    async with serving("plain", ranks=2) as asked:
        await asyncio.gather(*(asked.post(chat()) for _ in range(4)))
        (engine,) = asked.server.engines
    assert sorted(headers["X-Data-Parallel-Rank"] for headers in engine.headers) == ["0", "0", "1", "1"]


@pytest.mark.parametrize(
    ("mode", "kind", "streamed"),
    [
        ("status_500", "failed", False),
        ("status_500", "failed", True),
        ("cut", "unreachable", False),
        ("cut", "unreachable", True),
        ("fail_in_stream", "failed", True),
        ("hang", "timeout", False),
        ("hang", "timeout", True),
    ],
)
async def test_a_failure_before_the_first_byte_moves_the_request_on(mode: str, kind: str, streamed: bool) -> None:
    timeouts = PATIENT._replace(first_token_seconds=1.0) if mode == "hang" else PATIENT
    async with serving(mode, "plain", timeouts=timeouts) as asked:
        status, reply, headers = await asked.post(chat(stream=streamed))
    assert (status, headers["X-Warmpath-Worker"]) == (200, "w1/0")
    assert reply == (ROLE + HELLO + LAST + ENDING if streamed else REPLY)
    assert asked.server.freed == [True, False]
    assert asked.server.failures == [(Target("w0"), kind)]
    assert asked.server.count("migrations_total", reason=kind) == 1


@pytest.mark.parametrize(("mode", "streamed"), [("refuse", False), ("refuse", True), ("refuse_in_stream", True)])
async def test_a_refusal_is_the_engines_own(mode: str, streamed: bool) -> None:
    async with serving(mode, "plain") as asked:
        status, body, _ = await asked.post(chat(stream=streamed))
    assert status == 400
    assert json.loads(body)["error"]["message"] == "max_tokens is mad"
    assert asked.server.failures == []


async def test_when_all_fail() -> None:
    async with serving("status_500", "status_500") as asked:
        status, body, _ = await asked.post(chat())
    assert (status, json.loads(body)["error"]["code"]) == (502, "upstream_error")
    assert b"/secret/path" not in body


async def test_a_stream_that_breaks_off_ends_in_an_error() -> None:
    async with serving("cut_mid", "plain") as asked:
        (first, _) = asked.server.engines
        async with asked.session.post(asked.server.url + "/v1/chat/completions", data=chat(stream=True)) as response:
            assert await response.content.readany() == HELLO
            first.go_on.set()
            rest = await response.read()
    (event,) = [line for line in rest.split(b"\n") if line]
    assert json.loads(event.removeprefix(b"data: "))["error"]["code"] == "upstream_error"
    assert asked.server.freed == [True]
    assert asked.server.failures == [(Target("w0"), "failed")]
    assert asked.server.count("broken_streams_total", code="upstream_error") == 1


async def test_a_client_that_leaves_before_the_answer() -> None:
    async with serving("hang") as asked:
        (engine,) = asked.server.engines
        task = asyncio.ensure_future(asked.post(chat()))
        await engine.go_on.wait()
        task.cancel()
        await engine.left.wait()
    assert asked.server.freed == [True]
    assert asked.server.count("aborts_total", reason="left") == 1


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [(b"{", 400, None), (b"[1]", 400, None), (chat(model="other"), 404, "model_not_found")],
)
async def test_what_no_engine_is_asked(body: bytes, status: int, code: str | None) -> None:
    async with serving("plain") as asked:
        answer, reply, _ = await asked.post(body)
        assert asked.server.engines[0].bodies == []
    assert (answer, json.loads(reply)["error"]["code"]) == (status, code)
