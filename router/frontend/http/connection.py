"""One connection: requests in order, each answered by a task of its own."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from typing import TYPE_CHECKING, cast

import httptools

from router.dispatch.http.deadline import Deadline
from router.frontend.http.errors import Refused
from router.frontend.http.request import Request

if TYPE_CHECKING:
    from router.frontend.http.server import Server

logger = logging.getLogger(__name__)

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


class Connection(asyncio.Protocol):
    """Parses requests, and has them answered one after the other; made by the server.

    It reads on while a request is answered, as that is how a client's leaving shows, until another request waits.
    """

    def __init__(self, server: Server, loop: asyncio.AbstractEventLoop) -> None:
        self.task: asyncio.Task[None] | None = None
        """Answers the request that is first in line."""
        self._server = server
        self._limits = server.limits
        self._loop = loop
        self._deadline = Deadline(loop, self._expired)
        self._parser = httptools.HttpRequestParser(self)
        self._transport: asyncio.Transport | None = None
        self._request: Request | None = None  # the one that is being read
        self._head_complete = False
        self._head_bytes = 0
        self._waiting: deque[Request] = deque()  # read, not yet answered
        self._refused: Refused | None = None  # what is wrong with the one behind those
        self._last = False  # no request is taken after those
        self._reading = True
        self._lingering = False
        self._drained: asyncio.Future[None] | None = None  # while the client is behind

    def __repr__(self) -> str:
        state = "closed" if self._transport is None else "idle" if self.task is None else "busy"
        return f"Connection({state}, {len(self._waiting)} requests wait)"

    # ---- for the server

    def stop(self) -> None:
        """Take no further request, and close once the one that runs is answered: at once, if none does."""
        self._last = True
        self._waiting.clear()
        if self.task is None and not self._lingering:
            self.abort()

    def abort(self) -> None:
        """Close at once. Idempotent."""
        if self._transport is not None:
            self._transport.abort()

    # ---- for responses

    def persistence(self, request: Request) -> bytes:
        """The header that says whether the connection stays, where that has to be said."""
        if not request.keep_alive or self._ends:
            return b"Connection: close\r\n"
        return b"Connection: keep-alive\r\n" if request.version == "1.0" else b""

    async def send(self, data: bytes) -> None:
        """Send bytes; waits while the client is behind.

        :raises ConnectionResetError: it has left.
        """
        if self._transport is None:
            raise ConnectionResetError("the client has left")
        self._transport.write(data)
        if self._drained is not None:
            self._deadline.set(self._loop.time() + self._limits.write_seconds)
            await self._drained

    # ---- for the transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client is there."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's has the methods, but not the base class
        self._server.made(self)
        self._deadline.set(self._loop.time() + self._limits.keepalive_seconds)
        if self._server.stopping:
            self.abort()

    def data_received(self, data: bytes) -> None:
        """Bytes of requests, cut anywhere."""
        if self._refused is not None or self._last:
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._last = True  # not taken up: the request is answered as it is, and nothing after it
        except httptools.HttpParserError as error:
            self._refuse(Refused(400, f"malformed request: {error}"))
        if self._request is not None and self._refused is None:
            self._wait_for_more(len(data))

    def eof_received(self) -> None:
        """The client sends no more: it has left; `connection_lost` follows."""

    def connection_lost(self, exc: Exception | None) -> None:
        """Closed, by whomever."""
        self._transport = None
        self._waiting.clear()
        self._deadline.cancel()
        self._server.lost(self)
        if self.task is not None:
            self.task.cancel()
        self.resume_writing()

    def pause_writing(self) -> None:
        """The client is behind."""
        self._drained = self._loop.create_future()

    def resume_writing(self) -> None:
        """It has caught up, or has left."""
        drained, self._drained = self._drained, None
        if drained is not None and not drained.done():
            self._deadline.clear()
            drained.set_result(None)

    # ---- for the parser

    def on_message_begin(self) -> None:
        """A request's first byte."""
        if self._refused is None:
            self._request = Request(self)
        self._head_complete = False
        self._head_bytes = 0

    def on_url(self, url: bytes) -> None:
        """A part of the target."""
        if self._request is not None:
            self._request.target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header; or a trailer behind the body, which nobody needs."""
        if self._request is not None and not self._head_complete:
            self._request.headers.add(name, value)

    def on_headers_complete(self) -> None:
        """All but the body is there."""
        self._head_complete = True
        request = self._request
        if request is None:
            return
        request.method = self._parser.get_method().decode("ascii")
        request.version = self._parser.get_http_version()
        try:
            request.locate()
        except Refused as refused:
            self._refuse(refused)
            return
        if request.version == "1.1" and request.headers.raw(b"host") is None:
            self._refuse(Refused(400, "malformed request: no Host header"))
            return
        length = request.headers.raw(b"content-length")
        if length is not None and int(length) > self._limits.body_bytes:
            self._refuse_body()
        elif request.headers.raw(b"expect") is not None:
            self._go_on(request)

    def on_body(self, data: bytes) -> None:
        """A part of the body, without its framing."""
        request = self._request
        if request is None or self._refused is not None:
            return
        request.push(data)
        if request.body_bytes > self._limits.body_bytes:
            self._refuse_body()

    def on_message_complete(self) -> None:
        """A request is there."""
        request, self._request = self._request, None
        if request is None or self._refused is not None:
            return
        request.keep_alive = self._parser.should_keep_alive()
        if self.task is None:
            self._start(request)
        elif len(self._waiting) < self._limits.waiting_requests:
            self._waiting.append(request)
            self._read_on()
        else:
            self._refuse(Refused(429, f"more than {self._limits.waiting_requests} requests wait on this connection"))

    # ---- the rest

    def _start(self, request: Request) -> None:
        self._deadline.clear()
        self.task = self._loop.create_task(self._answer(request))

    async def _answer(self, request: Request) -> None:
        answered = False
        try:
            response = await self._server.application.answer(request)
            await response.finish(request)
            answered = True
        except ConnectionResetError:
            pass  # the client has left
        except Exception:
            logger.exception("%r: no answer", request)
        finally:
            self.task = None
            if answered:
                self._answered(request)
            else:
                self.abort()

    def _answered(self, request: Request) -> None:
        """Go on with the next request, or wait for it."""
        if not request.keep_alive or self._ends:
            self._close()
        elif self._waiting:
            self._start(self._waiting.popleft())
            self._read_on()
        elif self._refused is not None:
            self._send_refusal(self._refused)
        else:
            seconds = self._limits.keepalive_seconds if self._request is None else self._limits.body_seconds
            self._deadline.set(self._loop.time() + seconds)

    @property
    def _ends(self) -> bool:
        """Whether nothing follows the request that is first in line."""
        return self._last and not self._waiting

    def _read_on(self) -> None:
        """Read if, and only if, no request waits."""
        wanted = not self._waiting
        if self._transport is None or wanted == self._reading:
            return
        self._reading = wanted
        if wanted:
            self._transport.resume_reading()
        else:
            self._transport.pause_reading()

    def _close(self) -> None:
        """Once all is sent."""
        self._last = True
        if self._transport is not None:
            self._transport.close()

    def _wait_for_more(self, size: int) -> None:
        """A request is begun, and not complete."""
        seconds = self._limits.body_seconds
        if not self._head_complete:
            if self._head_bytes:
                self._limit_head(size)
                return
            self._head_bytes = 1  # it shares its first read with what came before it
            seconds = self._limits.head_seconds
        if self.task is None:
            self._deadline.set(self._loop.time() + seconds)

    def _limit_head(self, size: int) -> None:
        self._head_bytes += size
        if self._head_bytes > self._limits.head_bytes:
            self._refuse(Refused(431, f"a head of more than {self._limits.head_bytes} bytes"))

    def _go_on(self, request: Request) -> None:
        """Some clients ask before they send a body."""
        expected = request.headers.raw(b"expect") or b""
        if expected.lower() == b"100-continue" and self.task is None and self._transport is not None:
            self._transport.write(CONTINUE)

    def _refuse_body(self) -> None:
        self._refuse(Refused(413, f"the body is too large: more than {self._limits.body_bytes} bytes"))

    def _refuse(self, refused: Refused) -> None:
        """Say so once what came before is answered; then close."""
        if self._refused is not None:
            return
        self._refused, self._request = refused, None
        if self.task is None:
            self._send_refusal(refused)

    def _send_refusal(self, refused: Refused) -> None:
        """Then listen for a while to what the client still sends: closed at once, it would meet a reset before it reads."""
        if self._transport is None:
            return
        self._last = self._lingering = True
        self._read_on()
        self._transport.write(self._server.application.refuse(refused).encoded(b"Connection: close\r\n"))
        if self._transport.can_write_eof():
            self._transport.write_eof()
        self._deadline.set(self._loop.time() + self._limits.linger_seconds)

    def _expired(self) -> None:
        """The client has kept us waiting."""
        if self._request is not None and self.task is None:
            self._refuse(Refused(408, "the request did not come to its end in time"))
        else:
            self.abort()
