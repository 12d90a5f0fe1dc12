"""Routers that tell each other what they book, as `router/service/replicas` does, with a delay instead of a network."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any, NamedTuple

from router.core import RoutingRequest, Scheduler

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    from numpy.typing import NDArray

    from router.core import Target
    from router.core.decider import Considered
    from router.core.load import Booking


class _Said(NamedTuple):
    """What another router did, and when it is heard here."""

    due: float
    do: Callable[[Scheduler, float], object]


class SharingScheduler(Scheduler):
    """A router's scheduler. `others` are the rest; it is the observer of its own bookings."""

    def __init__(self, *arguments: Any, name: str, lag_seconds: float, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.others: list[SharingScheduler] = []
        self._name = name
        self._lag_seconds = lag_seconds
        self._now = 0.0
        self._heard: deque[_Said] = deque()
        self.observers.append(self)

    # ---- what the router does, and then the others hear

    def consider(self, request: RoutingRequest, now: float) -> Considered:
        """Hear what is due, then decide."""
        self.hear(now)
        return super().consider(request, now)

    def first_token(self, request_id: str, cached_tokens: int | None, now: float) -> None:
        """As `Scheduler.first_token`."""
        self._now = now
        super().first_token(request_id, cached_tokens, now)

    def free(
        self, request_id: str, now: float, *, failed: bool = False, generated: NDArray[np.uint64] | None = None
    ) -> None:
        """As `Scheduler.free`."""
        self._now = now
        super().free(request_id, now, failed=failed, generated=generated)

    def hear(self, now: float) -> None:
        """Take in what others said until then."""
        while self._heard and self._heard[0].due <= now:
            said = self._heard.popleft()
            said.do(self, said.due)
        self._now = now

    # ---- the observer

    def booked(self, target: Target, booking: Booking) -> None:
        """A request of ours was placed."""
        request = RoutingRequest(self._key(booking.request_id), booking.hashes, booking.prompt_tokens)
        uncached_tokens = booking.uncached_tokens
        self._say(lambda other, now: other.book_elsewhere(self._name, request, target, uncached_tokens, now))

    def prefilled(self, request_id: str, cached_tokens: int | None) -> None:
        """It has its first token."""
        key = self._key(request_id)

        def tell(other: Scheduler, now: float) -> None:
            if other.is_booked(key):
                Scheduler.first_token(other, key, cached_tokens, now)

        self._say(tell)

    def freed(self, request_id: str, *, failed: bool) -> None:
        """It is over."""
        key = self._key(request_id)

        def tell(other: Scheduler, now: float) -> None:
            if other.is_booked(key):
                Scheduler.free(other, key, now, failed=failed)

        self._say(tell)

    def _say(self, do: Callable[[Scheduler, float], object]) -> None:
        for other in self.others:
            other._heard.append(_Said(self._now + self._lag_seconds, do))  # noqa: SLF001 - one of us

    def _key(self, request_id: str) -> str:
        return f"{self._name}/{request_id}"
