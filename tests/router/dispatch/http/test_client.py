"""The client before servers that behave, and servers that do not; on real sockets."""

from __future__ import annotations

import asyncio
import os
import random
import socket
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from router.dispatch.http import (
    ConnectFailed,
    ConnectionLost,
    HttpClient,
    MalformedResponse,
    PoolFull,
    TimedOut,
)
from tests.router.dispatch.http.raw import Caller, RawServer, chunked, plain, saying

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

SOON = 0.05
PATIENCE = 30.0


def within(seconds: float) -> float:
    return asyncio.get_running_loop().time() + seconds


@pytest.fixture
async def client() -> AsyncIterator[HttpClient]:
    client = HttpClient()
    yield client
    client._check()
    await client.close()


async def post(client: HttpClient, server: RawServer, body: bytes = b"{}") -> bytes:
    response = await client.post(server.url + "/x", body, within(PATIENCE))
    return await response.read_all(2**30)


async def until(condition: object) -> None:
    """Until it holds; a test's own timeout is the limit."""
    while not condition():  # type: ignore[operator]
        await asyncio.sleep(0)


async def echo(caller: Caller) -> None:
    while True:
        body = await caller.request()
        await caller.say(chunked([body[:1], body[1:]]))


async def test_what_is_sent(client: HttpClient) -> None:
    async with RawServer(saying(plain(b"ok"))).running() as server:
        response = await client.post(f"{server.url}/a/b?c=d", b"[1]", within(PATIENCE), {"X-A": "1"})
        assert (response.status, await response.read_all(10)) == (200, b"ok")
        (head,) = server.callers[0].requests
    authority = server.url.removeprefix("http://")
    assert head.decode().split("\r\n") == [
        "POST /a/b?c=d HTTP/1.1",
        f"Host: {authority}",
        "X-A: 1",
        "Content-Length: 3",
        "",
        "",
    ]


async def test_large_bodies_both_ways(client: HttpClient) -> None:
    body = random.Random(1).randbytes(20_000_000)
    async with RawServer(echo).running() as server:
        assert await post(client, server, body) == body


async def test_the_connection_used_last_is_used_next(client: HttpClient) -> None:
    async with RawServer(echo).running() as server:
        await asyncio.gather(*(post(client, server, b"%d" % n) for n in range(4)))
        opened = client.statistics().opened
        for n in range(10):
            assert await post(client, server, b"%d" % n) == b"%d" % n
        assert client.statistics().opened == opened
        assert max(len(caller.requests) for caller in server.callers) >= 10
        assert client.statistics().idle == opened


async def test_idle_connections_are_closed() -> None:
    client = HttpClient(keepalive_seconds=SOON)
    async with RawServer(echo).running() as server:
        await asyncio.gather(*(post(client, server) for _ in range(3)))
        await until(lambda: client.statistics().open == 0)
        await post(client, server)
        assert client.statistics().stale == 0
        client._check()
    await client.close()


async def test_a_kept_connection_that_was_closed_costs_nothing_but_another(client: HttpClient) -> None:
    async with RawServer(saying(plain(b"once"), close=True)).running() as server:
        for _ in range(5):
            assert await post(client, server) == b"once"
        assert len(server.callers) == 5


async def test_a_request_lost_on_a_kept_connection_is_sent_again(client: HttpClient) -> None:
    async def script(caller: Caller) -> None:
        await caller.request()
        await caller.say(plain(b"ok"))
        if caller is server.callers[0]:
            await caller.request()  # the second request is taken, and the connection closed without a word
        else:
            await caller.gone()

    async with RawServer(script).running() as server:
        assert await post(client, server) == b"ok"
        assert await post(client, server, b"again") == b"ok"
        assert [len(caller.requests) for caller in server.callers] == [2, 1]
    assert client.statistics().stale == 1


