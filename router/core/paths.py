"""Which path a request takes: to one worker that does all of it, or to a pair, one that prefills and one that decodes.

Both are predicted in seconds, this request's and what those lose that are held up, and the cheaper one is taken:

    whole = queued / rate + own / rate · (1 + 0.3 · active requests)  at the best target for it, + overhead of whole requests
    pair  = the same at the best prefill target, where nobody decodes                           , + overhead of pairs

So a short uncached part stays whole, for it holds up few and saves the transfer; a long one goes to a pair, unless the prefill
queue is longer than what decodes elsewhere would lose. The overhead is what the time to first token was above the prediction,
learned from what happens on each path: for a pair, rendezvous, transfer and the decode worker's queue.
"""

from __future__ import annotations

import enum
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from router.core.decision import NoTarget, Pair, Placement
from router.core.request import Part, RoutingRequest, Target

if TYPE_CHECKING:
    from router.core.decider import Considered
    from router.core.decision import Decision
    from router.core.scheduler import Scheduler

HELD_UP_WEIGHT = 0.3
"""How much a second by which a running request is held up counts, against a second of this request's own wait. Of 0, 0.05, 0.1, 0.3
and 1 the one that shortens the longest gaps between tokens without a longer median wait; see docs/sglang.md."""
PAIR_OVERHEAD_SECONDS = 0.02
"""Of a pair, until one was seen: a rendezvous over HTTP and the transfer of a few thousand tokens."""
MOST_OVERHEAD_SECONDS = 1.0
"""A sample above it counts as this much: one request that hung must not close a path."""
SAMPLE_WEIGHT = 0.1
FORGOTTEN_AFTER_SECONDS = 60.0
"""What was learned of a path that is not taken any more fades towards the first assumption, halfway in this time."""
PREFILL_SUFFIX = "/prefill"


class Path(enum.StrEnum):
    """How a request is served."""

    WHOLE = "whole"
    PAIR = "pair"


class Overhead:
    """Seconds to first token beyond the prediction, a moving average that fades back when nothing is observed."""

    def __init__(self, assumed_seconds: float) -> None:
        self._assumed = self._mean = assumed_seconds
        self._at = -float("inf")
        self.samples = 0

    def observe(self, seconds: float, now: float) -> None:
        """One request's. O(1)."""
        sample = min(max(seconds, 0.0), MOST_OVERHEAD_SECONDS)
        self._mean = self.seconds(now) * (1 - SAMPLE_WEIGHT) + sample * SAMPLE_WEIGHT
        self._at = now
        self.samples += 1

    def seconds(self, now: float) -> float:
        """What to expect now. O(1)."""
        kept: float = 0.5 ** ((now - self._at) / FORGOTTEN_AFTER_SECONDS)
        return self._assumed + (self._mean - self._assumed) * kept

    def __repr__(self) -> str:
        return f"Overhead({self._mean:.4f} s after {self.samples} samples)"


class PathStatistics(NamedTuple):
    """Counts since the start, and what is believed now."""

    whole: int
    pair: int
    pairs_apart: int
    """Pairs that are kept from each other now."""
    whole_overhead_seconds: float
    pair_overhead_seconds: float


class PathDecision(NamedTuple):
    """Which path would be taken, and why."""

    path: Path | None
    """None: no path is open."""
    whole_seconds: float | None
    """What each path would cost; None: it is not open."""
    pair_seconds: float | None
    whole: Decision
    prefill: Decision | None
    """The sides of a pair; None where the fleet has nobody for that."""
    decode: Decision | None

    @property
    def first(self) -> Decision:
        """The table of who would compute the prompt."""
        if self.path is Path.PAIR or (self.path is None and self.prefill is not None):
            assert self.prefill is not None
            return self.prefill
        return self.whole


class _Sides(NamedTuple):
    prefill: Considered
    decode: Considered


