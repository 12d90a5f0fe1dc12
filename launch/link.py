"""A TCP link that can be cut: what stands between two parts when a test breaks their network."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from types import TracebackType

    Change = Callable[[bytes], Awaitable[bytes]]

READ_BYTES = 65_536


class Link:
    """Carries bytes from its own port to another; `cut` and `silence` break it, `heal` mends it."""

    def __init__(self, port: int, host: str = "127.0.0.1") -> None:
        self._to = (host, port)
        self._server: asyncio.Server | None = None
        self._passing = asyncio.Event()
        self._passing.set()
        self._refusing = False
        self._pairs: set[asyncio.Task[None]] = set()

    @property
    def port(self) -> int:
        """Where to connect instead."""
        assert self._server is not None
        return int(self._server.sockets[0].getsockname()[1])

    def outward(self) -> Change:
        """What becomes of the bytes that a new connection's client sends: a function of each read, in order."""
        return _unchanged

    def silence(self) -> None:
        """A partition: connections stay, and nothing passes; new ones are accepted, and hear nothing."""
        self._passing.clear()

    async def cut(self) -> None:
        """All connections break, and new ones break at once."""
        self._refusing = True
        await self._break_all()

    async def heal(self) -> None:
        """Pass again. What was held back is not delivered late: those connections break, as after a long partition."""
        self._refusing = False
        if not self._passing.is_set():
            await self._break_all()
            self._passing.set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.close()
        await self._break_all()

    async def _break_all(self) -> None:
        for pair in list(self._pairs):
            pair.cancel()
        await asyncio.gather(*self._pairs, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        pair = asyncio.current_task()
        assert pair is not None
        self._pairs.add(pair)
        try:
            await self._carry(reader, writer)
        except asyncio.CancelledError:
            writer.transport.abort()
        finally:
            self._pairs.discard(pair)

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._refusing:
            writer.transport.abort()
            return
        try:
            far_reader, far_writer = await asyncio.open_connection(*self._to)
        except OSError:
            writer.transport.abort()
            return
        ways = [
            asyncio.create_task(self._pump(reader, far_writer, self.outward())),
            asyncio.create_task(self._pump(far_reader, writer, _unchanged)),
        ]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
            far_writer.transport.abort()
            writer.transport.abort()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, change: Change) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(READ_BYTES):
                await self._passing.wait()
                if changed := await change(data):
                    writer.write(changed)
                    await writer.drain()


async def _unchanged(data: bytes) -> bytes:
    return data
