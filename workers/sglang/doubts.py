"""What routers say of a mirror whose promises do not come true, however often it is fetched."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

REST_SECONDS = 30.0
"""After a mirror was built anew: doubts are of the one before."""


class Doubts:
    """Doubts of one rank's mirror. Building it anew settles all that came until then, and those that come shortly after."""

    def __init__(self, rest_seconds: float = REST_SECONDS, clock: Callable[[], float] = time.monotonic) -> None:
        self._rest_seconds = rest_seconds
        self._clock = clock
        self._settled_at: float | None = None
        self.count = 0
        """All so far."""
        self.pending = False
        """Whether the mirror is to be built anew."""

    def __repr__(self) -> str:
        return f"<Doubts: {self.count}, {'pending' if self.pending else 'settled'}>"

    def add(self) -> None:
        """A router doubts."""
        self.count += 1
        if self._settled_at is None or self._clock() - self._settled_at >= self._rest_seconds:
            self.pending = True

    def settle(self) -> None:
        """The mirror is built anew."""
        self.pending = False
        self._settled_at = self._clock()
