"""The answer to one request, as it comes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

from router.dispatch.http.errors import HttpError, MalformedResponse, TimedOut

if TYPE_CHECKING:
    import asyncio

    from router.dispatch.http.connection import Connection

BUFFER_BYTES = 256 * 1024
"""Of a body that nobody reads: beyond that, the server is made to wait."""


class Response:
    """Status, headers and body of an answer. Iterating gives what arrived since, in one piece.

    The connection goes back to its pool by itself when the body is complete; `close` ends it before that. `deadline`, in the loop's
    time, holds for every wait; move it as you like between two.
    """

    __slots__ = ("_buffered", "_chunks", "_connection", "_discarding", "_error", "_loop", "_waiter", "complete",
                 "deadline", "head_complete", "headers", "status")  # fmt: skip

    def __init__(self, connection: Connection, loop: asyncio.AbstractEventLoop, deadline: float) -> None:
        self.status = 0
        self.headers: list[tuple[bytes, bytes]] = []
        """As they were sent, in order."""
        self.deadline = deadline
        self.head_complete = False
        self.complete = False
        """The whole body has arrived; some of it may not have been read yet."""
        self._connection = connection
        self._loop = loop
        self._chunks: list[bytes] = []
        self._buffered = 0
        self._error: HttpError | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._discarding = False

    def __repr__(self) -> str:
        state = "complete" if self.complete else "failed" if self._error else "open"
        return f"Response({self.status or 'no status'}, {state}, {self._buffered} bytes unread)"

    # ---- for its reader

    def header(self, name: bytes) -> bytes | None:
        """The first value of a header; `name` in lower case. O(headers)."""
        return next((value for key, value in self.headers if key.lower() == name), None)

    async def head(self) -> Self:
        """Wait for status and headers.

        :raises HttpError: they do not come.
        """
        while not self.head_complete:
            await self._arrival()
        return self

    async def read(self) -> bytes:
        """What has arrived, at least one byte; empty at the end.

        :raises HttpError: the rest will not come; what came before is given first.
        """
        while not self._chunks:
            if self.complete:
                return b""
            await self._arrival()
        data = self._chunks[0] if len(self._chunks) == 1 else b"".join(self._chunks)
        self._chunks.clear()
        self._buffered = 0
        self._connection.resume(self)
        return data

    async def read_all(self, max_bytes: int) -> bytes:
        """The whole body.

        :raises MalformedResponse: it is larger than `max_bytes`; the connection is closed.
        :raises HttpError: it will not come.
        """
        if (
            self.complete and len(self._chunks) == 1 and len(self._chunks[0]) <= max_bytes
        ):  # as most are, once their head is here
            return await self.read()
        pieces: list[bytes] = []
        size = 0
        async for data in self:
            size += len(data)
            if size > max_bytes:
                self.close()
                raise MalformedResponse(f"a body of more than {max_bytes} bytes")
            pieces.append(data)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        if data := await self.read():
            return data
        raise StopAsyncIteration

    def discard(self, seconds: float) -> None:
        """Nobody needs the rest. If it comes in time the connection can be used again, else it is closed; do not read on."""
        if self.complete or self._error is not None:
            return
        self._discarding = True
        self._chunks.clear()
        self._buffered = 0
        self._connection.resume(self)
        self._connection.deadline.set(self._loop.time() + seconds)

    def close(self) -> None:
        """Close the connection, unless the answer is complete. Idempotent."""
        if not self.complete:
            self._connection.abort(self)

    async def _arrival(self) -> None:
        """Until more has come, or nothing will."""
        if self._error is not None:
            raise self._error
        self._waiter = self._loop.create_future()
        self._connection.deadline.set(self.deadline)
        try:
            await self._waiter
        finally:
            self._waiter = None

    # ---- for its connection

    def push(self, data: bytes) -> bool:
        """A part of the body; true if more of it should wait."""
        if self._discarding:
            return False
        self._chunks.append(data)
        self._buffered += len(data)
        return self._buffered > BUFFER_BYTES

    def wake(self) -> None:
        """Let the reader look."""
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def fail(self, error: HttpError) -> None:
        """No more will come, and the body is not complete."""
        if self._error is None:
            self._error = error
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_exception(self._error)

    def expire(self) -> bool:
        """The deadline has passed; true if somebody was still waiting, and now is not."""
        if self._discarding:
            self.fail(TimedOut("the rest did not come in time"))
            return True
        if self._waiter is None or self._waiter.done():
            return False
        self.fail(TimedOut("no further answer in time" if self.head_complete else "no answer in time"))
        return True
