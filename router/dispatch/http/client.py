"""Requests to any number of origins."""

from __future__ import annotations

import asyncio
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

from router.dispatch.http.errors import ConnectionLost
from router.dispatch.http.origin import Origin, locate
from router.dispatch.http.pool import Pool

if TYPE_CHECKING:
    from collections.abc import Mapping

    from router.dispatch.http.connection import Connection
    from router.dispatch.http.response import Response

# Uvicorn, under SGLang, closes a connection after 5 s without a request: reusing one at that moment would lose a request.
KEEPALIVE_SECONDS = 3.0
MAX_CONNECTIONS = 4096
JSON_HEADERS = {"Content-Type": "application/json", "Accept-Encoding": "identity"}


class ClientStatistics(NamedTuple):
    """Connections now, and counts since the start."""

    open: int
    idle: int
    opened: int
    reused: int
    """Requests sent on a connection that had served another."""
    stale: int
    """Of those, how many had to be sent again, on a new connection."""


class HttpClient:
    """Sends requests, and keeps connections; used inside one running event loop.

    :param connect_seconds: time to connect, in which no more than the host name is resolved and the connection made.
    :param keepalive_seconds: how long an idle connection is kept; below the servers' own time.
    :param max_connections: per origin.
    """

    def __init__(
        self,
        *,
        connect_seconds: float = 5.0,
        keepalive_seconds: float = KEEPALIVE_SECONDS,
        max_connections: int = MAX_CONNECTIONS,
    ) -> None:
        self._connect_seconds = connect_seconds
        self._keepalive_seconds = keepalive_seconds
        self._max_connections = max_connections
        self._pools: dict[Origin, Pool] = {}
        self._opened = self._reused = self._stale = 0

    def __repr__(self) -> str:
        return f"HttpClient({len(self._pools)} origins, {self.statistics()})"

    async def post(
        self,
        url: str,
        body: bytes,
        deadline: float,
        headers: Mapping[str, str] = JSON_HEADERS,
        own_headers: Mapping[str, str] | None = None,
    ) -> Response:
        """Send `body`; the answer once its status and headers are there, which must be by `deadline` in the loop's time.

        `headers` are few different ones, whose text is kept; `own_headers` are this request's alone.

        Read it to its end, or close it. A kept connection that proves closed before any byte of an answer was most likely closed by
        the server's own timer, before it saw the request: it is sent once more, on a new connection.

        :raises HttpError: there is no answer.
        :raises ValueError: `url` is not one, or a header would break the request's head.
        """
        location = locate(url)
        pool = self._pool(location.origin)
        head = _head("POST", url, tuple(headers.items()))
        head = b"%s%s%d\r\n\r\n" % (head, _lines(own_headers) if own_headers else b"Content-Length: ", len(body))
        connection = pool.reuse()
        if connection is not None:
            self._reused += 1
            try:
                return await _exchange(connection, head, body, deadline)
            except ConnectionLost as error:
                if error.answered:
                    raise
                self._stale += 1
        connection = await pool.connect(deadline)
        self._opened += 1
        return await _exchange(connection, head, body, deadline)

    async def get(self, url: str, deadline: float) -> Response:
        """The same without a body, on a connection of its own.

        :raises HttpError: there is no answer.
        :raises ValueError: `url` is not one.
        """
        connection = await self._pool(locate(url).origin).connect(deadline)
        self._opened += 1
        return await _exchange(connection, _head("GET", url, ()) + b"Content-Length: 0\r\n\r\n", b"", deadline)

    def drop(self, url: str) -> int:
        """Break every exchange that goes on with a URL's origin; how many those were. O(connections)."""
        pool = self._pools.get(locate(url).origin)
        return pool.drop() if pool is not None else 0

    async def close(self) -> None:
        """Close all connections; exchanges that go on fail. Idempotent."""
        for pool in self._pools.values():
            pool.close()
        self._pools.clear()
        await asyncio.sleep(0)  # the transports let go of their sockets in the loop's next round

    def statistics(self) -> ClientStatistics:
        """Sums over all origins. O(origins)."""
        pools = self._pools.values()
        return ClientStatistics(
            open=sum(pool.open for pool in pools),
            idle=sum(pool.idle for pool in pools),
            opened=self._opened,
            reused=self._reused,
            stale=self._stale,
        )

    def _pool(self, origin: Origin) -> Pool:
        pool = self._pools.get(origin)
        if pool is None:
            self._pools = {known: pool for known, pool in self._pools.items() if pool.used}  # servers come and go
            pool = self._pools[origin] = Pool(
                origin,
                asyncio.get_running_loop(),
                connect_seconds=self._connect_seconds,
                keepalive_seconds=self._keepalive_seconds,
                max_connections=self._max_connections,
            )
        return pool

    def _check(self) -> None:
        for pool in self._pools.values():
            pool._check()  # noqa: SLF001 - a structure checks its parts


async def _exchange(connection: Connection, head: bytes, body: bytes, deadline: float) -> Response:
    response = connection.request(head, body, deadline)
    try:
        return await response.head()
    except BaseException:
        response.close()
        raise


@lru_cache(maxsize=4096)
def _head(method: str, url: str, headers: tuple[tuple[str, str], ...]) -> bytes:
    """The request line and the headers that many requests have."""
    origin, path = locate(url)
    return _lines({"Host": origin.authority, **dict(headers)}, f"{method} {path} HTTP/1.1\r\n", "")


def _lines(headers: Mapping[str, str], before: str = "", after: str = "Content-Length: ") -> bytes:
    """Headers as they are sent.

    :raises ValueError: one has a line break or is not Latin-1.
    """
    text = "".join([f"{name}: {value}\r\n" for name, value in headers.items()])
    if text.count("\n") != len(headers) or text.count("\r") != len(headers) or "\0" in text:
        raise ValueError("a header must not have a line break")
    return f"{before}{text}{after}".encode("latin-1")
