"""What a client gets: all at once, or as a stream."""

from __future__ import annotations

from typing import TYPE_CHECKING

from router.frontend.http.headers import head

if TYPE_CHECKING:
    from collections.abc import Mapping

    from router.frontend.http.connection import Connection
    from router.frontend.http.request import Request

BODILESS = frozenset({204, 304})


class Response:
    """A whole reply: the handler returns it. Of status 204 or 304 it has no body."""

    def __init__(
        self,
        body: bytes = b"",
        status: int = 200,
        headers: Mapping[str, str] | None = None,
        content_type: str | None = None,
    ) -> None:
        self.body = body
        self.status = status
        self.headers: dict[str, str] = dict(headers or ())
        if content_type is not None:
            self.headers["Content-Type"] = content_type

    def __repr__(self) -> str:
        return f"Response({self.status}, {len(self.body)} bytes)"

    @property
    def prepared(self) -> bool:
        """Whether its head is sent; not before the handler has returned."""
        return False

    def encoded(self, persistence: bytes, *, silent: bool = False) -> bytes:
        """As it is sent; `persistence` is the header that says whether the connection stays, `silent` leaves the body out."""
        status = self.status
        body = b"" if silent else self.body
        length = b"" if status in BODILESS else b"Content-Length: %d\r\n" % len(self.body)
        return b"%b%b%b\r\n%b" % (head(status, self.headers), persistence, length, body)

    async def finish(self, request: Request) -> None:
        """Send it.

        :raises ConnectionResetError: the client has left.
        """
        connection = request.connection
        await connection.send(self.encoded(connection.persistence(request), silent=request.method == "HEAD"))


class StreamResponse:
    """A reply in pieces: the handler prepares and writes it, then returns it. A write waits for a client that is behind."""

    def __init__(self, status: int = 200, headers: Mapping[str, str] | None = None) -> None:
        self.status = status
        self.headers: dict[str, str] = dict(headers or ())
        self._connection: Connection | None = None
        self._chunked = True
        self._silent = False
        self._ended = False

    def __repr__(self) -> str:
        return f"StreamResponse({self.status}, {'ended' if self._ended else 'open' if self.prepared else 'not begun'})"

    @property
    def prepared(self) -> bool:
        """Whether its head is sent: from then on its status and headers do not change."""
        return self._connection is not None

    async def prepare(self, request: Request) -> None:
        """Send its head.

        :raises ConnectionResetError: the client has left.
        """
        self._connection = connection = request.connection
        self._silent = request.method == "HEAD"
        self._chunked = request.version == "1.1"
        if not self._chunked:
            request.keep_alive = False  # without chunks, only the connection's end is the body's
        framing = b"Transfer-Encoding: chunked\r\n" if self._chunked else b""
        persistence = connection.persistence(request)
        await connection.send(b"%b%b%b\r\n" % (head(self.status, self.headers), persistence, framing))

    async def write(self, data: bytes) -> None:
        """Send a piece, at once.

        :raises ConnectionResetError: the client has left.
        """
        assert self._connection is not None
        if data and not self._silent:
            await self._connection.send(b"%x\r\n%b\r\n" % (len(data), data) if self._chunked else data)

    async def write_eof(self) -> None:
        """That was all. Idempotent.

        :raises ConnectionResetError: the client has left.
        """
        if self._ended or self._connection is None:
            return
        self._ended = True
        if self._chunked and not self._silent:
            await self._connection.send(b"0\r\n\r\n")

    async def finish(self, request: Request) -> None:
        """Send what was not sent by the handler.

        :raises ConnectionResetError: the client has left.
        """
        if not self.prepared:
            await self.prepare(request)
        await self.write_eof()
