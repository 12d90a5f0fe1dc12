"""The read path: match → filter → score → pick. What is known of targets goes in, a decision comes out, and nothing is changed."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from events.blocks import NO_HASHES
from events.entry import entry
from router.core import decision_kernels as kernels
from router.core.chance import Chance
from router.core.decision import Candidate, Decision, NoTarget, Placement
from router.core.fleet import FleetView
from router.core.policy import filters
from router.core.presence import as_hashes
from router.core.request import Part
from router.core.unheard import Unheard, with_strangers

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from router.core.fleet import Fleet
    from router.core.index import PrefixIndex
    from router.core.load import Booking, Bookings, ReportedLoads
    from router.core.overlap import Overlap
    from router.core.policy import Policy
    from router.core.predicted import PredictedPresence
    from router.core.rate import PrefillRates
    from router.core.request import RoutingRequest, Target

_has_nan = entry(kernels.has_nan)
_SCORES = np.dtype(np.float64)


class Considered(NamedTuple):
    """A decision that was made and not booked: valid until anything else is told to the scheduler."""

    request: RoutingRequest
    slot: int
    fleet: FleetView
    score: float
    target: Target


class Decider:
    """Chooses targets by two policies, for requests and for the decode sides of pairs, from what is known of all targets.

    `decisions` counts what was booked: the same number gives the same random choices, however often it is explained.
    """

    def __init__(
        self,
        policy: Policy,
        decode_policy: Policy,
        block_size: int,
        seed: int,
        *,
        fleet: Fleet,
        index: PrefixIndex,
        predicted: PredictedPresence,
        bookings: Bookings,
        reported: ReportedLoads,
        rates: PrefillRates,
    ) -> None:
        self._policy = policy
        self._decode_policy = decode_policy
        self._block_size = block_size
        self._chance = Chance(seed)
        self._fleet = fleet
        self._index = index
        self._predicted = predicted
        self._bookings = bookings
        self._reported = reported
        self._rates = rates
        self._matcher = index.matcher(0, predicted.table)
        self._seen: FleetView | None = None
        self._asked: NDArray[np.uint64] = NO_HASHES
        self._unheard: dict[Part, Unheard] = {}
        """Empty while nobody else decides."""
        self.decisions = 0

    def __repr__(self) -> str:
        return f"Decider({self._policy!r}, {self._decode_policy!r}, {self.decisions} decisions)"

    def refit(self) -> None:
        """The number of slots may have changed. O(1)."""
        self._matcher = self._index.matcher(self._fleet.slots, self._predicted.table)
        self._seen = None

    def consider(self, request: RoutingRequest, now: float) -> Considered:
        """The best target. O(blocks + targets).

        :raises NoTarget: no target may take it.
        :raises ValueError: it has more hashes than full blocks, or the policy's scores are unfit.
        """
        fleet = self._view(request, self.match(request), now)
        filters.eligible(self._fleet, request, fleet.eligible)
        scores = self._scores(request, fleet, now)
        slot = self._policy_for(request).pick(scores, fleet.eligible, self._chance)
        return Considered(request, slot, fleet, float(scores[slot]), self._fleet.target(slot))

    def explain(self, request: RoutingRequest, now: float) -> Decision:
        """What `consider` says, and why. O(blocks + targets).

        :raises ValueError: as `consider`.
        """
        fleet = self._view(request, self.match(request), now)
        policy = self._policy_for(request)
        try:
            filters.eligible(self._fleet, request, fleet.eligible)
        except NoTarget as none:
            return Decision(request.request_id, policy.name, self._candidates(request, fleet), None, str(none))
        scores = self._scores(request, fleet, now)
        slot = policy.pick(scores, fleet.eligible, self._chance)
        candidates = self._candidates(request, fleet, scores, slot)
        return Decision(request.request_id, policy.name, candidates, self._fleet.target(slot), None)

    def placement(self, considered: Considered) -> Placement:
        """A choice as those are told who asked for it. O(1)."""
        request, slot, fleet = considered.request, considered.slot, considered.fleet
        prefills = request.part is not Part.DECODE
        device, host, disk, predicted = [blocks.item(slot) for blocks in fleet.overlap]
        uncached_tokens: int = fleet.uncached_tokens.item(slot)
        return Placement(
            target=considered.target,
            overlap_blocks=device + host + disk + predicted,
            predicted_blocks=predicted,
            cached_tokens=request.prompt_tokens - uncached_tokens,
            uncached_tokens=uncached_tokens,
            score=considered.score,
            predicted_ttft_seconds=fleet.ttft_seconds_of(slot) if prefills and self._rates.learned else None,
        )

    def match(self, request: RoutingRequest) -> Overlap:
        """What every target holds of a prompt; valid until the next call. O(blocks + targets).

        :raises ValueError: it has more hashes than full blocks.
        """
        if len(request.hashes) > request.prompt_tokens // self._block_size:
            raise ValueError(
                f"request {request.request_id!r} has {len(request.hashes)} hashes, but {request.prompt_tokens} prompt tokens are"
                f" {request.prompt_tokens // self._block_size} full blocks of {self._block_size}"
            )
        return self._matcher(as_hashes(request.hashes))

    # ---- told

    def booked(self, slot: int, booking: Booking, now: float) -> None:
        """A choice was followed. O(1)."""
        if self._unheard:
            self._unheard[self._fleet.part(slot)].placed(booking.uncached_tokens, booking.prompt_tokens, now)
        self._fleet.columns["last_placed"][slot] = self.decisions
        self.decisions += 1

    def booked_elsewhere(self, slot: int, now: float) -> None:
        """Another router has just followed one of its own. O(1)."""
        if self._unheard:
            self._unheard[self._fleet.part(slot)].heard(now)

    def share(self, rank: int, routers: int, lag_seconds: float) -> None:
        """So many routers decide over these targets, see `Scheduler.share`. O(1)."""
        if routers == 1:
            self._unheard.clear()
            return
        for part in Part:
            self._unheard.setdefault(part, Unheard(lag_seconds)).stand(rank, routers)

    @property
    def unheard_bookings(self) -> float:
        """Bookings of other routers that cross one of ours, on average of the last ones."""
        return max((unheard.expected for unheard in self._unheard.values()), default=0.0)

    # ---- the steps

    def _view(self, request: RoutingRequest, overlap: Overlap, now: float) -> FleetView:
        """What a policy sees: the same arrays each time, brought up to date. `eligible` is for the filters to write."""
        rates, page_size = self._rates.rates(), self._fleet.columns["page_size"]
        view = self._seen
        if view is None or view.prefill_rate is not rates:
            view = self._seen = self._new_view(overlap, rates)
        overlap.uncached_tokens(request.prompt_tokens, self._block_size, page_size, view.uncached_tokens)
        self._reported.prefill_tokens(rates, now, view.reported_prefill_tokens)
        self._asked = request.hashes
        return view

    def _new_view(self, overlap: Overlap, rates: NDArray[np.float64]) -> FleetView:
        static, booked, slots = self._fleet.columns, self._bookings.columns, self._fleet.slots
        return FleetView(
            block_size=self._block_size,
            eligible=np.zeros(slots, np.bool_),
            overlap=overlap,
            active_blocks=lambda: self._bookings.active_blocks(self._asked),
            held_blocks=self._held_blocks,
            uncached_tokens=np.empty(slots, np.int64),
            prefill_tokens=booked["prefill_tokens"],
            reported_prefill_tokens=np.empty(slots),
            active_requests=booked["active_requests"],
            decode_blocks=booked["decode_blocks"],
            context_tokens=booked["context_tokens"],
            prefill_rate=rates,
            capacity_blocks=static["capacity_blocks"],
            max_running_requests=static["max_running_requests"],
            last_placed=static["last_placed"],
        )

    def _policy_for(self, request: RoutingRequest) -> Policy:
        return self._decode_policy if request.part is Part.DECODE else self._policy

    def _scores(self, request: RoutingRequest, fleet: FleetView, now: float) -> NDArray[np.float64]:
        unheard = self._unheard.get(request.part)
        if unheard is not None and unheard.is_expected(now):
            foreseen = self._foreseen(request, fleet, unheard)
            if foreseen is not None:
                scores: NDArray[np.float64] = self._score(request, foreseen) + self._fleet.columns["precedence"]
                return scores
        return self._score(request, fleet)

    def _foreseen(self, request: RoutingRequest, fleet: FleetView, unheard: Unheard) -> FleetView | None:
        """The targets with what others place there at this moment. None: the policy does not go by loads."""
        # Others' requests go to other models, too.
        here = np.count_nonzero(fleet.eligible) / self._fleet.count(request.part)
        count, precedence = round(unheard.ahead() * here), self._fleet.columns["precedence"]
        return with_strangers(fleet, count, unheard.stranger(request.part), self._score, precedence)

    def _score(self, request: RoutingRequest, fleet: FleetView) -> NDArray[np.float64]:
        policy = self._policy_for(request)
        scores = policy.score(fleet, request, self._chance.of(self.decisions))
        if scores.shape != fleet.eligible.shape or scores.dtype != _SCORES or _has_nan(scores, fleet.eligible):
            raise ValueError(f"policy {policy.name!r} must score each eligible target with a float64, not {scores!r}")
        return scores

    def _held_blocks(self) -> NDArray[np.int64]:
        held = [self._index.held_blocks(slot) + self._predicted.held_blocks(slot) for slot in range(self._fleet.slots)]
        return np.array(held, np.int64)

    def _candidates(
        self,
        request: RoutingRequest,
        fleet: FleetView,
        scores: NDArray[np.float64] | None = None,
        chosen: int | None = None,
    ) -> list[Candidate]:
        refusals = filters.refusals(self._fleet, request)
        return [
            Candidate(
                target=target,
                refusal=refusals.get(slot),
                device_blocks=int(fleet.overlap.device_blocks[slot]),
                host_blocks=int(fleet.overlap.host_blocks[slot]),
                disk_blocks=int(fleet.overlap.disk_blocks[slot]),
                predicted_blocks=int(fleet.overlap.predicted_blocks[slot]),
                uncached_tokens=int(fleet.uncached_tokens[slot]),
                prefill_tokens=int(fleet.prefill_tokens[slot]),
                reported_prefill_tokens=float(fleet.reported_prefill_tokens[slot]),
                active_requests=int(fleet.active_requests[slot]),
                decode_blocks=int(fleet.decode_blocks[slot]),
                prefill_rate=float(fleet.prefill_rate[slot]),
                score=float(scores[slot]) if scores is not None and slot not in refusals else None,
                chosen=slot == chosen,
            )
            for slot, target in self._fleet.items()
        ]
