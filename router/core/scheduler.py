"""The composition: what workers and requests tell → what is known → a decision → a booking."""

from __future__ import annotations

import logging
from itertools import count
from typing import TYPE_CHECKING

from events.messages import BlocksRemoved, BlocksStored, CacheCleared, Tier, unpack_hashes
from router.core.decider import Considered, Decider
from router.core.decision import Decision, NoTarget, Placement
from router.core.evidence import BeliefEvidence, Evidence
from router.core.fleet import Fleet, FleetView
from router.core.index import DEFAULT_MAX_BLOCKS, PrefixIndex
from router.core.load import Booking, BookingObserver, Bookings, ReportedLoads
from router.core.policy.decode_load import DecodeLoad
from router.core.predicted import PredictedPresence
from router.core.rate import PrefillRates
from router.core.request import Part, RoutingRequest, Target
from router.core.states import Elsewhere, Progress, SchedulerStatistics, TargetState

if TYPE_CHECKING:
    from collections.abc import Iterable

    import numpy as np
    from numpy.typing import NDArray

    from events.messages import CacheEvent, WorkerLoad
    from router.core.overlap import Overlap
    from router.core.policy import Policy

logger = logging.getLogger(__name__)

_EXACT_SHARE = 16
"""Of a cache whose events come, that part is expected to be predicted at any time; of one without events, all of it."""
_MOST_EXPECTED = 1 << 20
"""Predictions for which room is made before they come."""


