"""Keeps failing targets out of new work for a while: twice as long each time, forgiven after a quiet minute."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import asyncio

    from router.core import Scheduler, Target

logger = logging.getLogger(__name__)

FIRST_SECONDS = 1.0
LONGEST_SECONDS = 30.0
FORGIVEN_AFTER_SECONDS = 60.0


class Offence(NamedTuple):
    """A target's latest failure."""

    at: float
    out_for_seconds: float
    reason: str


class Quarantine:
    """Takes targets out of scheduling after a failure, and back in by itself.

    Times are the event loop's; one failure while a target is already out changes nothing (many requests fail at once when a
    worker dies, and that is one event).
    """

    def __init__(self, scheduler: Scheduler, loop: asyncio.AbstractEventLoop) -> None:
        self._scheduler = scheduler
        self._loop = loop
        self._offences: dict[Target, Offence] = {}
        self._out: dict[Target, asyncio.TimerHandle] = {}

    def failed(self, target: Target, error: Exception) -> None:
        """A request failed on this target through no fault of its own."""
        if target in self._out:
            return
        now = self._loop.time()
        last = self._offences.get(target)
        recent = last is not None and now - last.at < FORGIVEN_AFTER_SECONDS
        seconds = min(2 * last.out_for_seconds, LONGEST_SECONDS) if recent and last else FIRST_SECONDS
        self._offences[target] = Offence(now, seconds, str(error))
        self._scheduler.set_available(target, available=False)
        self._out[target] = self._loop.call_later(seconds, self._release, target)
        logger.warning("%s gets no new requests for %g s: %s", target, seconds, error)

    def forget(self, target: Target) -> None:
        """The target is gone or new: no memory of it."""
        self._offences.pop(target, None)
        if handle := self._out.pop(target, None):
            handle.cancel()

    def reason(self, target: Target) -> str | None:
        """Why a target is out now; None: it is not."""
        return self._offences[target].reason if target in self._out else None

    def _release(self, target: Target) -> None:
        del self._out[target]
        self._scheduler.set_available(target, available=True)
        logger.info("%s gets requests again", target)
