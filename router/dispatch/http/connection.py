"""One connection, one exchange at a time."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Protocol, cast

import httptools

from router.dispatch.http.deadline import Deadline
from router.dispatch.http.errors import ConnectionLost, MalformedResponse
from router.dispatch.http.response import Response

if TYPE_CHECKING:
    from router.dispatch.http.errors import HttpError

MAX_HEAD_BYTES = 64 * 1024
"""Of an answer's status line and headers; what came with the same read may be on top."""

FRAMING = frozenset({b"content-length", b"transfer-encoding"})


class Owner(Protocol):
    """Who keeps a connection."""

    def released(self, connection: Connection) -> None:
        """An exchange is complete, and the connection can be used for another."""

    def lost(self, connection: Connection) -> None:
        """It is closed, or about to be; called exactly once."""


class Connection(asyncio.Protocol):
    """Sends a request, and gives its answer; made by `loop.create_connection`."""

    def __init__(self, owner: Owner, loop: asyncio.AbstractEventLoop) -> None:
        self.deadline = Deadline(loop, self._expired)
        self.idle_since = 0.0
        """The loop's time of its last release."""
        self.exchanges = 0
        """Requests sent on it so far."""
        self._owner = owner
        self._loop = loop
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._response: Response | None = None  # until its answer is complete
        self._head_bytes = 0
        self._framed = False  # the answer's head says where its body ends
        self._reusable = False
        self._finished: Response | None = None  # by the read that is being parsed
        self._paused = False

    def __repr__(self) -> str:
        state = "closed" if self._transport is None else "idle" if self._response is None else "busy"
        return f"Connection({state}, {self.exchanges} exchanges)"

    # ---- for the client

    @property
    def usable(self) -> bool:
        """Whether a request can be sent on it, as far as is known here."""
        return self._transport is not None and self._response is None and not self._transport.is_closing()

    def request(self, head: bytes, body: bytes, deadline: float) -> Response:
        """Send a request; the answer will come into the response."""
        assert self._transport is not None
        assert self._response is None
        self._head_bytes = 0
        self.exchanges += 1
        self._response = response = Response(self, self._loop, deadline)
        self._transport.writelines((head, body))
        return response

    def resume(self, response: Response) -> None:
        """Read on, after what was buffered for the response was taken."""
        if self._paused and response is self._response and self._transport is not None:
            self._paused = False
            self._transport.resume_reading()

    def abort(self, response: Response | None = None) -> None:
        """Close at once; if a response is given, only if its exchange still goes on."""
        if response is not None and response is not self._response:
            return
        self._end(ConnectionLost("closed by this side", answered=False))

    def drop(self) -> None:
        """Close at once; the exchange that goes on fails, and must not be sent again here."""
        self._end(ConnectionLost("given up by this side", answered=True))

    # ---- for the transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Connected."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's has the methods, but not the base class

    def data_received(self, data: bytes) -> None:
        """Bytes of the answer, cut anywhere."""
        response = self._response
        if response is None:  # nobody asked: what it means is anyone's guess
            self.abort()
            return
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            if self._finished is None:
                self._end(MalformedResponse(f"malformed answer: {error}"))
                return
            self._reusable = False  # garbage, but behind a complete answer
        if self._finished is not None:
            self._finish()
        elif response.head_complete:
            response.wake()
        else:
            self._limit_head(len(data))

    def eof_received(self) -> None:
        """The server sends no more; `connection_lost` follows."""

    def connection_lost(self, exc: Exception | None) -> None:
        """Closed, by whomever."""
        response = self._response
        if response is not None and response.head_complete and not self._framed and exc is None:
            response.complete = True  # an answer without a length ends with the connection
            self._response = None
            response.wake()
        reason = f"the server disconnected{f': {exc}' if exc else ''}"
        if response is not None and response.head_complete:
            reason += " within its answer"
        self._end(ConnectionLost(reason, answered=self._head_bytes > 0 or bool(response and response.head_complete)))

    # ---- for the parser

    def on_message_begin(self) -> None:
        """A status line, of the answer or of one more that nobody asked for."""
        if self._finished is not None:
            self._reusable = False
        self._framed = False

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header, or a trailer behind the body."""
        response = self._response
        if response is None or response.head_complete:
            return
        response.headers.append((name, value))
        if name.lower() in FRAMING:
            self._framed = True

    def on_headers_complete(self) -> None:
        """The answer's head, or an interim one's."""
        response = self._response
        if response is None:
            return
        status = self._parser.get_status_code()
        if status < 200:
            response.headers.clear()
            return
        response.status = status
        response.head_complete = True

    def on_body(self, data: bytes) -> None:
        """A part of the body, without its framing."""
        if self._response is not None and self._response.push(data) and not self._paused and self._transport:
            self._paused = True
            self._transport.pause_reading()

    def on_message_complete(self) -> None:
        """The answer's end, or an interim one's."""
        response = self._response
        if response is None or not response.head_complete:
            return
        self._reusable = self._parser.should_keep_alive()
        self._response = None
        self._finished = response

    # ---- the rest

    def _finish(self) -> None:
        """The answer is complete: give the connection back, then wake the reader."""
        response, self._finished = self._finished, None
        assert response is not None
        response.complete = True
        self.deadline.clear()
        transport = self._transport
        if self._paused and transport is not None:
            self._paused = False
            transport.resume_reading()
        # A request that is still being sent was answered before it was read: what the server makes of the rest is unknown.
        if self._reusable and transport is not None and not transport.get_write_buffer_size():
            self._owner.released(self)
        else:
            self.abort()
        response.wake()

    def _limit_head(self, size: int) -> None:
        self._head_bytes += size
        if self._head_bytes > MAX_HEAD_BYTES:
            self._end(MalformedResponse(f"malformed answer: a head of more than {MAX_HEAD_BYTES} bytes"))

    def _expired(self) -> None:
        response = self._response
        if response is not None and response.expire():
            self.abort(response)

    def _end(self, error: HttpError) -> None:
        """Close, and fail the exchange that goes on. Idempotent."""
        transport, self._transport = self._transport, None
        if transport is not None:
            transport.abort()
            self.deadline.cancel()
            self._owner.lost(self)
        response, self._response = self._response, None
        if response is not None:
            response.fail(error)