class Scheduler:
    """Decides which target takes a request, and keeps what it decides by: presence, load and rates of every target.

    Times are seconds of one clock that does not go backwards, passed in as `now`. The same calls with the same seed give the same
    placements. Every call returns at once and leaves the state consistent; calls must not overlap (one thread, or one event loop).

    :param policy: for requests, and for the prefill part of those that are shared out.
    :param block_size: tokens in a block of the sequence hashes.
    :param decode_policy: for the decode part; default: by load alone, see `DecodeLoad`.
    :param prediction_ttl_seconds: how long a prediction lasts on a target without events. What its engine evicts is foretold by its
        capacity; time only ends what nothing else does.
    :param exact_prediction_ttl_seconds: the same on a target with events, where it only has to last until the event comes.
    :param max_index_blocks: bound of the index, in distinct prefixes; beyond it the least recently used go.
    :raises ValueError: `block_size` is below 1.
    """

    def __init__(
        self,
        policy: Policy,
        block_size: int,
        *,
        decode_policy: Policy | None = None,
        prediction_ttl_seconds: float = 3600.0,
        exact_prediction_ttl_seconds: float = 5.0,
        max_index_blocks: int = DEFAULT_MAX_BLOCKS,
        seed: int = 0,
    ) -> None:
        if block_size < 1:
            raise ValueError(f"block_size must be at least 1, not {block_size}")
        self._policy = policy
        self._block_size = block_size
        self._ttl_seconds = {False: prediction_ttl_seconds, True: exact_prediction_ttl_seconds}
        self._fleet = Fleet()
        self._index = PrefixIndex(max_index_blocks)
        self._predicted = PredictedPresence()
        self._bookings = Bookings()
        self._reported = ReportedLoads()
        self._rates = PrefillRates()
        self._evidence = BeliefEvidence()
        self._decider = Decider(
            *(policy, decode_policy or DecodeLoad(), block_size, seed),
            fleet=self._fleet,
            index=self._index,
            predicted=self._predicted,
            bookings=self._bookings,
            reported=self._reported,
            rates=self._rates,
        )
        self.observers: list[BookingObserver] = []
        """Told of every booking of this router's own."""
        self._tickets = count()
        self._refusals: dict[str, int] = {}
        self._unknown_targets = 0
        self._expected_cached_tokens = self._actual_cached_tokens = 0

    # ---- fleet

    def add_target(
        self,
        target: Target,
        *,
        capacity_tokens: int,
        model: str,
        page_size: int = 1,
        exact: bool = True,
        max_running_requests: int | None = None,
        part: Part = Part.WHOLE,
        caches: bool = True,
    ) -> int:
        """A target is there, empty and available; returns its slot. `exact`: it publishes cache events. `caches`: prompts stay in
        its cache after their request.

        :raises ValueError: it is there already, or a size is not positive.
        """
        for name, value in (("capacity_tokens", capacity_tokens), ("page_size", page_size)):
            if value < 1:
                raise ValueError(f"{name} of {target} must be at least 1, not {value}")
        capacity_blocks = capacity_tokens // self._block_size
        slot = self._fleet.add(
            target,
            capacity_blocks=capacity_blocks,
            model=model,
            page_size=page_size,
            exact=exact,
            max_running_requests=max_running_requests,
            part=part,
            caches=caches,
        )
        self._decider.refit()
        expected_blocks = len(self._fleet) * (capacity_blocks // _EXACT_SHARE if exact else capacity_blocks)
        self._predicted.add_target(
            slot, self._ttl_seconds[exact], capacity_blocks, min(expected_blocks, _MOST_EXPECTED)
        )
        self._bookings.add_target(slot)
        self._reported.add_target(slot)
        self._rates.add_target(slot)
        self._evidence.add_target(slot)
        return slot

    def remove_target(self, target: Target) -> list[str]:
        """A target is gone, with all that was known of it; returns the ids of the requests that were booked there."""
        slot = self._known(target)
        if slot is None:
            return []
        self._fleet.remove(target)
        self._index.clear(slot)
        self._predicted.remove_target(slot)
        self._reported.remove_target(slot)
        self._rates.remove_target(slot)
        own = [booking.request_id for booking in self._bookings.remove_target(slot) if not booking.author]
        for observer in self.observers:
            for request_id in own:
                observer.freed(request_id, failed=True)
        return own

    def set_available(self, target: Target, available: bool) -> None:
        """Whether new requests may go there; what is known of it and booked there stays."""
        self._set_flag("fit", target, available)

    def hold(self, target: Target, held: bool) -> None:
        """Whether somebody keeps new requests away from it, however available it is otherwise."""
        self._set_flag("held", target, held)

    def _set_flag(self, flag: str, target: Target, value: bool) -> None:
        slot, columns = self._known(target), self._fleet.columns
        if slot is not None:
            columns[flag][slot] = value
            columns["available"][slot] = columns["fit"][slot] and not columns["held"][slot]

    def set_exact(self, target: Target, exact: bool) -> None:
        """Whether a target's events are in step now; while they are not, what is sent there is predicted for longer. O(n)."""
        slot = self._known(target)
        if slot is not None and self._fleet.columns["exact"][slot] != exact:
            self._fleet.columns["exact"][slot] = exact
            self._predicted.set_ttl(slot, self._ttl_seconds[exact])

    # ---- write path

    def apply(self, target: Target, event: CacheEvent) -> None:
        """Take in what changed in a target's cache. O(blocks).

        :raises ValueError: the event's hashes are no whole number of uint64.
        """
        match event:
            case BlocksStored(hashes, tier):
                self.store(target, unpack_hashes(hashes), tier)
            case BlocksRemoved(hashes, tier):
                self.remove(target, unpack_hashes(hashes), tier)
            case CacheCleared():
                self.clear(target)

    def store(self, target: Target, hashes: NDArray[np.uint64], tier: Tier = Tier.DEVICE) -> None:
        """A target now holds these prefixes, uint64 (n,), shorter ones first. O(n)."""
        slot = self._known(target)
        if slot is not None:
            self._store(slot, hashes, tier)

    def remove(self, target: Target, hashes: NDArray[np.uint64], tier: Tier = Tier.DEVICE) -> None:
        """A target no longer holds these prefixes, uint64 (n,), in this tier. O(n)."""
        slot = self._known(target)
        if slot is not None:
            self._index.remove(slot, hashes, tier)

    def clear(self, target: Target) -> None:
        """A target holds nothing any more, in any tier. O(prefixes in the index)."""
        slot = self._known(target)
        if slot is not None:
            self._index.clear(slot)
            self._predicted.clear(slot)

    def restore(self, target: Target, stored: Iterable[BlocksStored]) -> None:
        """Take a snapshot in place of everything exact that was known of a target. O(blocks).

        :raises ValueError: hashes are no whole number of uint64; nothing was changed then.
        """
        slot = self._known(target)
        if slot is None:
            return
        snapshot = [(unpack_hashes(part.hashes), part.tier) for part in stored]
        self._index.clear(slot)
        for hashes, tier in snapshot:
            self._store(slot, hashes, tier)

    def report_load(self, target: Target, load: WorkerLoad, now: float) -> None:
        """Take in what an engine says of its load. O(1)."""
        slot = self._known(target)
        if slot is not None and self._reported.report(slot, load, now):
            self._rates.report(slot, load)
        self._predicted.expire(now)

    # ---- read path

    def place(self, request: RoutingRequest, now: float) -> Placement:
        """Choose a target and book the request there. O(blocks + targets).

        :raises NoTarget: no target may take it.
        :raises ValueError: its id is booked already, it has more hashes than full blocks, or the policy's scores are unfit.
        """
        try:
            considered = self.consider(request, now)
        except NoTarget as none:
            self._refusals[none.reason] = self._refusals.get(none.reason, 0) + 1
            raise
        return self.book(considered, now)

    def consider(self, request: RoutingRequest, now: float) -> Considered:
        """Choose a target, and book nothing yet. O(blocks + targets).

        :raises NoTarget: no target may take it.
        :raises ValueError: as `place`.
        """
        if request.request_id in self._bookings:
            raise ValueError(f"request {request.request_id!r} is booked already")
        self._predicted.expire(now)
        return self._decider.consider(request, now)

    def book(self, considered: Considered, now: float) -> Placement:
        """Book what was considered, if nothing but other considerations and bookings on other targets came between. O(blocks)."""
        placement = self._decider.placement(considered)
        self._book(considered.request, considered.slot, considered.fleet, now)
        return placement

    def has(self, part: Part) -> bool:
        """Whether any target does this part, available or not. O(targets)."""
        return self._fleet.has(part)

    def explain(self, request: RoutingRequest, now: float) -> Decision:
        """What `place` would do if it were called instead, and why. Nothing is booked, and no later decision changes.

        :raises ValueError: as `place`, except that the request may be booked.
        """
        self._predicted.expire(now)
        return self._decider.explain(request, now)

    def first_token(self, request_id: str, cached_tokens: int | None, now: float) -> None:
        """A request's prefill is done; `cached_tokens` is what the engine says it did not have to compute. O(1)."""
        self._predicted.expire(now)  # here and wherever nobody waits, a decision then finds little to do
        booking = self._bookings.first_token(request_id)
        if booking is None:
            return
        uncached_tokens = booking.uncached_tokens
        if cached_tokens is not None:
            uncached_tokens = max(0, booking.prompt_tokens - cached_tokens)
            if not booking.author:
                self._expected_cached_tokens += booking.prompt_tokens - booking.uncached_tokens
                self._actual_cached_tokens += cached_tokens
                self._compare(booking, cached_tokens)
        if not booking.author:
            for observer in self.observers:
                observer.prefilled(request_id, cached_tokens)
        self._rates.prefilled(booking.slot, uncached_tokens, now, still_busy=self._is_prefilling(booking.slot))

    def progress(self, request_id: str, output_tokens: int) -> None:
        """A request has that many output tokens by now. O(1)."""
        self._bookings.progress(request_id, output_tokens)

    def free(
        self, request_id: str, now: float, *, failed: bool = False, generated: NDArray[np.uint64] | None = None
    ) -> None:
        """A request is over. O(blocks).

        :param failed: what it was expected to leave in the target's cache is not there.
        :param generated: sequence hashes of all full blocks of its prompt and output, less the last token, which has no KV: what
            the engine caches at the end. Counts on targets without events; the others will say so themselves.
        """
        self._predicted.expire(now)
        booking = self._bookings.free(request_id)
        if booking is None:
            return
        if not booking.author:
            for observer in self.observers:
                observer.freed(request_id, failed=failed)
        if booking.prefilling:
            self._rates.aborted(booking.slot, now, still_busy=self._is_prefilling(booking.slot))
        if not failed and not booking.prefilling and not booking.author:
            self._look_for_trace(booking)
        if failed:
            self._predicted.retract(booking.slot, booking.predicted, booking.ticket)
        elif generated is not None and not self._fleet.columns["exact"][booking.slot]:
            cacheable = self._cacheable_blocks(booking.slot, len(generated) * self._block_size)
            self._predicted.predict(booking.slot, generated[:cacheable], now, booking.ticket)

    def progress_of(self, target: Target) -> Progress | None:
        """How far a target's requests have come, to be compared with a later look. None: it is not there. O(1)."""
        slot = self._fleet.slot(target)
        if slot is None:
            return None
        booked = self._bookings.columns
        seconds = booked["prefill_tokens"][slot] / self._rates.rates()[slot]
        return Progress(booked["progress"].item(slot), float(seconds), self._fleet.part(slot) is Part.PREFILL)

    # ---- other routers

    def share(self, rank: int, routers: int, lag_seconds: float) -> None:
        """So many routers decide over these targets, and hear of a booking after the lag; no other has this `rank`, from 0. O(1).

        It then keeps apart from what others decide at the same moment, see `unheard`; one that is alone decides as if never told.

        :raises ValueError: there is no such rank.
        """
        if not 0 <= rank < routers:
            raise ValueError(f"rank must be in [0, {routers}), the number of routers, not {rank}")
        self._decider.share(rank, routers, lag_seconds)

    def book_elsewhere(
        self,
        author: str,
        request: RoutingRequest,
        target: Target,
        uncached_tokens: int,
        now: float,
        *,
        just_now: bool = True,
    ) -> bool:
        """Another router has placed a request: it loads its target as if it were ours. O(blocks + targets).

        The request's id must not be one of ours; `first_token` and `free` take it like any other. False: the target is not there,
        or the request is booked already.

        :param just_now: word of it took no longer than always; False of one that is only made up for.
        """
        slot = self._fleet.slot(target)
        if slot is None or request.request_id in self._bookings:
            return False
        self._predicted.expire(now)
        self._book_at(slot, request, uncached_tokens, self._decider.match(request), now, author)
        if just_now:
            self._decider.booked_elsewhere(slot, now)
        return True

    def is_booked(self, request_id: str) -> bool:
        """Whether a request is in flight, by whomever. O(1)."""
        return request_id in self._bookings

    def is_prefilling(self, request_id: str) -> bool:
        """Whether a request in flight waits for its first token; a decode side never does. O(1)."""
        return self._bookings.is_prefilling(request_id)

    def booked_elsewhere(self, author: str) -> dict[str, Elsewhere]:
        """The requests that another router has booked here, by id. O(bookings)."""
        return {
            booking.request_id: Elsewhere(
                self._fleet.target(booking.slot), booking.prompt_tokens, booking.uncached_tokens, booking.prefilling
            )
            for booking in self._bookings.of_author(author)
        }

    # ---- seen from outside

    @property
    def evicted_prefixes(self) -> int:
        """Prefixes that the index let go at its bound: targets may still hold them. O(1)."""
        return self._index.evicted

    def statistics(self) -> SchedulerStatistics:
        """Sizes and counts. O(targets)."""
        return SchedulerStatistics(
            targets=len(self._fleet),
            requests=len(self._bookings) - self._bookings.elsewhere,
            requests_elsewhere=self._bookings.elsewhere,
            placements=self._decider.decisions,
            refusals=dict(self._refusals),
            unknown_requests=self._bookings.unknown_requests,
            unknown_targets=self._unknown_targets,
            repeated_first_tokens=self._bookings.repeated_first_tokens,
            expected_cached_tokens=self._expected_cached_tokens,
            actual_cached_tokens=self._actual_cached_tokens,
            stale_reports=self._reported.stale,
            unheard_bookings=self._decider.unheard_bookings,
            exact=self._index.statistics(),
            predicted=self._predicted.statistics(),
            rates=self._rates.statistics(),
        )

    def evidence(self, target: Target) -> Evidence | None:
        """Whether what is believed of a target comes true; None: it is not there. O(1)."""
        slot = self._fleet.slot(target)
        return None if slot is None else self._evidence.of(slot)

    def forget_hits(self, target: Target) -> None:
        """Compare a target's hits anew: what was believed is replaced. O(1)."""
        slot = self._known(target)
        if slot is not None:
            self._evidence.forget(slot)

    def held(self, target: Target) -> dict[Tier, NDArray[np.uint64]] | None:
        """All prefixes that a target holds, by its events, in no order. None: it is not there. O(prefixes in the index)."""
        slot = self._fleet.slot(target)
        return None if slot is None else {tier: self._index.held(slot, tier) for tier in Tier}

    def targets(self) -> list[TargetState]:
        """Every target's state, in the order of slots. O(targets · requests)."""
        return [self._state(slot, target) for slot, target in self._fleet.items()]

    def __repr__(self) -> str:
        return f"Scheduler({self._policy!r}, {len(self._fleet)} targets, {len(self._bookings)} requests)"

    # ---- the steps of a decision

    def _book(self, request: RoutingRequest, slot: int, fleet: FleetView, now: float) -> None:
        uncached_tokens: int = fleet.uncached_tokens.item(slot)
        booking = self._book_at(slot, request, uncached_tokens, fleet.overlap, now)
        self._decider.booked(slot, booking, now)
        for observer in self.observers:
            observer.booked(self._fleet.target(slot), booking)

    def _book_at(
        self, slot: int, request: RoutingRequest, uncached_tokens: int, overlap: Overlap, now: float, author: str = ""
    ) -> Booking:
        prefills = self._fleet.part(slot) is not Part.DECODE
        booking = Booking(
            request.request_id,
            slot,
            next(self._tickets),
            request.hashes,
            request.prompt_tokens,
            uncached_tokens=uncached_tokens if prefills else 0,
            predicted_from=overlap.device_blocks.item(slot),
            predicted_to=min(len(request.hashes), self._cacheable_blocks(slot, request.prompt_tokens)),
            prefilling=prefills,
            author=author,
            opaque=request.opaque,
        )
        if prefills:
            self._rates.started(slot, now)
        self._predicted.predict(slot, booking.predicted, now, booking.ticket)
        self._bookings.book(booking)
        return booking

    # ---- the rest

    def _store(self, slot: int, hashes: NDArray[np.uint64], tier: Tier) -> None:
        self._index.store(slot, hashes, tier)
        if tier is Tier.DEVICE:
            self._predicted.promote(slot, hashes)

    def _cacheable_blocks(self, slot: int, tokens: int) -> int:
        """Full blocks of a sequence that an engine can cache, given that it caches whole pages, if it caches at all."""
        if not self._fleet.columns["caches"][slot]:
            return 0
        page_size: int = self._fleet.columns["page_size"].item(slot)
        return tokens // page_size * page_size // self._block_size

    def _compare(self, booking: Booking, cached_tokens: int) -> None:
        """Hits where events are in step: elsewhere nobody promised any."""
        if self._fleet.columns["exact"][booking.slot]:
            self._evidence.compare(booking.slot, booking.prompt_tokens - booking.uncached_tokens, cached_tokens)

    def _look_for_trace(self, booking: Booking) -> None:
        """A request that ended well, and had blocks that were not there before, shows in its target's events."""
        if len(booking.predicted) and self._fleet.columns["exact"][booking.slot]:
            self._evidence.ended(booking.slot, int(booking.predicted[0]), self._index.holds)

    def _is_prefilling(self, slot: int) -> bool:
        return bool(self._bookings.columns["prefilling_requests"][slot])

    def _known(self, target: Target) -> int | None:
        slot = self._fleet.slot(target)
        if slot is None:
            if not self._unknown_targets:
                logger.warning(
                    "ignored a call about target %s, which is not there; further ones are only counted", target
                )
            self._unknown_targets += 1
        return slot

    def _state(self, slot: int, target: Target) -> TargetState:
        static, booked = self._fleet.columns, self._bookings.columns
        return TargetState(
            target=target,
            model=self._fleet.model_name(slot),
            part=self._fleet.part(slot),
            available=bool(static["available"][slot]),
            exact=bool(static["exact"][slot]),
            capacity_blocks=int(static["capacity_blocks"][slot]),
            device_blocks=self._index.held_blocks(slot, Tier.DEVICE),
            host_blocks=self._index.held_blocks(slot, Tier.HOST),
            disk_blocks=self._index.held_blocks(slot, Tier.DISK),
            predicted_blocks=self._predicted.held_blocks(slot),
            requests=self._bookings.of(slot),
            requests_elsewhere=self._bookings.count_elsewhere(slot),
            prefill_tokens=int(booked["prefill_tokens"][slot]),
            decode_blocks=int(booked["decode_blocks"][slot]),
            context_tokens=int(booked["context_tokens"][slot]),
            prefill_rate=float(self._rates.rates()[slot]),
            reported=self._reported.last(slot),
        )

    def _check(self) -> None:
        """Assert that the parts are sound, and agree on who is there."""
        for part in (self._fleet, self._index, self._predicted, self._bookings, self._rates):
            part._check()  # noqa: SLF001 - a structure checks its parts
        slots = {slot for slot, _ in self._fleet.items()}
        for slot in range(self._fleet.slots):
            if slot not in slots:
                assert not any(self._index.held_blocks(slot, tier) for tier in Tier)
                assert not any(self._bookings.columns[name][slot] for name in ("active_requests", "decode_blocks"))
