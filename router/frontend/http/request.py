"""What a client asks, its body complete."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import parse_qsl, unquote

import httptools

from router.frontend.http.errors import Refused
from router.frontend.http.headers import Headers

if TYPE_CHECKING:
    from router.frontend.http.connection import Connection


class Request:
    """One request. The connection fills it; handlers read it."""

    __slots__ = ("_pieces", "_query", "body_bytes", "connection", "headers", "id", "keep_alive", "match_info", "method",
                 "path", "route", "target", "version")  # fmt: skip

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.method = ""
        self.target = b""
        """As it was sent."""
        self.path = ""
        """Decoded, without the query."""
        self.version = "1.1"
        self.headers = Headers()
        self.keep_alive = False
        """Whether the client would use the connection for another request."""
        self.match_info: dict[str, str] = {}
        """The parts of the path that its route names."""
        self.route = "unknown"
        """The pattern of its route: few different ones, fit for a metric's label."""
        self.id = ""
        """Names it in logs and in the reply; given by the application."""
        self.body_bytes = 0
        self._pieces: list[bytes] = []
        self._query = b""

    def __repr__(self) -> str:
        return f"Request({self.method} {self.path}, {self.body_bytes} bytes)"

    async def read(self) -> bytes:
        """The whole body."""
        pieces = self._pieces
        if len(pieces) > 1:
            pieces[:] = [b"".join(pieces)]
        return pieces[0] if pieces else b""

    @property
    def query(self) -> dict[str, str]:
        """The query's fields, decoded; of repeated ones the last. O(query)."""
        return dict(parse_qsl(self._query.decode("latin-1"), keep_blank_values=True))

    # ---- for its connection

    def push(self, data: bytes) -> None:
        """A part of the body."""
        self._pieces.append(data)
        self.body_bytes += len(data)

    def locate(self) -> None:
        """Read the target.

        :raises Refused: it is not one.
        """
        path, _, self._query = self.target.partition(b"?")
        if not path.startswith(b"/"):
            path = _path_of(self.target)
        self.path = path.decode("latin-1") if b"%" not in path else unquote(path.decode("latin-1"))


def _path_of(target: bytes) -> bytes:
    """The path of an absolute URL, as clients send it to proxies; `*` is a path of its own.

    :raises Refused: it is neither.
    """
    if target == b"*":
        return target
    try:
        return httptools.parse_url(target).path or b"/"
    except httptools.HttpParserInvalidURLError as error:
        raise Refused(400, "malformed request: not a URL or a path") from error
