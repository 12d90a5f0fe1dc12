"""Acts on the evidence: an alarm where events never match prompts, a new snapshot where hits are persistently not as expected,
and a new mirror where that did not help.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, NamedTuple

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from router.service.loads import excess_requests

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from prometheus_client.metrics_core import Metric

    from router.core import Scheduler, Target
    from router.core.evidence import Evidence
    from router.core.states import TargetState
    from router.metrics import Metrics
    from router.service.feed import EventFeed

logger = logging.getLogger(__name__)

LOOK_SECONDS = 2.0
UNTRACED_REQUESTS = 50
"""So many requests without a trace in their target's events are no accident."""
COMPARED_REQUESTS = 32
HIT_ERROR = 0.25
FIRST_PAUSE_SECONDS = 30.0
LONGEST_PAUSE_SECONDS = 960.0
EXCESS_SECONDS = 20.0
"""Bookings beyond what an engine reports for so long are not on their way there."""


class Doubt(NamedTuple):
    """When a target was last resynchronised for its hits, and how long it is left alone after that.

    It stands until hits have come true again, twice as long after it.
    """

    at: float
    pause_seconds: float


class Accounting(Collector):
    """Looks at the evidence of every followed target now and then."""

    def __init__(self, scheduler: Scheduler, feed: EventFeed, metrics: Metrics, clock: Callable[[], float]) -> None:
        self._scheduler = scheduler
        self._feed = feed
        self._metrics = metrics
        self._clock = clock
        self._alarmed: set[Target] = set()
        self._doubts: dict[Target, Doubt] = {}
        self._excess_since: dict[Target, float] = {}
        self._excess: dict[Target, int] = {}
        """Requests booked for long that their engine does not know of."""

    def __repr__(self) -> str:
        return f"<Accounting, {len(self._alarmed)} alarms, {len(self._doubts)} doubts>"

    async def run(self) -> None:
        """Look for as long as it runs."""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            self.look()

    def look(self) -> None:
        """Compare, say, resynchronise. O(targets)."""
        followed = self._feed.targets()
        for gone in (self._alarmed | self._doubts.keys()) - set(followed):
            self._alarmed.discard(gone)
            self._doubts.pop(gone, None)
        for target in followed:
            evidence = self._scheduler.evidence(target)
            if evidence is not None:
                self._match(target, evidence)
                self._hits(target, evidence)
        states = self._scheduler.targets()
        for gone in self._excess_since.keys() - {state.target for state in states}:
            del self._excess_since[gone]
            self._excess.pop(gone, None)
        for state in states:
            self._load(state)

    def collect(self) -> Iterable[Metric]:
        """Hit errors and alarms, as of now."""
        error = GaugeMetricFamily(
            "warmpath_hit_prediction_error",
            "Expected less actual cached tokens of late, as a share of the larger.",
            labels=("target",),
        )
        alarm = GaugeMetricFamily(
            "warmpath_zero_match", "1: its events never match what was sent there.", labels=("target",)
        )
        for target in self._feed.targets():
            evidence = self._scheduler.evidence(target)
            if evidence is not None:
                error.add_metric((str(target),), evidence.hit_error)
                alarm.add_metric((str(target),), target in self._alarmed)
        excess = GaugeMetricFamily(
            "warmpath_booking_excess", "Requests booked that their engine does not report.", labels=("target",)
        )
        for target, requests in self._excess.items():
            excess.add_metric((str(target),), requests)
        return error, alarm, excess

    def _load(self, state: TargetState) -> None:
        """Bookings that the engine has known nothing of, for long: said once, until they are gone."""
        now, target = self._clock(), state.target
        requests = excess_requests(state, now)
        if not requests:
            self._excess_since.pop(target, None)
            self._excess.pop(target, None)
        elif now - self._excess_since.setdefault(target, now) >= EXCESS_SECONDS:
            if target not in self._excess:
                logger.warning("%s: %d requests are booked there that its engine does not report", target, requests)
            self._excess[target] = requests

    def _match(self, target: Target, evidence: Evidence) -> None:
        if evidence.untraced_requests < UNTRACED_REQUESTS:
            self._alarmed.discard(target)
            return
        if target in self._alarmed:
            return
        self._alarmed.add(target)
        self._metrics.zero_match_alarms.inc()
        logger.error(
            "%s: the last %d prompts left no trace in its cache events: its tokenizer, chat template or hashes differ from this "
            "router's, or its events are another engine's; cache-aware routing to it does not work",
            target,
            evidence.untraced_requests,
        )

    def _hits(self, target: Target, evidence: Evidence) -> None:
        if evidence.compared_requests < COMPARED_REQUESTS:
            return
        now, doubt = self._clock(), self._doubts.get(target)
        if abs(evidence.hit_error) < HIT_ERROR:
            if doubt is not None and now - doubt.at > 2 * doubt.pause_seconds:
                del self._doubts[target]
        elif doubt is None:
            self._doubt(target, evidence, Doubt(now, FIRST_PAUSE_SECONDS), mirror=False)
        elif now - doubt.at >= doubt.pause_seconds:
            longer = Doubt(now, min(2 * doubt.pause_seconds, LONGEST_PAUSE_SECONDS))
            self._doubt(target, evidence, longer, mirror=True)

    def _doubt(self, target: Target, evidence: Evidence, doubt: Doubt, *, mirror: bool) -> None:
        """A snapshot heals the index; where it did not, the mirror that it was of is wrong, too."""
        self._doubts[target] = doubt
        self._metrics.hit_resyncs.labels("mirror" if mirror else "index").inc()
        logger.warning(
            "%s: cached tokens were %+.0f %% off what its index promised, over the last requests%s: taking a snapshot%s",
            target,
            -100 * evidence.hit_error,
            ", though it is its adapter's mirror" if mirror else "",
            ", and having the mirror built anew" if mirror else "",
        )
        self._scheduler.forget_hits(target)
        self._feed.distrust(target, mirror=mirror)
