"""A server for tests, and a client that sends raw bytes and is told all that came back."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import NamedTuple

from router.frontend import http as web

Handler = Callable[[web.Request], Awaitable[web.Response | web.StreamResponse]]


class Echo:
    """An application of one handler; keeps what it refused."""

    def __init__(self, handler: Handler) -> None:
        self.handler = handler
        self.refused: list[int] = []

    async def answer(self, request: web.Request) -> web.Response | web.StreamResponse:
        return await self.handler(request)

    def refuse(self, refused: web.Refused) -> web.Response:
        self.refused.append(refused.status)
        return web.Response(refused.message.encode(), refused.status)


async def echo(request: web.Request) -> web.Response:
    """Method, path and body of a request."""
    return web.Response(f"{request.method} {request.path} ".encode() + await request.read())


class Reply(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes


class RawClient:
    """One connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def send(self, *pieces: bytes) -> None:
        for piece in pieces:
            self.writer.write(piece)
            await self.writer.drain()
            await asyncio.sleep(0)

    async def reply(self, *, bodiless: bool = False) -> Reply:
        """The next reply, whole; interim ones have no body."""
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        status = int(head[0].split(" ")[1])
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in head[1:-2])}
        return Reply(status, headers, b"" if bodiless or status < 200 else await self._body(headers))

    async def _body(self, headers: dict[str, str]) -> bytes:
        if "content-length" in headers:
            return await self.reader.readexactly(int(headers["content-length"]))
        if headers.get("transfer-encoding") != "chunked":
            return await self.reader.read()
        body = b""
        while size := int(await self.reader.readuntil(b"\r\n"), 16):
            body += await self.reader.readexactly(size)
            assert await self.reader.readexactly(2) == b"\r\n"
        assert await self.reader.readexactly(2) == b"\r\n"
        return body

    async def ended(self) -> bytes:
        """What still came, up to the end of the connection."""
        return await self.reader.read()

    def reset(self) -> None:
        self.writer.transport.abort()


class Serving:
    """A running server."""

    def __init__(self, server: web.Server, application: Echo, port: int) -> None:
        self.server = server
        self.application = application
        self.port = port

    @contextlib.asynccontextmanager
    async def client(self) -> AsyncIterator[RawClient]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            yield RawClient(reader, writer)
        finally:
            writer.close()

    async def ask(self, *pieces: bytes) -> Reply:
        async with self.client() as client:
            await client.send(*pieces)
            return await client.reply()


@contextlib.asynccontextmanager
async def serving(handler: Handler = echo, limits: web.Limits | None = None) -> AsyncIterator[Serving]:
    application = Echo(handler)
    server = web.Server(application, limits)
    try:
        yield Serving(server, application, await server.listen("127.0.0.1", 0))
    finally:
        await server.close(1.0)
