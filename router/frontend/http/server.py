"""Listens, keeps account of connections, and stops gracefully."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Protocol

from router.frontend.http.connection import Connection
from router.frontend.http.limits import Limits

if TYPE_CHECKING:
    from router.frontend.http.errors import Refused
    from router.frontend.http.request import Request
    from router.frontend.http.response import Response, StreamResponse

BACKLOG = 1024


class Application(Protocol):
    """Who answers."""

    async def answer(self, request: Request) -> Response | StreamResponse:
        """The reply to a request; what it raises closes the connection. Cancelled when the client leaves."""

    def refuse(self, refused: Refused) -> Response:
        """The reply to what is no request, or too large a one."""


class Server:
    """Serves an application at any number of addresses; used inside one running event loop."""

    def __init__(self, application: Application, limits: Limits | None = None) -> None:
        self.application = application
        self.limits = limits or Limits()
        self.stopping = False
        self._loop = asyncio.get_running_loop()
        self._listeners: list[asyncio.AbstractServer] = []
        self._connections: set[Connection] = set()

    def __repr__(self) -> str:
        return f"Server({len(self._listeners)} addresses, {len(self._connections)} connections)"

    async def listen(self, host: str, port: int, *, shared: bool = False) -> int:
        """Serve an address; the port, which is a free one for 0. `shared`: other processes may serve it too.

        :raises OSError: it cannot be used.
        """
        listener = await self._loop.create_server(
            lambda: Connection(self, self._loop),
            host or None,
            port,
            backlog=BACKLOG,
            reuse_port=shared or None,
        )
        self._listeners.append(listener)
        bound: int = listener.sockets[0].getsockname()[1]
        return bound

    async def close(self, seconds: float) -> None:
        """Take no further request; those that run may take so many seconds to end, then they are cancelled. Idempotent."""
        self.stopping = True
        for listener in self._listeners:
            listener.close()
        for connection in list(self._connections):
            connection.stop()
        if running := self._running():
            await asyncio.wait(running, timeout=seconds)
        await asyncio.sleep(0)  # what ended last may still have started a request that waited behind it
        if running := self._running():
            for task in running:
                task.cancel()
            await asyncio.wait(running)
        for connection in list(self._connections):
            connection.abort()
        await asyncio.sleep(0)  # the transports let go of their sockets in the loop's next round

    def _running(self) -> list[asyncio.Task[None]]:
        return [connection.task for connection in self._connections if connection.task is not None]

    # ---- for its connections

    def made(self, connection: Connection) -> None:
        """It is there."""
        self._connections.add(connection)

    def lost(self, connection: Connection) -> None:
        """It is gone."""
        self._connections.discard(connection)
