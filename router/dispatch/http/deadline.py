"""A timer that is cheap to move."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

TICK_SECONDS = 0.001
"""The coarsest clock that a loop may have (uvloop's): its timers may fire that much early."""


class Deadline:
    """Calls `expired` once its time has come, at most once per `set`.

    Moving it later, the common case, costs a comparison: the loop's timer is left where it is, and looks again when it fires.
    """

    __slots__ = ("_expired", "_handle", "_loop", "_when")

    def __init__(self, loop: asyncio.AbstractEventLoop, expired: Callable[[], None]) -> None:
        self._loop = loop
        self._expired = expired
        self._when: float | None = None
        self._handle: asyncio.TimerHandle | None = None

    def __repr__(self) -> str:
        return f"Deadline({self._when})"

    def set(self, when: float) -> None:
        """Expire at `when`, in the loop's time. O(1)."""
        self._when = when
        if self._handle is not None:
            if self._handle.when() <= when:
                return
            self._handle.cancel()
        self._handle = self._loop.call_at(when, self._look)

    def clear(self) -> None:
        """Do not expire; the loop's timer stays for the next `set`. O(1)."""
        self._when = None

    def cancel(self) -> None:
        """Do not expire, and let go of the loop's timer."""
        self._when = None
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None

    def _look(self) -> None:
        self._handle = None
        if self._when is None:
            return
        if self._loop.time() + TICK_SECONDS < self._when:
            self.set(self._when)
            return
        self._when = None
        self._expired()
