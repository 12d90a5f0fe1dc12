"""Answers of those who are no bus of ours, such as a NATS server's own services: messages as they come, headers included."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from events.bus import NoResponder

if TYPE_CHECKING:
    from nats.aio.msg import Msg


class RawAnswer:
    """Messages on their way to who asked."""

    def __init__(self, subject: str) -> None:
        self._subject = subject
        self._messages: asyncio.Queue[Msg | str] = asyncio.Queue()

    def offer(self, message: Msg | str) -> None:
        """Take the next message, or why there will be none. O(1)."""
        self._messages.put_nowait(message)

    async def next(self, timeout_seconds: float) -> Msg:
        """The next message.

        :raises NoResponder: nobody answers, or not in time.
        """
        try:
            async with asyncio.timeout(timeout_seconds):
                message = await self._messages.get()
        except TimeoutError:
            raise NoResponder(f"{self._subject}: no answer for {timeout_seconds:g} s") from None
        if isinstance(message, str):
            raise NoResponder(f"{self._subject}: {message}")
        return message


class RawInbox:
    """The answers that are awaited, each under a subject of its own below `prefix`."""

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix
        self._answers: dict[str, RawAnswer] = {}
        self._opened = 0

    def open(self, subject: str) -> tuple[str, RawAnswer]:
        """A new reply subject, and the answer that will come there. O(1)."""
        self._opened += 1
        reply = f"{self._prefix}.raw-{self._opened}"
        answer = self._answers[reply] = RawAnswer(subject)
        return reply, answer

    def forget(self, reply: str) -> None:
        """What still comes there is nobody's. O(1)."""
        self._answers.pop(reply, None)

    def take(self, reply: str, message: Msg | str) -> bool:
        """A message arrived; false: it is none of these. O(1)."""
        answer = self._answers.get(reply)
        if answer is not None:
            answer.offer(message)
        return answer is not None

    def fail_all(self, reason: str) -> None:
        """End every answer. O(n)."""
        for answer in self._answers.values():
            answer.offer(reason)
