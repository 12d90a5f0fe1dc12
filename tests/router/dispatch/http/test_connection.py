"""What is made of the bytes of an answer, however they are cut; no network."""

from __future__ import annotations

import asyncio
import itertools
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.dispatch.http.connection import MAX_HEAD_BYTES, Connection
from router.dispatch.http.errors import ConnectionLost, HttpError, MalformedResponse
from router.dispatch.http.response import BUFFER_BYTES
from tests.router.dispatch.http.raw import FakeTransport, chunked, plain

if TYPE_CHECKING:
    from collections.abc import Iterable

    from router.dispatch.http.response import Response

LATER = 1e9


class Owner:
    def __init__(self) -> None:
        self.calls: list[str] = []

    def released(self, connection: Connection) -> None:
        assert connection.usable
        self.calls.append("released")

    def lost(self, connection: Connection) -> None:
        assert not connection.usable
        self.calls.append("lost")


class Wire:
    """A connection with a request under way."""

    def __init__(self) -> None:
        self.owner = Owner()
        self.transport = FakeTransport()
        self.connection = Connection(self.owner, asyncio.get_running_loop())
        self.connection.connection_made(self.transport)
        self.response = self.connection.request(b"head", b"body", LATER)

    def feed(self, pieces: Iterable[bytes]) -> None:
        for piece in pieces:
            self.connection.data_received(piece)


def cut(data: bytes, places: set[int]) -> list[bytes]:
    """The data in pieces, cut at these places (modulo its length)."""
    edges = sorted({0, len(data), *(place % len(data) for place in places)})
    return [data[start:end] for start, end in itertools.pairwise(edges)]


async def everything(response: Response) -> bytes:
    return await response.read_all(2**30)


bodies = st.lists(st.binary(max_size=40), max_size=6)
places = st.sets(st.integers(0, 500), max_size=12)


@given(pieces=bodies, places=places, framing=st.sampled_from(["length", "chunks", "eof"]), interim=st.integers(0, 2))
def test_an_answer_cut_anywhere(pieces: list[bytes], places: set[int], framing: str, interim: int) -> None:
    async def check() -> None:
        wire = Wire()
        body = b"".join(pieces)
        answer = {
            "length": plain(body, "X-One: 1"),
            "chunks": chunked(pieces, "X-One: 1"),
            "eof": b"HTTP/1.1 200 OK\r\nX-One: 1\r\n\r\n" + body,
        }[framing]
        wire.feed(cut(b"HTTP/1.1 100 Continue\r\nX-One: 0\r\n\r\n" * interim + answer, places))
        if framing == "eof":
            assert not wire.response.complete
            wire.connection.connection_lost(None)
        assert (await wire.response.head()).status == 200
        assert wire.response.header(b"x-one") == b"1"
        assert await everything(wire.response) == body
        assert await wire.response.read() == b""
        assert wire.owner.calls == (["lost"] if framing == "eof" else ["released"])

    asyncio.run(check())


@given(pieces=bodies, places=places, kept=st.floats(0, 1, exclude_max=True), chunks=st.booleans())
def test_an_answer_cut_short(pieces: list[bytes], places: set[int], kept: float, chunks: bool) -> None:
    """Whatever was complete is given; then comes the error, never an end."""

    async def check() -> None:
        wire = Wire()
        answer = chunked(pieces) if chunks else plain(b"".join(pieces))
        begun = answer[: int(len(answer) * kept)]
        wire.feed(cut(begun, places) if begun else [])
        wire.connection.connection_lost(None)
        with pytest.raises(ConnectionLost) as caught:
            await everything(await wire.response.head())
        assert caught.value.answered == bool(begun)
        assert not wire.response.complete
        assert wire.owner.calls == ["lost"]

    asyncio.run(check())


@given(data=st.binary(min_size=1, max_size=200), places=places)
def test_garbage_is_an_error_or_nothing(data: bytes, places: set[int]) -> None:
    async def check() -> None:
        wire = Wire()
        wire.feed(cut(data, places))
        wire.connection.connection_lost(None)
        with pytest.raises(HttpError):
            await everything(await wire.response.head())

    asyncio.run(check())


