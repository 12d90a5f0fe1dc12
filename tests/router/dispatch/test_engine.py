from __future__ import annotations

import asyncio
import socket
from contextlib import aclosing
from typing import TYPE_CHECKING

import pytest

from router.dispatch.engine import EngineClient, EngineTimeouts
from router.dispatch.errors import (
    EngineAborted,
    EngineError,
    EngineFailed,
    EngineRefused,
    EngineTimeout,
    EngineUnreachable,
)
from tests.router.dispatch.fleet import FOR_HUNG
from tests.router.dispatch.upstream import Upstream, chain, running

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

PATIENT = EngineTimeouts(connect_seconds=5, first_token_seconds=20, idle_seconds=20, abort_seconds=5)


@pytest.fixture
async def client() -> AsyncIterator[EngineClient]:
    client = EngineClient(PATIENT)
    yield client
    await client.close()


def body(max_new_tokens: int = 5, prompt: list[int] | None = None) -> dict[str, object]:
    return {
        "rid": "r",
        "input_ids": prompt or [1, 2, 3],
        "sampling_params": {"max_new_tokens": max_new_tokens},
        "stream": True,
    }


async def collect(client: EngineClient, url: str, request: dict[str, object] | None = None) -> list[int]:
    outputs = [output async for output in client.generate(url, request or body())]
    assert outputs[-1].finish_reason is not None
    return [token for output in outputs for token in output.token_ids]


@pytest.mark.parametrize("mode", ["cumulative", "incremental"])
async def test_tokens_come_out_whole(client: EngineClient, mode: str) -> None:
    upstream = Upstream(mode)
    async with running(upstream):
        assert await collect(client, upstream.url) == chain(3, 5)


async def test_messages_longer_than_any_buffer(client: EngineClient) -> None:
    upstream = Upstream("one_message")
    upstream.answer = lambda ids: [100_000_000 + i for i in range(60_000)]
    async with running(upstream):
        assert len(await collect(client, upstream.url, body(60_000))) == 60_000


async def test_a_connection_is_used_again(client: EngineClient) -> None:
    upstream = Upstream()
    async with running(upstream):
        for _ in range(3):
            await collect(client, upstream.url)
        assert len(upstream.connections) == 1


async def test_many_at_once_on_connections_of_their_own(client: EngineClient) -> None:
    upstream = Upstream()
    async with running(upstream):
        answers = await asyncio.gather(*(collect(client, upstream.url, body(20, [first])) for first in range(150)))
    assert answers == [chain(first, 20) for first in range(150)]


@pytest.mark.parametrize(
    ("mode", "kind", "message"),
    [
        ("refuse", EngineRefused, "top_k must be sane"),
        ("refuse_in_stream", EngineRefused, "top_k must be sane"),
        ("refuse_by_abort", EngineRefused, "top_k must be sane"),
        ("status_500", EngineFailed, "status 500: out of memory"),
        ("cut", EngineUnreachable, "disconnected"),
        ("cut_mid", EngineFailed, "disconnected within its answer"),
        ("end_mid", EngineFailed, "after 3 tokens without a finish reason"),
        ("abort_mid", EngineAborted, "Aborted"),
        ("malformed", EngineFailed, "malformed"),
        ("malformed_mid", EngineFailed, "malformed"),
    ],
)
async def test_every_failure_has_its_family(
    client: EngineClient, mode: str, kind: type[EngineError], message: str
) -> None:
    upstream = Upstream(mode)
    async with running(upstream):
        with pytest.raises(kind, match=message) as caught:
            await collect(client, upstream.url)
    assert type(caught.value) is kind


@pytest.mark.parametrize("mode", ["hang", "hang_before_token", "hang_mid"])
async def test_silence_is_a_timeout(mode: str) -> None:
    upstream, client = Upstream(mode), EngineClient(FOR_HUNG[mode])
    async with running(upstream):
        with pytest.raises(EngineTimeout):
            await collect(client, upstream.url)
        await upstream.left.wait()  # and the engine notices that nobody listens any more
    await client.close()


async def test_nobody_there(client: EngineClient) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, but not listening: connections are refused
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(EngineUnreachable, match="no connection"):
            await collect(client, url)
        with pytest.raises(EngineUnreachable):
            await client.abort(url, "r")


async def test_closing_early_closes_the_connection(client: EngineClient) -> None:
    upstream = Upstream("hang_mid")
    async with running(upstream):
        async with aclosing(client.generate(upstream.url, body())) as outputs:
            first = (await anext(outputs)).token_ids
            assert first == chain(3, len(first))
        await upstream.left.wait()


async def test_abort_names_the_request(client: EngineClient) -> None:
    upstream = Upstream()
    async with running(upstream):
        await client.abort(upstream.url, "r-17")
    assert upstream.aborted == ["r-17"]
