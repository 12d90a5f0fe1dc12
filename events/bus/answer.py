"""Streamed answers: their frames, the side that gives them and the side that awaits them.

A frame is one byte of kind, the frame's number (uint32, little-endian) and data. Numbers tell a lost frame from an end:

====  ========================================
m     a piece of a part; more of it follows
p     a whole part, or the last piece of one
e     the end of the answer
f     the server failed; the data says why
====  ========================================
"""

from __future__ import annotations

import asyncio
import logging
import struct
from typing import TYPE_CHECKING

from events.bus import NoResponder

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator

    from events.bus.counts import Counts
    from events.bus.delivery import Envelope

logger = logging.getLogger(__name__)

FRAME_BYTES = 256 * 1024  # well under any broker's limit, large enough that overheads vanish
CONCURRENT_ANSWERS = 16  # per server; further requests wait in its queue

NOBODY = "nobody serves it"

_HEAD = struct.Struct("<cI")
_MORE, _PART, _END, _FAILED = b"m", b"p", b"e", b"f"


def frames(parts: Iterable[bytes], frame_bytes: int = FRAME_BYTES) -> Iterator[bytes]:
    r"""An answer as frames of at most `frame_bytes` of data each. O(size).

    >>> [bytes(frame) for frame in frames([b"abcde"], frame_bytes=4)]
    [b'm\x00\x00\x00\x00abcd', b'p\x01\x00\x00\x00e', b'e\x02\x00\x00\x00']
    """
    number = 0
    for part in parts:
        for start in range(0, len(part) or 1, frame_bytes):
            kind = _PART if start + frame_bytes >= len(part) else _MORE
            yield _HEAD.pack(kind, number) + part[start : start + frame_bytes]
            number += 1
    yield _HEAD.pack(_END, number)


def failure(reason: str) -> bytes:
    """The frame that ends an answer which could not be given. O(n)."""
    return _HEAD.pack(_FAILED, 0) + reason.encode()


class Answer:
    """An answer on its way to the requester."""

    def __init__(self, subject: str) -> None:
        self.subject = subject
        """Of the request; named in errors."""
        self._frames: asyncio.Queue[bytes] = asyncio.Queue()

    def offer(self, frame: bytes) -> None:
        """Take the next frame as it came. O(1)."""
        self._frames.put_nowait(frame)

    async def parts(self, timeout_seconds: float) -> AsyncIterator[bytes]:
        """The parts in order.

        :raises NoResponder: the server failed, a frame is missing, or none came for `timeout_seconds`.
        """
        pieces: list[bytes] = []
        expected = 0
        while True:
            kind, data = self._open(await self._next(timeout_seconds), expected)
            if kind == _END:
                return
            expected += 1
            pieces.append(data)
            if kind == _PART:
                yield b"".join(pieces)
                pieces.clear()

    async def _next(self, timeout_seconds: float) -> bytes:
        try:
            async with asyncio.timeout(timeout_seconds):
                return await self._frames.get()
        except TimeoutError:
            raise NoResponder(f"{self.subject}: no answer for {timeout_seconds:g} s") from None

    def _open(self, frame: bytes, expected: int) -> tuple[bytes, bytes]:
        if len(frame) < _HEAD.size:
            raise NoResponder(f"{self.subject}: the answer is not from a server of this bus")
        kind, number = _HEAD.unpack_from(frame)
        data = frame[_HEAD.size :]
        if kind == _FAILED:
            raise NoResponder(f"{self.subject}: {data.decode(errors='replace')}")
        if kind not in (_MORE, _PART, _END):
            raise NoResponder(f"{self.subject}: the answer is not from a server of this bus")
        if number != expected:
            raise NoResponder(f"{self.subject}: the answer broke off, frame {expected} is missing")
        return kind, data


class Inbox:
    """The answers that a bus awaits, each under a subject of its own below `prefix`."""

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix
        self._answers: dict[str, Answer] = {}
        self._opened = 0

    def open(self, subject: str) -> tuple[str, Answer]:
        """A new reply subject, and the answer that will come there. O(1)."""
        self._opened += 1
        reply = f"{self.prefix}.{self._opened}"
        answer = self._answers[reply] = Answer(subject)
        return reply, answer

    def forget(self, reply: str) -> None:
        """What still comes there is nobody's. O(1)."""
        self._answers.pop(reply, None)

    def take(self, reply: str, frame: bytes) -> None:
        """A frame arrived. O(1)."""
        answer = self._answers.get(reply)
        if answer is not None:
            answer.offer(frame)

    def fail_all(self, reason: str) -> None:
        """End every answer that has not ended. O(n)."""
        for answer in self._answers.values():
            answer.offer(failure(reason))

    def __len__(self) -> int:
        return len(self._answers)


class Responder:
    """Gives answers, several at a time, so that a slow requester does not hold up the others."""

    def __init__(
        self,
        subject: str,
        answer: Callable[[bytes], Awaitable[Iterable[bytes]]],
        send: Callable[[str, bytes], Awaitable[bool]],
        counts: Counts,
    ) -> None:
        self._subject = subject
        self._answer = answer
        self._send = send
        self._counts = counts
        self._free = asyncio.Semaphore(CONCURRENT_ANSWERS)
        self._running: set[asyncio.Task[None]] = set()

    async def take(self, request: Envelope) -> None:
        """Begin to answer a request; waits while too many answers are being given."""
        if not request.reply:
            self._counts.say(f"a message to {self._subject} awaits no answer: ignored")
            return
        await self._free.acquire()
        task = asyncio.create_task(self._give(request), name=f"answer of {self._subject}")
        self._running.add(task)
        task.add_done_callback(self._done)

    async def cancel(self) -> None:
        """Break off all answers."""
        running = self._running - {asyncio.current_task()}
        for task in running:
            task.cancel()
        if running:
            await asyncio.wait(running)

    async def _give(self, request: Envelope) -> None:
        try:
            for frame in frames(await self._answer(request.data)):
                if not await self._send(request.reply, frame):
                    return  # counted there; the requester misses a frame or times out
        except Exception as error:  # whatever `answer` raises is said to the requester
            self._counts.handler_errors += 1
            logger.exception("the server of %s failed", self._subject)
            await self._send(request.reply, failure(f"the server failed: {type(error).__name__}: {error}"))

    def _done(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        self._free.release()
