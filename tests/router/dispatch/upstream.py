"""A scripted SGLang: says what a test wants, and remembers what it was asked."""

from __future__ import annotations

import asyncio
import contextlib
import json
from typing import TYPE_CHECKING, Any

from aiohttp import web

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

Stream = web.StreamResponse


def successor(token: int) -> int:
    """The next token of the default answer: it depends on the last one only, so any worker can go on from any prefix."""
    return (token * 31 + 7) % 2000


def chain(last: int, count: int) -> list[int]:
    """`count` tokens of the default answer after `last`."""
    tokens: list[int] = []
    for _ in range(count):
        last = successor(last)
        tokens.append(last)
    return tokens


class Upstream:
    """One engine. `mode` is the name of a `_mode_…` method; `after` is where, in tokens, the modes that break off do so."""

    def __init__(self, mode: str = "cumulative", *, cached_tokens: int = 0, after: int = 3) -> None:
        self.mode = mode
        self.after = after
        self.cached_tokens = cached_tokens
        self.answer: Callable[[list[int]], list[int]] = lambda ids: chain(ids[-1], 1_000)
        self.eos: int | None = None
        self.bodies: list[dict[str, Any]] = []
        self.aborted: list[str] = []
        self.asked = asyncio.Event()
        self.silent = asyncio.Event()  # a mode that hangs has come to it
        self.left = asyncio.Event()  # a client closed its connection early
        self.abort_called = asyncio.Event()
        self.release = asyncio.Event()
        self.connections: set[object] = set()
        self.url = ""

    async def start(self) -> None:
        app = web.Application(client_max_size=2**30)
        app.add_routes([web.post("/generate", self.generate), web.post("/abort_request", self.abort)])
        self._runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"

    async def stop(self) -> None:
        self.release.set()
        await self._runner.cleanup()

    async def abort(self, request: web.Request) -> web.Response:
        self.aborted.append((await request.json())["rid"])
        self.abort_called.set()
        return web.Response()

    async def generate(self, request: web.Request) -> web.StreamResponse:
        self.connections.add(request.transport)
        body = await request.json()
        self.bodies.append(body)
        self.asked.set()
        mode: Callable[[web.Request, dict[str, Any]], Awaitable[web.StreamResponse]] = getattr(
            self, f"_mode_{self.mode}"
        )
        try:
            return await mode(request, body)
        except (asyncio.CancelledError, ConnectionResetError):
            self.left.set()
            raise

    # ---- what it does

    async def _mode_cumulative(self, request: web.Request, body: dict[str, Any]) -> Stream:
        return await self._stream(request, body, cumulative=True)

    async def _mode_incremental(self, request: web.Request, body: dict[str, Any]) -> Stream:
        return await self._stream(request, body, cumulative=False)

    async def _mode_one_message(self, request: web.Request, body: dict[str, Any]) -> Stream:
        stream = await self._open(request)
        tokens = self._tokens(body)
        await self._send(stream, _chunk(body, tokens, len(tokens), self.cached_tokens, self._finish(body, tokens)))
        return stream

    async def _mode_status_500(self, request: web.Request, body: dict[str, Any]) -> Stream:
        return web.json_response({"error": {"message": "out of memory at /secret/path"}}, status=500)

    async def _mode_refuse(self, request: web.Request, body: dict[str, Any]) -> Stream:
        return web.json_response({"error": {"message": "top_k must be sane"}}, status=400)

    async def _mode_refuse_in_stream(self, request: web.Request, body: dict[str, Any]) -> Stream:
        stream = await self._open(request)
        await self._send(stream, {"error": {"message": "top_k must be sane"}})
        await stream.write(b"data: [DONE]\n\n")
        return stream

    async def _mode_refuse_by_abort(self, request: web.Request, body: dict[str, Any]) -> Stream:
        stream = await self._open(request)
        finish = {"type": "abort", "message": "top_k must be sane", "status_code": 400}
        await self._send(stream, _chunk(body, [], 0, 0, finish))
        return stream

    async def _mode_unmet(self, request: web.Request, body: dict[str, Any]) -> Stream:
        stream = await self._open(request)
        message = f"Decode transfer failed for request rank=0 decode_req.req.rid={body['rid']!r}"
        await self._send(stream, {"error": {"message": message, "code": 500}})
        await stream.write(b"data: [DONE]\n\n")
        return stream

    async def _mode_hang(self, request: web.Request, body: dict[str, Any]) -> Stream:
        self.silent.set()
        await self.release.wait()
        return web.Response()

    async def _mode_hang_first(self, request: web.Request, body: dict[str, Any]) -> Stream:
        """Hangs at its first request, and answers the others."""
        mode = self._mode_hang if len(self.bodies) == 1 else self._mode_cumulative
        return await mode(request, body)

    async def _mode_hang_before_token(self, request: web.Request, body: dict[str, Any]) -> Stream:
        stream = await self._open(request)
        self.silent.set()
        await self.release.wait()
        return stream

    async def _mode_cut(self, request: web.Request, body: dict[str, Any]) -> Stream:
        assert request.transport is not None
        request.transport.close()
        return web.Response()

    async def _mode_hang_mid(self, request: web.Request, body: dict[str, Any]) -> Stream:
        stream = await self._begin(request, body)
        self.silent.set()
        await self.release.wait()
        return stream

    async def _mode_one_more(self, request: web.Request, body: dict[str, Any]) -> Stream:
        """Waits to be released, says one more token, and nothing ever after."""
        stream = await self._begin(request, body)
        await self.release.wait()
        tokens = self._tokens(body)[: self.after + 1]
        await self._send(stream, _chunk(body, tokens, len(tokens), self.cached_tokens, None))
        await asyncio.Event().wait()
        return stream

    async def _mode_cut_mid(self, request: web.Request, body: dict[str, Any]) -> Stream:
        stream = await self._begin(request, body)
        assert request.transport is not None
        request.transport.close()
        return stream

    async def _mode_end_mid(self, request: web.Request, body: dict[str, Any]) -> Stream:
        return await self._begin(request, body)

    async def _mode_abort_mid(self, request: web.Request, body: dict[str, Any]) -> Stream:
        stream = await self._begin(request, body)
        tokens = self._tokens(body)[: self.after]
        await self._send(stream, _chunk(body, tokens, len(tokens), 0, {"type": "abort", "message": "Aborted"}))
        await stream.write(b"data: [DONE]\n\n")
        return stream

    async def _mode_malformed(self, request: web.Request, body: dict[str, Any]) -> Stream:
        stream = await self._open(request)
        await stream.write(b'data: {"output_ids": [1, \n\n')
        return stream

    async def _mode_malformed_mid(self, request: web.Request, body: dict[str, Any]) -> Stream:
        stream = await self._begin(request, body)
        await stream.write(b"data: <html>gateway</html>\n\n")
        return stream

    # ---- how it does it

    def _tokens(self, body: dict[str, Any]) -> list[int]:
        most = body["sampling_params"]["max_new_tokens"]
        return self.answer(body["input_ids"])[:most]

    def _finish(self, body: dict[str, Any], tokens: list[int]) -> dict[str, Any]:
        if tokens and tokens[-1] == self.eos:
            return {"type": "stop", "matched": self.eos}
        return {"type": "length", "length": len(tokens)}

    async def _open(self, request: web.Request) -> Stream:
        stream = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await stream.prepare(request)
        return stream

    async def _begin(self, request: web.Request, body: dict[str, Any]) -> Stream:
        """The first `after` tokens."""
        stream = await self._open(request)
        tokens = self._tokens(body)
        for count in range(1, min(self.after, len(tokens)) + 1):
            await self._send(stream, _chunk(body, tokens[:count], count, self.cached_tokens, None))
        return stream

    async def _stream(self, request: web.Request, body: dict[str, Any], *, cumulative: bool) -> Stream:
        stream = await self._open(request)
        tokens = self._tokens(body)
        for count in range(1, len(tokens) + 1):
            finish = self._finish(body, tokens) if count == len(tokens) else None
            shown = tokens[:count] if cumulative else tokens[count - 1 : count]
            await self._send(stream, _chunk(body, shown, count, self.cached_tokens, finish))
        await stream.write(b"data: [DONE]\n\n")
        return stream

    async def _send(self, stream: Stream, content: dict[str, Any]) -> None:
        await stream.write(b"data: " + json.dumps(content).encode() + b"\n\n")


def _chunk(
    body: dict[str, Any], tokens: list[int], count: int, cached_tokens: int, finish: dict[str, Any] | None
) -> dict[str, Any]:
    meta = {
        "id": body["rid"],
        "finish_reason": finish,
        "prompt_tokens": len(body["input_ids"]),
        "completion_tokens": count,
        "cached_tokens": cached_tokens,
    }
    return {"text": "…", "output_ids": tokens, "meta_info": meta}


@contextlib.asynccontextmanager
async def running(*upstreams: Upstream) -> AsyncIterator[None]:
    """Serve them."""
    async with contextlib.AsyncExitStack() as stack:
        for upstream in upstreams:
            await upstream.start()
            stack.push_async_callback(upstream.stop)
        yield