async def test_a_request_lost_on_a_new_connection_is_not_sent_again(client: HttpClient) -> None:
    async with RawServer(saying(b"", close=True)).running() as server:
        with pytest.raises(ConnectionLost, match="disconnected") as caught:
            await post(client, server)
        assert not caught.value.answered
        assert len(server.callers) == 1


async def test_an_answer_begun_is_not_asked_for_again(client: HttpClient) -> None:
    async with RawServer(saying(plain(b"ok"), b"HTTP/1.1 2", close=True)).running() as server:
        await post(client, server)
        with pytest.raises(ConnectionLost) as caught:
            await post(client, server)
        assert caught.value.answered
        assert len(server.callers) == 1


async def test_nobody_there(client: HttpClient) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        with pytest.raises(ConnectFailed):
            await client.post(f"http://127.0.0.1:{taken.getsockname()[1]}/", b"", within(PATIENCE))


async def test_a_server_that_never_accepts_is_given_up() -> None:
    client = HttpClient(connect_seconds=SOON)
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        port = full.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)), pytest.raises(ConnectFailed, match="not in time"):
            await asyncio.gather(*(client.post(f"http://127.0.0.1:{port}/", b"", within(PATIENCE)) for _ in range(3)))
    await client.close()


@pytest.mark.parametrize("said", [b"", b"HTTP/1.1 200 OK\r\nContent-"])
async def test_no_answer_in_time(client: HttpClient, said: bytes) -> None:
    async with RawServer(saying(said)).running() as server:
        with pytest.raises(TimedOut, match="no answer in time"):
            await client.post(server.url, b"", within(SOON))
        assert client.statistics().open == 0


