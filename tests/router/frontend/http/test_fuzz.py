"""Whatever bytes come, cut anywhere: every answer is one of HTTP's, and the server serves on."""

from __future__ import annotations

import asyncio
import itertools
from typing import TYPE_CHECKING

import uvloop
from hypothesis import given, settings
from hypothesis import strategies as st

from router.frontend import http as web
from tests.router.frontend.http.client import echo, serving
from tests.router.frontend.http.test_server import CHUNKED, GET, POST

if TYPE_CHECKING:
    from tests.router.frontend.http.client import Serving

LIMITS = web.Limits(head_bytes=500, body_bytes=200, waiting_requests=2, linger_seconds=0.05, body_seconds=1)
TOKENS = st.sampled_from(
    [b"\r\n", b"\n", b"\r\n\r\n", b" ", b"0\r\n\r\n", b"5\r\nhello\r\n", b"\0", b"\xff", b"GET ", b"HTTP/1.1", b"%", b":",
     b"Content-Length: 7\r\n", b"Transfer-Encoding: chunked\r\n", b"Connection: close\r\n", b"Expect: 100-continue\r\n",
     b"Connection: Upgrade\r\nUpgrade: websocket\r\n", b"x" * 300]
)  # fmt: skip
VALID = st.sampled_from([GET, POST, CHUNKED])


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """Requests with bytes lost, repeated or put in."""
    data = b"".join(draw(st.lists(VALID, min_size=1, max_size=4)))
    for _ in range(draw(st.integers(0, 3))):
        start, end = sorted(draw(st.tuples(*[st.integers(0, len(data))] * 2)))
        replacement = draw(st.one_of(TOKENS, st.binary(max_size=20), st.just(data[start:end] * 2)))
        data = data[:start] + replacement + data[end if draw(st.booleans()) else start :]
    return data


INPUT = st.one_of(mutated(), st.binary(max_size=400), st.lists(st.one_of(TOKENS, VALID), max_size=12).map(b"".join))


async def exchange(running: Serving, data: bytes, cuts: list[int]) -> None:
    edges = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    async with running.client() as client:
        try:
            await client.send(*[data[start:end] for start, end in itertools.pairwise(edges)])
            async with asyncio.timeout(0.02):
                while True:
                    reply = await client.reply(bodiless=b"HEAD" in data)
                    assert reply.status in {100, 200, 400, 408, 413, 429, 431}
                    if b"HEAD" in data:
                        break
        except (TimeoutError, ConnectionError, asyncio.IncompleteReadError):
            pass  # no request, or no further one


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(INPUT, st.lists(st.integers(0, 2000), max_size=4)), min_size=1, max_size=8))
def test_any_bytes(inputs: list[tuple[bytes, list[int]]]) -> None:
    async def run() -> None:
        async with serving(echo, LIMITS) as running:
            await asyncio.gather(*(exchange(running, data, cuts) for data, cuts in inputs))
            reply = await running.ask(POST)
            assert (reply.status, reply.body) == (200, b"POST /b hello")

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:  # as the router runs
        runner.run(run())
