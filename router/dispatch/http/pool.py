"""The connections to one origin."""

from __future__ import annotations

import asyncio
import ssl
from collections import deque
from typing import TYPE_CHECKING

from router.dispatch.http.connection import Connection
from router.dispatch.http.deadline import TICK_SECONDS
from router.dispatch.http.errors import ConnectFailed, PoolFull

if TYPE_CHECKING:
    from router.dispatch.http.origin import Origin


class Pool:
    """Makes connections, keeps idle ones for a while, and gives out the one used last: those beyond the need age and close.

    :param keepalive_seconds: how long a connection may be idle.
    :param max_connections: how many may be open or being opened; there is no queue for more.
    """

    def __init__(
        self,
        origin: Origin,
        loop: asyncio.AbstractEventLoop,
        *,
        connect_seconds: float,
        keepalive_seconds: float,
        max_connections: int,
    ) -> None:
        self.origin = origin
        self._loop = loop
        self._connect_seconds = connect_seconds
        self._keepalive_seconds = keepalive_seconds
        self._max_connections = max_connections
        self._idle: deque[Connection] = deque()  # the one idle for longest first
        self._open: set[Connection] = set()
        self._connecting = 0
        self._sweep_handle: asyncio.TimerHandle | None = None
        self._tls = ssl.create_default_context() if origin.scheme == "https" else None

    def __repr__(self) -> str:
        return f"Pool({self.origin}, {len(self._open)} open, {len(self._idle)} idle, {self._connecting} connecting)"

    @property
    def used(self) -> bool:
        """Whether anything is open or being opened."""
        return bool(self._open or self._connecting)

    @property
    def open(self) -> int:
        """Connections that are open, idle ones included."""
        return len(self._open)

    @property
    def idle(self) -> int:
        """Connections that wait for a request."""
        return len(self._idle)

    def reuse(self) -> Connection | None:
        """The idle connection that was used last, if one is fresh enough. O(1) amortised."""
        oldest_allowed = self._loop.time() - self._keepalive_seconds
        while self._idle:
            connection = self._idle.pop()
            if connection.usable and connection.idle_since > oldest_allowed:
                return connection
            connection.abort()
        return None

    async def connect(self, deadline: float) -> Connection:
        """A new connection, at the latest by `deadline` in the loop's time.

        :raises ConnectFailed: there is none.
        :raises PoolFull: there are as many as may be.
        """
        if len(self._open) + self._connecting >= self._max_connections:
            if not self._idle:
                raise PoolFull(f"all {self._max_connections} connections to {self.origin} are in use")
            self._idle.popleft().abort()
        self._connecting += 1
        try:
            async with asyncio.timeout_at(min(deadline, self._loop.time() + self._connect_seconds)):
                _, connection = await self._loop.create_connection(
                    lambda: Connection(self, self._loop),
                    self.origin.host,
                    self.origin.port,
                    ssl=self._tls,
                )
        except TimeoutError as error:
            raise ConnectFailed("not in time") from error
        except OSError as error:
            raise ConnectFailed(str(error) or type(error).__name__) from error
        finally:
            self._connecting -= 1
        if not connection.usable:
            raise ConnectFailed("closed as soon as it was there")
        self._open.add(connection)
        return connection

    def close(self) -> None:
        """Close all connections, idle or not. Idempotent."""
        for connection in list(self._open):
            connection.abort()
        if self._sweep_handle is not None:
            self._sweep_handle.cancel()
            self._sweep_handle = None

    def drop(self) -> int:
        """Break the exchanges that go on; how many."""
        busy = [connection for connection in self._open if not connection.usable]
        for connection in busy:
            connection.drop()
        return len(busy)

    # ---- for its connections

    def released(self, connection: Connection) -> None:
        """Keep it for the next request."""
        connection.idle_since = self._loop.time()
        self._idle.append(connection)
        if self._sweep_handle is None:
            self._sweep_handle = self._loop.call_later(self._keepalive_seconds, self._sweep)

    def lost(self, connection: Connection) -> None:
        """Forget it."""
        self._open.discard(connection)
        if connection in self._idle:
            self._idle.remove(connection)

    def _sweep(self) -> None:
        """Close what was idle for too long; come back for the next."""
        self._sweep_handle = None
        due = self._loop.time() - self._keepalive_seconds + TICK_SECONDS
        while self._idle and self._idle[0].idle_since <= due:
            self._idle.popleft().abort()
        if self._idle:
            when = self._idle[0].idle_since + self._keepalive_seconds
            self._sweep_handle = self._loop.call_at(when, self._sweep)

    def _check(self) -> None:
        """Assert that all that is idle is open and usable, and in the order of its age."""
        ages = [connection.idle_since for connection in self._idle]
        assert ages == sorted(ages)
        assert len(set(self._idle)) == len(self._idle)
        assert set(self._idle) <= self._open
        assert self._connecting >= 0
        assert len(self._open) + self._connecting <= self._max_connections
        assert not self._idle or self._sweep_handle is not None
