"""One subscriber's queue, and the task that hands its messages to the handler: one at a time, in order."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING, NamedTuple

from events.bus import Subscription

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from events.bus.counts import Counts
    from events.bus.pattern import Pattern

logger = logging.getLogger(__name__)

OVERHEAD_BYTES = 256  # about what a queued message costs besides its data
TURN_SECONDS = 0.0005  # spent on messages before others get their turn on the event loop: a burst must not starve them


class Envelope(NamedTuple):
    """A message as it travels: a request carries the subject of its answer."""

    subject: str
    data: bytes
    reply: str = ""


class Delivery(Subscription):
    """A subscription's queue, bounded in bytes: what does not fit is dropped and counted."""

    def __init__(
        self,
        pattern: Pattern,
        handler: Callable[[Envelope], Awaitable[None]],
        detach: Callable[[Delivery], Awaitable[None]],
        counts: Counts,
        queue_bytes: int,
        *,
        shared: bool = False,
    ) -> None:
        self.pattern = pattern
        self.shared = shared
        """Each message goes to only one of the shared deliveries of a pattern."""
        self._handler = handler
        self._counts = counts
        self._queue: asyncio.Queue[Envelope] = asyncio.Queue()
        self._queued_bytes = 0
        self._limit_bytes = queue_bytes
        self._detach = detach
        self._cancelled = self._detached = False
        self._task = asyncio.create_task(self._run(), name=f"delivery of {pattern.text}")

    def offer(self, message: Envelope) -> None:
        """Queue a message for the handler; never waits. O(1)."""
        if self._cancelled:
            return
        size = len(message.data) + OVERHEAD_BYTES
        if self._queued_bytes + size > self._limit_bytes:
            self._counts.drop(f"the subscriber of {self.pattern.text} is too slow")
            return
        self._counts.received += 1
        self._queued_bytes += size
        self._queue.put_nowait(message)

    async def cancel(self) -> None:
        """Stop delivery, interrupting a handler that runs; from inside the handler itself, after it has returned."""
        self._cancelled = True
        if asyncio.current_task() is not self._task:
            self._task.cancel()
            await asyncio.wait({self._task})
        if not self._detached:
            self._detached = True
            await self._detach(self)

    async def _run(self) -> None:
        turn_ends = time.perf_counter() + TURN_SECONDS
        while not self._cancelled:
            message = await self._queue.get()
            self._queued_bytes -= len(message.data) + OVERHEAD_BYTES
            await self._handle(message)
            if time.perf_counter() > turn_ends:
                await asyncio.sleep(0)
                turn_ends = time.perf_counter() + TURN_SECONDS

    async def _handle(self, message: Envelope) -> None:
        try:
            await self._handler(message)
        except (Exception, asyncio.CancelledError):  # whatever a handler raises, delivery must go on
            if self._task.cancelling():  # not raised by the handler: this delivery itself is to end
                raise
            self._counts.handler_errors += 1
            logger.exception("the handler of %s failed on a message of %s", self.pattern.text, message.subject)

    def __repr__(self) -> str:
        state = "cancelled" if self._cancelled else f"{self._queue.qsize()} queued"
        return f"<Delivery {self.pattern.text}, {state}>"
