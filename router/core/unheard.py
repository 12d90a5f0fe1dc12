"""What other routers book at this moment: nobody has heard of it yet, and whoever knows the same would choose the same.

A router learns how many bookings *cross* one of its own: made shortly before it, so that word of them was still on its way, or
after it and without word of it. Where it expects some, it imagines that a part of them has been placed already: none for the first
router, nearly all for the last. So each begins where the one before it leaves off, as one router would that got the requests of
all. Where requests come one by one nothing crosses, nothing is imagined, and every decision is what it would be otherwise.
"""

from __future__ import annotations

import math
from collections import deque
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from events.blocks import NO_HASHES
from events.entry import entry
from router.core import decision_kernels as kernels
from router.core.overlap import Overlap
from router.core.request import RoutingRequest

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from router.core.fleet import FleetView
    from router.core.request import Part

    Score = Callable[[RoutingRequest, FleetView], NDArray[np.float64]]

_spread = entry(kernels.spread)

HALF_LIFE_DECISIONS = 16
_KEEP = 0.5 ** (1 / HALF_LIFE_DECISIONS)
_KEEP_SIZES = 0.5 ** (1 / 64)
LIKELY = 0.5
"""Fewer expected bookings than that are none."""
MOST_AHEAD = 64
"""Imagined bookings, at most."""


class _Decision(NamedTuple):
    """One of ours, while it is open what crosses it."""

    until: float
    heard: int
    """Bookings of others heard of before."""


class Unheard:
    """How many bookings of others cross one of ours, learned.

    :param lag_seconds: from a booking until the other routers know it. What is heard of within twice that time was booked from one
        lag before until one lag after our own.
    """

    def __init__(self, lag_seconds: float) -> None:
        self.expected = 0.0
        """Bookings that cross the next decision: a mean that fades with `HALF_LIFE_DECISIONS`."""
        self._window_seconds = 2 * lag_seconds
        self._rank, self._routers = 0, 1
        self._heard = 0
        self._open: deque[_Decision] = deque()
        self._requests = self._uncached_squares = self._prompt_squares = 0.0

    def stand(self, rank: int, routers: int) -> None:
        """We are one of so many routers; `rank` counts from 0, and no other has ours."""
        self._rank, self._routers = rank, routers

    def heard(self, now: float) -> None:
        """Another router told of a booking that it has just made. O(1), amortised."""
        self._settle(now)
        self._heard += 1

    def placed(self, uncached_tokens: int, prompt_tokens: int, now: float) -> None:
        """We booked a request. O(1), amortised."""
        self._settle(now)
        self._open.append(_Decision(now + self._window_seconds, self._heard))
        self._requests = self._requests * _KEEP_SIZES + 1
        self._uncached_squares = self._uncached_squares * _KEEP_SIZES + uncached_tokens**2
        self._prompt_squares = self._prompt_squares * _KEEP_SIZES + prompt_tokens**2

    def is_expected(self, now: float) -> bool:
        """Whether any booking is likely to cross one made now. O(1), amortised."""
        self._settle(now)
        return self.expected >= LIKELY and self._requests > 0

    def ahead(self) -> float:
        """How many bookings to imagine before one of ours: of those expected, our rank's share. O(1)."""
        return min(self.expected * self._rank / self._routers, MOST_AHEAD)

    def stranger(self, part: Part) -> Stranger:
        """One of them, which nobody has cached; there must have been some of ours. O(1).

        Its size is the root mean square of ours, more than their mean: load comes in lumps, and who waits, waits behind the large.
        """
        prompt_tokens = max(1, round(math.sqrt(self._prompt_squares / self._requests)))
        request = RoutingRequest("stranger", NO_HASHES, prompt_tokens, part=part)
        return Stranger(request, round(math.sqrt(self._uncached_squares / self._requests)))

    def _settle(self, now: float) -> None:
        """Count what crossed decisions that are old enough. It does not matter how late, if it is before anything else is heard."""
        while self._open and self._open[0].until <= now:
            crossed = self._heard - self._open.popleft().heard
            self.expected = crossed + (self.expected - crossed) * _KEEP

    def __repr__(self) -> str:
        return f"Unheard({self.expected:.3g} expected, router {self._rank} of {self._routers})"


class Stranger(NamedTuple):
    """A request of another router that is only expected."""

    request: RoutingRequest
    uncached_tokens: int
    """To be prefilled wherever it goes; 0 of a decode side."""


def with_strangers(
    fleet: FleetView, count: int, stranger: Stranger, score: Score, precedence: NDArray[np.float64]
) -> FleetView | None:
    """The fleet as it would be with so many requests more, each at the lowest score; `precedence`, float64 (slots,), breaks ties.

    A target's score is taken to rise by the same amount with each. Where it does not rise, or is infinite, the policy goes by
    something else than load: None. Two scores, and O(targets · count).
    """
    slots = len(fleet.eligible)
    nowhere, placed = np.zeros(slots, np.int32), np.zeros(slots, np.int64)
    strange = fleet._replace(
        overlap=Overlap(nowhere, nowhere, nowhere, nowhere),
        active_blocks=lambda: nowhere,
        uncached_tokens=np.full(slots, max(1, stranger.uncached_tokens)),
    )
    at_first = score(stranger.request, strange)
    with_one = score(stranger.request, _loaded(strange, stranger, np.ones(slots, np.int64)))
    if not _spread(at_first, with_one, precedence, fleet.eligible, count, placed):
        return None
    return _loaded(fleet, stranger, placed) if count else fleet


def _loaded(fleet: FleetView, stranger: Stranger, requests: NDArray[np.int64]) -> FleetView:
    """With so many more requests at each target; none of their blocks is shared."""
    prompt_tokens = stranger.request.prompt_tokens
    return fleet._replace(
        prefill_tokens=fleet.prefill_tokens + requests * stranger.uncached_tokens,
        active_requests=fleet.active_requests + requests,
        decode_blocks=fleet.decode_blocks + requests * (prompt_tokens // fleet.block_size),
        context_tokens=fleet.context_tokens + requests * prompt_tokens,
    )