class Paths:
    """Places requests on a fleet of any mixture: workers that do all, and workers that prefill or decode.

    :param conditional: choose for each request; else whoever can go to a pair does, and only the others are served whole.
    """

    def __init__(self, scheduler: Scheduler, *, conditional: bool = True) -> None:
        self._scheduler = scheduler
        self._conditional = conditional
        self._overheads = {Path.WHOLE: Overhead(0.0), Path.PAIR: Overhead(PAIR_OVERHEAD_SECONDS)}
        self._apart: set[tuple[Target, Target]] = set()
        self._taken = dict.fromkeys(Path, 0)

    def place(self, request: RoutingRequest, now: float, *, may_pair: bool = True) -> Placement | Pair:
        """Choose a path and its targets, and book the request there; a pair's prefill side is booked under `prefill_id`.

        O(blocks + targets), two or three times that where a fleet has both kinds.

        :param may_pair: False: only as a whole.
        :raises NoTarget: no path is open; of a fleet that pairs, the pair's reason.
        :raises ValueError: as `Scheduler.place`.
        """
        if not (may_pair and self._scheduler.has(Part.PREFILL)):
            placement = self._scheduler.place(request, now)
            self._taken[Path.WHOLE] += 1
            return placement
        sides = self._sides_or_reason(request, now)
        whole = self._whole(request, sides, now)
        if whole is not None:
            self._taken[Path.WHOLE] += 1
            return self._scheduler.book(whole, now)
        if isinstance(sides, NoTarget):
            raise sides
        self._taken[Path.PAIR] += 1
        return Pair(self._scheduler.book(sides.prefill, now), self._scheduler.book(sides.decode, now))

    def first_token(self, path: Path, predicted_seconds: float | None, seconds: float, now: float) -> None:
        """A request got its first token `seconds` after its placement, which had predicted it so. O(1)."""
        if predicted_seconds is not None:
            self._overheads[path].observe(seconds - predicted_seconds, now)

    def set_together(self, prefill: Target, decode: Target, together: bool) -> None:
        """Whether these two may be a pair."""
        (self._apart.discard if together else self._apart.add)((prefill, decode))

    def explain(self, request: RoutingRequest, now: float) -> PathDecision:
        """What `place` would do now, and why; nothing is booked."""
        pairs = self._scheduler.has(Part.PREFILL)
        sides = self._sides_or_reason(request, now) if pairs else None
        open_sides = sides if isinstance(sides, _Sides) else None
        whole = self._whole(request, sides, now) if sides is not None else self._considered(request, now)
        seconds = self._cost(self._considered(request, now), Path.WHOLE, now)
        return PathDecision(
            Path.WHOLE if whole is not None else Path.PAIR if open_sides is not None else None,
            seconds,
            self._cost(open_sides.prefill if open_sides is not None else None, Path.PAIR, now),
            self._scheduler.explain(request, now),
            self._decision(prefill_request(request), now),
            self._decision(decode_request(request), now),
        )

    def statistics(self, now: float) -> PathStatistics:
        """Counts and beliefs. O(1)."""
        whole, pair = (self._overheads[path].seconds(now) for path in (Path.WHOLE, Path.PAIR))
        return PathStatistics(self._taken[Path.WHOLE], self._taken[Path.PAIR], len(self._apart), whole, pair)

    def _whole(self, request: RoutingRequest, sides: _Sides | NoTarget | None, now: float) -> Considered | None:
        """Where it goes as a whole; None: it does not."""
        if isinstance(sides, _Sides) and not self._conditional:
            return None
        whole = self._considered(request, now)
        if whole is None or not isinstance(sides, _Sides):
            return whole
        whole_seconds, pair_seconds = self._cost(whole, Path.WHOLE, now), self._cost(sides.prefill, Path.PAIR, now)
        assert whole_seconds is not None
        assert pair_seconds is not None
        return whole if whole_seconds <= pair_seconds else None

    def _considered(self, request: RoutingRequest, now: float) -> Considered | None:
        if not self._scheduler.has(Part.WHOLE):
            return None
        try:
            return self._scheduler.consider(request, now)
        except NoTarget:
            return None

    def _sides_or_reason(self, request: RoutingRequest, now: float) -> _Sides | NoTarget:
        try:
            return self._sides(request, now)
        except NoTarget as nobody:
            return nobody

    def _sides(self, request: RoutingRequest, now: float) -> _Sides:
        """The best prefill target that has somebody to decode for it, and the best of those."""
        prefill, decode = prefill_request(request), decode_request(request)
        while True:
            try:
                first = self._scheduler.consider(prefill, now)
            except NoTarget as nobody:
                raise NoTarget("all pairs apart") if prefill.excluded != request.excluded else nobody from nobody
            apart = frozenset(other for one, other in self._apart if one == first.target)
            try:
                second = self._scheduler.consider(replace(decode, excluded=decode.excluded | apart), now)
            except NoTarget:
                if not apart:
                    raise
                prefill = replace(prefill, excluded=prefill.excluded | {first.target})
            else:
                return _Sides(first, second)

    def _cost(self, considered: Considered | None, path: Path, now: float) -> float | None:
        """Seconds, of its own wait and of what others lose."""
        if considered is None:
            return None
        fleet, slot = considered.fleet, considered.slot
        own_seconds = fleet.uncached_tokens.item(slot) / fleet.prefill_rate.item(slot)
        held_up = 0 if considered.request.part is Part.PREFILL else fleet.active_requests.item(slot)
        seconds = fleet.ttft_seconds_of(slot) + HELD_UP_WEIGHT * own_seconds * held_up
        return seconds + self._overheads[path].seconds(now)

    def _decision(self, request: RoutingRequest, now: float) -> Decision | None:
        return self._scheduler.explain(request, now) if self._scheduler.has(request.part) else None

    def _check(self) -> None:
        assert all(overhead.seconds(0.0) >= 0 for overhead in self._overheads.values())

    def __repr__(self) -> str:
        return f"Paths({self._scheduler!r}, {self._overheads}, {len(self._apart)} pairs apart)"


def prefill_id(request_id: str) -> str:
    """The name under which a request's prefill side is booked."""
    return request_id + PREFILL_SUFFIX


def prefill_request(request: RoutingRequest) -> RoutingRequest:
    """The prefill side of a request."""
    return replace(request, request_id=prefill_id(request.request_id), part=Part.PREFILL)


def decode_request(request: RoutingRequest) -> RoutingRequest:
    """The decode side of a request."""
    return replace(request, part=Part.DECODE)
