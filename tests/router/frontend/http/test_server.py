"""The server against raw bytes: framing, limits, order, and clients that leave."""

from __future__ import annotations

import asyncio
import re
from typing import Any

import pytest

from router.frontend import http as web
from tests.router.frontend.http.client import echo, serving

GET = b"GET /a HTTP/1.1\r\nHost: x\r\n\r\n"
POST = b"POST /b?c=%41&d HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello"
CHUNKED = (
    b"POST /c HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nhel\r\n2;x=y\r\nlo\r\n0\r\nT: 1\r\n\r\n"
)
LIMITS = web.Limits(head_bytes=1000, body_bytes=100, waiting_requests=3, linger_seconds=0.2)


class Gate:
    """A handler that waits, and notes who left."""

    def __init__(self) -> None:
        self.entered = asyncio.Semaphore(0)
        self.open = asyncio.Event()
        self.left = asyncio.Event()
        self.running = 0

    async def __call__(self, request: web.Request) -> web.Response:
        self.running += 1
        assert self.running == 1
        self.entered.release()
        try:
            await self.open.wait()
        except asyncio.CancelledError:
            self.left.set()
            raise
        finally:
            self.running -= 1
        return await echo(request)


async def streamed(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(headers={"X-Kind": "stream"})
    await response.prepare(request)
    for piece in (b"one ", b"", b"two"):
        await response.write(piece)
    return response


# ---- what is understood


@pytest.mark.parametrize("size", [1, 2, 7, 1000])
@pytest.mark.parametrize(
    ("request_bytes", "body"), [(GET, b"GET /a "), (POST, b"POST /b hello"), (CHUNKED, b"POST /c hello")]
)
async def test_requests_may_be_cut_anywhere(request_bytes: bytes, body: bytes, size: int) -> None:
    pieces = [request_bytes[at : at + size] for at in range(0, len(request_bytes), size)]
    async with serving() as running:
        reply = await running.ask(*pieces)
    assert (reply.status, reply.body) == (200, body)
    assert re.fullmatch(r"\w{3}, \d\d \w{3} \d{4} \d\d:\d\d:\d\d GMT", reply.headers["date"])


async def test_one_connection_serves_many_requests() -> None:
    async with serving() as running, running.client() as client:
        for request, body in ((GET, b"GET /a "), (POST, b"POST /b hello"), (CHUNKED, b"POST /c hello")) * 3:
            await client.send(request)
            assert (await client.reply()).body == body


async def test_requests_sent_at_once_are_answered_in_order() -> None:
    gate = Gate()
    async with serving(gate, LIMITS) as running, running.client() as client:
        await client.send(GET + POST + CHUNKED + GET)
        await gate.entered.acquire()
        gate.open.set()
        bodies = [(await client.reply()).body for _ in range(4)]
        assert bodies == [b"GET /a ", b"POST /b hello", b"POST /c hello", b"GET /a "]
        await client.send(GET)
        assert (await client.reply()).status == 200


async def test_what_a_handler_sees() -> None:
    seen: list[Any] = []

    async def handler(request: web.Request) -> web.Response:
        seen.append((request.query, dict(request.headers), request.path, request.version))
        return web.Response(status=204)

    async with serving(handler) as running, running.client() as client:
        await client.send(b"GET /p%20q/%C3%BC?a=1&b=&a=%26 HTTP/1.1\r\nhOsT: x\r\nX-A: 1\r\nx-a: 2\r\n\r\n")
        reply = await client.reply(bodiless=True)
        await client.send(b"GET http://host:1/path HTTP/1.1\r\nHost: x\r\n\r\n")
        await client.reply(bodiless=True)
    assert "content-length" not in reply.headers
    assert seen[0] == ({"a": "&", "b": ""}, {"host": "x", "x-a": "1, 2"}, "/p q/ü", "1.1")
    assert seen[1][2] == "/path"


async def test_a_stream_is_chunked_and_the_connection_stays() -> None:
    async with serving(streamed) as running, running.client() as client:
        for _ in range(2):
            await client.send(GET)
            reply = await client.reply()
            assert (reply.body, reply.headers["x-kind"]) == (b"one two", "stream")


@pytest.mark.parametrize("handler", [echo, streamed])
async def test_head_has_no_body(handler: Any) -> None:
    async with serving(handler) as running, running.client() as client:
        for _ in range(2):
            await client.send(GET.replace(b"GET", b"HEAD"))
            assert (await client.reply(bodiless=True)).status == 200


async def test_http_1_0_has_no_chunks() -> None:
    async with serving(streamed) as running, running.client() as client:
        await client.send(b"GET /a HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
        reply = await client.reply()
        assert (reply.headers["connection"], reply.body) == ("close", b"one two")
    async with serving() as running, running.client() as client:
        await client.send(b"GET /a HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
        assert (await client.reply()).headers["connection"] == "keep-alive"
        await client.send(b"GET /a HTTP/1.0\r\n\r\n")
        assert (await client.reply()).headers["connection"] == "close"
        assert await client.ended() == b""


async def test_close_is_honoured() -> None:
    async with serving() as running, running.client() as client:
        await client.send(GET.replace(b"Host", b"Connection: close\r\nHost") + GET)
        assert (await client.reply()).headers["connection"] == "close"
        assert await client.ended() == b""


async def test_a_client_may_ask_before_it_sends_a_body() -> None:
    async with serving() as running, running.client() as client:
        head, _, body = POST.partition(b"\r\n\r\n")
        await client.send(head + b"\r\nExpect: 100-continue\r\n\r\n")
        assert (await client.reply()).status == 100
        await client.send(body)
        assert (await client.reply()).body == b"POST /b hello"


async def test_an_upgrade_is_not_taken_up() -> None:
    async with serving() as running, running.client() as client:
        await client.send(GET.replace(b"Host", b"Connection: Upgrade\r\nUpgrade: h2c\r\nHost"))
        reply = await client.reply()
        assert (reply.status, reply.headers["connection"]) == (200, "close")
        assert await client.ended() == b""


# ---- what is refused


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"nonsense\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
        (b"GET /a HTTP/1.1\r\n\r\n", 400),
        (b"GET a HTTP/1.1\r\nHost: x\r\n\r\n", 400),
        (b"GET /a HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", 400),
        (b"POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
        (b"POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n", 400),
        (b"POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999999999999\r\n\r\n", 400),
        (b"POST /a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", 400),
        (b"GET /a HTTP/1.1\r\nHost: x\r\nX\x00Y: 1\r\n\r\n", 400),
        (b"POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: 101\r\n\r\n", 413),
        (b"POST /a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%b" % (101, b"x" * 101), 413),
    ],
)
async def test_what_is_no_request_is_refused_and_the_connection_ends(sent: bytes, status: int) -> None:
    async with serving(limits=LIMITS) as running, running.client() as client:
        await client.send(sent)
        reply = await client.reply()
        assert (reply.status, reply.headers["connection"]) == (status, "close")
        assert await client.ended() == b""
    assert running.application.refused == [status]


async def test_a_head_without_end_is_refused() -> None:
    async with serving(limits=LIMITS) as running, running.client() as client:
        await client.send(b"GET /a HTTP/1.1\r\nHost: x\r\n")
        await asyncio.sleep(0.01)  # bytes that share the head's first read are not counted
        await client.send(b"X-Long: ", *[b"y" * 300] * 4)
        assert (await client.reply()).status == 431


async def test_a_refusal_is_read_even_by_a_client_that_still_sends() -> None:
    async with serving(limits=LIMITS) as running, running.client() as client:
        await client.send(b"POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: 3000000\r\n\r\n", *[b"z" * 100_000] * 10)
        assert (await client.reply()).status == 413


async def test_a_refusal_waits_for_the_answers_before_it() -> None:
    gate = Gate()
    async with serving(gate, LIMITS) as running, running.client() as client:
        await client.send(GET + b"nonsense\r\n\r\n")
        await gate.entered.acquire()
        gate.open.set()
        assert [(await client.reply()).status for _ in range(2)] == [200, 400]


async def test_too_many_requests_at_once() -> None:
    gate = Gate()
    async with serving(gate, LIMITS) as running, running.client() as client:
        await client.send(GET * 5)
        gate.open.set()
        assert [(await client.reply()).status for _ in range(5)] == [200, 200, 200, 200, 429]
        assert await client.ended() == b""


# ---- time


@pytest.mark.parametrize("part", [b"GET /a HT", POST[:-2]])
async def test_a_request_that_does_not_end(part: bytes) -> None:
    async with serving(limits=web.Limits(head_seconds=0.05, body_seconds=0.05)) as running, running.client() as client:
        await client.send(part)
        assert (await client.reply()).status == 408
        assert await client.ended() == b""


async def test_an_idle_connection_is_closed() -> None:
    async with serving(limits=web.Limits(keepalive_seconds=0.05)) as running, running.client() as client:
        await client.send(GET)
        assert (await client.reply()).status == 200
        assert await client.ended() == b""


async def test_a_client_that_takes_nothing_is_left() -> None:
    left = asyncio.Event()

    async def endless(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        try:
            while True:
                await response.write(b"x" * 100_000)
        finally:
            left.set()

    async with serving(endless, web.Limits(write_seconds=0.1)) as running, running.client() as client:
        await client.send(GET)
        await left.wait()


async def test_a_slow_client_gets_all_of_a_large_answer() -> None:
    async def large(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        for number in range(50):
            await response.write(bytes([number]) * 100_000)
        return response

    async with serving(large) as running, running.client() as client:
        await client.send(GET)
        await asyncio.sleep(0.02)
        assert (await client.reply()).body == b"".join(bytes([number]) * 100_000 for number in range(50))


# ---- who leaves


@pytest.mark.parametrize("how", ["close", "reset"])
async def test_a_client_that_leaves_cancels_its_handler(how: str) -> None:
    gate = Gate()
    async with serving(gate) as running:
        async with running.client() as client:
            await client.send(GET)
            await gate.entered.acquire()
            if how == "reset":
                client.reset()
        await gate.left.wait()


async def test_a_client_that_leaves_while_others_wait_behind_it() -> None:
    gate = Gate()
    async with serving(gate) as running:
        async with running.client() as client:
            await client.send(GET)
            await gate.entered.acquire()
        await gate.left.wait()
        gate.open.set()
        assert (await running.ask(GET)).status == 200


async def test_a_write_after_the_client_has_left_is_an_error() -> None:
    failed: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def stubborn(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            try:
                await response.write(b"x")
            except ConnectionResetError as error:
                failed.set_result(str(error))
            raise
        return response

    async with serving(stubborn) as running:
        async with running.client() as client:
            await client.send(GET)
            await client.reader.readuntil(b"\r\n\r\n")
        assert "left" in await failed


@pytest.mark.parametrize("begun", [False, True])
async def test_a_handler_that_fails_costs_its_connection_alone(begun: bool, caplog: pytest.LogCaptureFixture) -> None:
    async def failing(request: web.Request) -> web.Response:
        if begun:
            await web.StreamResponse().prepare(request)
        raise RuntimeError("a fault")

    async with serving(failing) as running, running.client() as client:
        await client.send(GET)
        if begun:
            await client.reader.readuntil(b"\r\n\r\n")
        with pytest.raises((ConnectionResetError, asyncio.IncompleteReadError)):
            await client.reply()
    assert "a fault" in caplog.text


async def test_a_header_of_two_lines_is_never_sent(caplog: pytest.LogCaptureFixture) -> None:
    async def splitting(request: web.Request) -> web.Response:
        return web.Response(headers={"X-A": "1\r\nX-B: 2"})

    async with serving(splitting) as running, running.client() as client:
        await client.send(GET)
        with pytest.raises((ConnectionResetError, asyncio.IncompleteReadError)):
            await client.reply()
    assert "line break" in caplog.text


# ---- the end


async def test_a_stop_lets_running_requests_end() -> None:
    gate = Gate()
    async with serving(gate) as running, running.client() as idle, running.client() as client:
        await client.send(GET)
        await gate.entered.acquire()
        stopping = asyncio.create_task(running.server.close(5.0))
        assert await idle.ended() == b""
        gate.open.set()
        reply = await client.reply()
        assert (reply.status, reply.headers["connection"]) == (200, "close")
        await stopping
        with pytest.raises(ConnectionRefusedError):
            await running.ask(GET)


async def test_a_stop_cancels_what_does_not_end() -> None:
    gate = Gate()
    async with serving(gate) as running, running.client() as client:
        await client.send(GET)
        await gate.entered.acquire()
        await running.server.close(0.01)
        assert gate.left.is_set()
        assert repr(running.server) == "Server(1 addresses, 0 connections)"