async def test_pieces_of_one_read_come_together() -> None:
    wire = Wire()
    wire.feed([chunked([b"a", b"b", b"c"])])
    assert await wire.response.read() == b"abc"


@pytest.mark.parametrize("garbage", [b"x", b"HTTP/1.1 200 OK\r\n", b"\0" * 100])
async def test_garbage_behind_an_answer_spoils_only_the_connection(garbage: bytes) -> None:
    wire = Wire()
    wire.feed([plain(b"good") + garbage])
    assert await everything(wire.response) == b"good"
    assert wire.owner.calls == ["lost"]


async def test_bytes_that_nobody_asked_for_close_an_idle_connection() -> None:
    wire = Wire()
    wire.feed([plain(b"good")])
    wire.feed([b"HTTP/1.1 408 Request Timeout\r\n\r\n"])
    assert wire.owner.calls == ["released", "lost"]
    assert wire.transport.aborted


@pytest.mark.parametrize(
    "answer",
    [plain(b"x", "Connection: close"), b"HTTP/1.0 200 OK\r\nContent-Length: 1\r\n\r\nx"],
    ids=["close", "http/1.0"],
)
async def test_a_connection_that_the_server_will_close_is_not_kept(answer: bytes) -> None:
    wire = Wire()
    wire.feed([answer])
    assert await everything(wire.response) == b"x"
    assert wire.owner.calls == ["lost"]


async def test_an_answer_before_the_request_was_sent_spoils_the_connection() -> None:
    wire = Wire()
    wire.transport.unsent = 1
    wire.feed([plain(b"too large")])
    assert await everything(wire.response) == b"too large"
    assert wire.owner.calls == ["lost"]


@pytest.mark.parametrize("piece_bytes", [1000, 10**6])
async def test_a_head_without_end(piece_bytes: int) -> None:
    wire = Wire()
    wire.feed([b"HTTP/1.1 200 OK\r\nX-Long: "])
    for _ in range(MAX_HEAD_BYTES // piece_bytes + 1):
        wire.feed([b"x" * piece_bytes])
    with pytest.raises(MalformedResponse, match="head of more than"):
        await wire.response.head()
    assert wire.transport.aborted


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 101 Switching\r\nUpgrade: h2c\r\nConnection: upgrade\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabc",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"\x16\x03\x01\x02",
    ],
    ids=["upgrade", "two lengths", "chunk size", "tls"],
)
async def test_malformed(answer: bytes) -> None:
    wire = Wire()
    wire.feed([answer])
    with pytest.raises(MalformedResponse):
        await everything(await wire.response.head())
    assert wire.owner.calls == ["lost"]


async def test_a_body_that_nobody_reads_stops_the_reading() -> None:
    wire = Wire()
    wire.feed([b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n"])
    fed = 0
    while wire.transport.reading:
        wire.feed([b"x" * 10_000])
        fed += 10_000
    assert BUFFER_BYTES < fed <= BUFFER_BYTES + 10_000
    assert len(await wire.response.read()) == fed
    assert wire.transport.reading


async def test_a_connection_is_not_given_back_paused() -> None:
    wire = Wire()
    wire.feed([plain(b"x" * (BUFFER_BYTES + 1))])
    assert wire.owner.calls == ["released"]
    assert wire.transport.reading
    assert len(await wire.response.read()) == BUFFER_BYTES + 1


async def test_what_is_discarded_is_not_kept() -> None:
    wire = Wire()
    wire.feed([b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n"])
    wire.response.discard(seconds=60)
    wire.feed([b"x" * 100_000] * 10)
    assert wire.transport.reading
    assert wire.response.complete
    assert wire.owner.calls == ["released"]


async def test_a_closed_response_leaves_the_next_exchange_alone() -> None:
    wire = Wire()
    wire.feed([plain(b"first")])
    second = wire.connection.request(b"head", b"body", LATER)
    wire.response.close()
    wire.feed([plain(b"second")])
    assert await everything(second) == b"second"
    assert await everything(wire.response) == b"first"
    assert wire.owner.calls == ["released", "released"]