async def test_silence_within_an_answer(client: HttpClient) -> None:
    async with RawServer(saying(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc")).running() as server:
        response = await client.post(server.url, b"", within(PATIENCE))
        assert await response.read() == b"abc"
        response.deadline = within(SOON)
        with pytest.raises(TimedOut, match="no further answer"):
            await response.read()
        assert client.statistics().open == 0


async def test_a_reader_that_takes_its_time_does_not_time_out(client: HttpClient) -> None:
    async with RawServer(saying(plain(b"abc"))).running() as server:
        response = await client.post(server.url, b"", within(SOON))
        deadline = within(2 * SOON)
        await until(lambda: within(0) > deadline)
        assert await response.read_all(10) == b"abc"


async def test_slow_bytes(client: HttpClient) -> None:
    answer = chunked([b"slow", b"bytes"])

    async def script(caller: Caller) -> None:
        await caller.request()
        for place in range(len(answer)):
            await caller.say(answer[place : place + 1])
            await asyncio.sleep(0)

    async with RawServer(script).running() as server:
        assert await post(client, server) == b"slowbytes"


async def test_a_slow_reader_makes_the_server_wait(client: HttpClient) -> None:
    sent = 0

    async def script(caller: Caller) -> None:
        nonlocal sent
        await caller.request()
        await caller.say(b"HTTP/1.1 200 OK\r\nContent-Length: 100000000\r\n\r\n")
        for _ in range(1000):
            await caller.say(b"x" * 100_000)
            sent += 100_000

    async with RawServer(script).running() as server:
        response = await client.post(server.url, b"", within(PATIENCE))
        before = -1
        while before != sent:  # until it does not get any further
            before = sent
            for _ in range(200):
                await asyncio.sleep(0)
        assert sent < 50_000_000
        assert len(await response.read_all(2**30)) == 100_000_000


async def test_a_body_larger_than_wanted(client: HttpClient) -> None:
    async with RawServer(saying(plain(b"x" * 1000))).running() as server:
        response = await client.post(server.url, b"", within(PATIENCE))
        with pytest.raises(MalformedResponse, match="more than 10 bytes"):
            await response.read_all(10)


async def test_as_many_connections_as_may_be() -> None:
    client = HttpClient(max_connections=2)
    async with RawServer(saying(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n")).running() as server:
        held = [await client.post(server.url, b"", within(PATIENCE)) for _ in range(2)]
        with pytest.raises(PoolFull, match="all 2 connections"):
            await client.post(server.url, b"", within(PATIENCE))
        held[0].close()
        await client.post(server.url, b"", within(PATIENCE))
        client._check()
    await client.close()


@pytest.mark.parametrize("rounds", [0, 1, 2, 3, 5, 8, 13, 21])
async def test_a_request_cancelled_at_any_point(client: HttpClient, rounds: int) -> None:
    """Its connection is closed or idle, never in between; and the client goes on."""
    async with RawServer(echo).running() as server:
        for _ in range(3):
            task = asyncio.ensure_future(post(client, server, b"given up"))
            for _ in range(rounds):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            statistics = client.statistics()
            assert statistics.open == statistics.idle
            client._check()
            assert await post(client, server, b"next") == b"next"


async def test_many_at_once_some_cancelled(client: HttpClient) -> None:
    chance = random.Random(7)
    async with RawServer(echo).running() as server:
        tasks = [asyncio.ensure_future(post(client, server, b"%d" % n)) for n in range(200)]
        while any(not task.done() for task in tasks):
            chance.choice(tasks).cancel()
            client._check()
            await asyncio.sleep(0)
        answers = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(
            isinstance(answer, asyncio.CancelledError) or answer == b"%d" % n for n, answer in enumerate(answers)
        )
        assert await post(client, server, b"after") == b"after"
        statistics = client.statistics()
        assert statistics.open == statistics.idle


async def test_no_file_descriptor_is_left() -> None:
    def descriptors() -> int:
        return len(os.listdir(Path("/proc/self/fd")))  # noqa: PTH208 - the listing itself must not be open while it is counted

    client = HttpClient()
    async with RawServer(echo).running() as server:
        await post(client, server)
        await client.close()  # what a loop opens once and for all is open now
    before = descriptors()
    async with RawServer(echo).running() as server:
        for count in (1, 20):
            await asyncio.gather(*(post(client, server) for _ in range(count)))
        response = await client.post(server.url, b"", within(PATIENCE))
        response.close()
        await client.close()
        assert client.statistics().open == 0
    await until(lambda: descriptors() <= before)


@pytest.mark.parametrize(
    "url", ["ftp://host/", "http:///x", "http://ho st/", "host:80", "http://h/\r\nX: y", "http://h/ü"]
)
async def test_what_is_no_url(client: HttpClient, url: str) -> None:
    with pytest.raises(ValueError, match="URL"):
        await client.post(url, b"", within(PATIENCE))


async def test_a_header_cannot_bring_another(client: HttpClient) -> None:
    with pytest.raises(ValueError, match="line break"):
        await client.post("http://127.0.0.1:1/", b"", within(PATIENCE), {"X": "a\r\nY: b"})


async def test_get_has_no_body(client: HttpClient) -> None:
    async with RawServer(saying(plain(b"fine"))).running() as server:
        response = await client.get(server.url + "/health", within(PATIENCE))
        assert (response.status, await response.read_all(100)) == (200, b"fine")
    assert server.callers[0].requests[0].startswith(b"GET /health HTTP/1.1\r\n")


async def test_what_is_dropped_fails_and_is_not_sent_again(client: HttpClient) -> None:
    requests = []

    async def script(caller: Caller) -> None:
        requests.append(await caller.request())
        await caller.say(plain(b"first"))
        requests.append(await caller.request())  # on the connection that was kept, and nothing is said
        await caller.gone()

    async with RawServer(script).running() as server:
        assert await post(client, server) == b"first"
        stuck = asyncio.create_task(post(client, server))
        await until(lambda: len(requests) == 2)
        assert client.drop(server.url) == 1
        with pytest.raises(ConnectionLost, match="given up by this side"):
            await stuck
        assert len(requests) == 2
        assert client.drop(server.url) == 0
    assert client.drop("http://127.0.0.1:1") == 0
