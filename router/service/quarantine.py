"""Keeps what keeps failing out of new work for a while: twice as long each time, forgiven after a quiet minute."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Generic, NamedTuple, TypeVar

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Hashable

logger = logging.getLogger(__name__)

FIRST_SECONDS = 1.0
LONGEST_SECONDS = 30.0
FORGIVEN_AFTER_SECONDS = 60.0

K = TypeVar("K", bound="Hashable")


class Offence(NamedTuple):
    """The latest failure of something."""

    at: float
    out_for_seconds: float
    reason: str


class Quarantine(Generic[K]):
    """Takes things out of scheduling after a failure, and back in by itself: targets, or pairs of them.

    `set_available(thing, available)` does either. Times are the event loop's; one failure while a thing is already out changes
    nothing (many requests fail at once when a worker dies, and that is one event).
    """

    def __init__(self, set_available: Callable[[K, bool], None], loop: asyncio.AbstractEventLoop) -> None:
        self._set_available = set_available
        self._loop = loop
        self._offences: dict[K, Offence] = {}
        self._out: dict[K, asyncio.TimerHandle] = {}
        self.count = 0
        """Times that something was taken out."""

    def failed(self, thing: K, error: Exception) -> None:
        """A request failed on this through no fault of its own."""
        if thing in self._out:
            return
        now = self._loop.time()
        last = self._offences.get(thing)
        recent = last is not None and now - last.at < FORGIVEN_AFTER_SECONDS
        seconds = min(2 * last.out_for_seconds, LONGEST_SECONDS) if recent and last else FIRST_SECONDS
        self._offences[thing] = Offence(now, seconds, str(error))
        self.count += 1
        self._set_available(thing, False)
        self._out[thing] = self._loop.call_later(seconds, self._release, thing)
        logger.warning("%s gets no new requests for %g s: %s", _named(thing), seconds, error)

    def forget(self, thing: K) -> None:
        """It is gone or new: no memory of it."""
        self._offences.pop(thing, None)
        if handle := self._out.pop(thing, None):
            handle.cancel()
            self._set_available(thing, True)

    def reason(self, thing: K) -> str | None:
        """Why it is out now; None: it is not."""
        return self._offences[thing].reason if thing in self._out else None

    def out(self) -> list[K]:
        """What is out now."""
        return list(self._out)

    def known(self) -> list[K]:
        """What ever failed, and is not forgotten."""
        return list(self._offences)

    def _release(self, thing: K) -> None:
        del self._out[thing]
        self._set_available(thing, True)
        logger.info("%s gets requests again", _named(thing))


def _named(thing: object) -> str:
    """For people: a pair as both its members."""
    if type(thing) is tuple:
        return " with ".join(map(str, thing))
    return str(thing)
