"""What is booked on each target, and what its engine last said of itself."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np

from events.entry import entry
from router.core import decision_kernels
from router.core import pair_kernels as kernels
from router.core.columns import Columns
from router.core.pairs import PairTable, resized

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from events.messages import WorkerLoad
    from router.core.request import Target


_reference, _release = entry(kernels.reference), entry(kernels.release)
_still_waiting = entry(decision_kernels.still_waiting)
_EXPECTED_BLOCKS = 2048
"""Prompt blocks in flight for which there is room on each target from the start, so that no decision has to wait for it."""


@dataclass(slots=True, eq=False)
class Booking:
    """A request in flight, as its target's load."""

    request_id: str
    slot: int
    ticket: int
    """Never used twice, unlike a request id."""
    hashes: NDArray[np.uint64]
    prompt_tokens: int
    uncached_tokens: int
    """To be prefilled, as believed at booking."""
    predicted_from: int
    """The blocks from here on are predicted on this booking's account."""
    predicted_to: int
    prefilling: bool = True
    """Whether the first token is still to come; never, of a decode side."""
    output_tokens: int = 0
    author: str = ""
    """The router that booked it; empty: this one. All weigh the same."""
    opaque: bool = False
    """Nothing is seen of it before it is over."""
    nodes: NDArray[np.int32] | None = None
    """Where its blocks are counted, while it is booked, if it has any."""

    @property
    def predicted(self) -> NDArray[np.uint64]:
        """The chain that this booking predicted."""
        return self.hashes[self.predicted_from : self.predicted_to]


class BookingObserver(Protocol):
    """Hears what becomes of this router's own bookings, so that it can tell other routers."""

    def booked(self, target: Target, booking: Booking) -> None:
        """A request was placed."""

    def prefilled(self, request_id: str, cached_tokens: int | None) -> None:
        """It has its first token."""

    def freed(self, request_id: str, *, failed: bool) -> None:
        """It is over, or its target is gone."""


class Bookings:
    """The requests in flight, whoever booked them, and their sums per target. Each is booked once and freed once; strangers are
    counted, never raised.

    Columns, one entry per slot: `prefill_tokens` (uncached tokens of requests without a first token), `prefilling_requests`,
    `active_requests`, `decode_blocks` (distinct full blocks of the prompts in flight: what requests share counts once),
    `context_tokens` (prompt and output so far), `progress` (how often a request there has shown a token).
    """

    def __init__(self) -> None:
        self.columns = Columns(
            prefill_tokens=np.int64,
            prefilling_requests=np.int64,
            active_requests=np.int64,
            decode_blocks=np.int64,
            context_tokens=np.int64,
            progress=np.int64,
        )
        self.unknown_requests = 0
        """Calls about requests that are not booked: freed before, or never placed here."""
        self.repeated_first_tokens = 0
        self.elsewhere = 0
        """How many of them other routers booked."""
        self._bookings: dict[str, Booking] = {}
        self._pairs = PairTable()
        self._references: NDArray[np.int32] = np.zeros(self._pairs.nodes, np.int32)
        """Per prefix and slot, how many requests in flight have it in their prompt."""

    def __len__(self) -> int:
        return len(self._bookings)

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._bookings

    def add_target(self, slot: int) -> None:
        """Make room for a target's bookings."""
        self.columns.reserve(slot + 1)
        self._reserve(_EXPECTED_BLOCKS * (slot + 1))

    def remove_target(self, slot: int) -> list[Booking]:
        """Free all bookings of a target; the slot can be given to another. O(bookings)."""
        freed = [booking for booking in self._bookings.values() if booking.slot == slot]
        for booking in freed:
            self.free(booking.request_id)
        return freed

    def of(self, slot: int) -> list[str]:
        """Ids of the requests that this router has booked on a target. O(bookings)."""
        return [
            booking.request_id for booking in self._bookings.values() if booking.slot == slot and not booking.author
        ]

    def count_elsewhere(self, slot: int) -> int:
        """How many requests other routers have booked on a target. O(bookings), O(1) where there are none."""
        return (
            sum(booking.slot == slot and bool(booking.author) for booking in self._bookings.values())
            if self.elsewhere
            else 0
        )

    def of_author(self, author: str) -> list[Booking]:
        """All that another router has booked. O(bookings)."""
        return [booking for booking in self._bookings.values() if booking.author == author]

    def active_blocks(self, hashes: NDArray[np.uint64]) -> NDArray[np.int32]:
        """Leading blocks of a prompt that are part of a request in flight, per slot, int32 (slots,). O(targets · log blocks)."""
        active = np.empty(self.columns.slots, np.int32)
        kernels.leading(self._pairs.slots, self._pairs.keys, hashes, active)
        return active

    def book(self, booking: Booking) -> None:
        """Count a request as its target's load until it is freed. O(blocks).

        :raises ValueError: its id is booked already.
        """
        if booking.request_id in self._bookings:
            raise ValueError(f"request {booking.request_id!r} is booked already")
        self._bookings[booking.request_id] = booking
        self.elsewhere += bool(booking.author)
        self._count(booking, 1)
        if booking.prefilling:
            self._count_prefill(booking, 1)
        if len(booking.hashes):
            self._add("decode_blocks", booking.slot, self._reference(booking))

    def first_token(self, request_id: str) -> Booking | None:
        """The request's prefill is done: its tokens no longer wait. None: not booked, or said before. O(1)."""
        booking = self._known(request_id)
        if booking is None:
            return None
        if not booking.prefilling:
            self.repeated_first_tokens += 1
            return None
        self._count_prefill(booking, -1)
        self._add("progress", booking.slot, 1)
        booking.prefilling = False
        return booking

    def is_prefilling(self, request_id: str) -> bool:
        """Whether a request is booked, and its prefill not done. O(1)."""
        booking = self._bookings.get(request_id)
        return booking is not None and booking.prefilling

    def progress(self, request_id: str, output_tokens: int) -> None:
        """The request has that many output tokens by now. O(1)."""
        booking = self._known(request_id)
        if booking is not None:
            self._add("context_tokens", booking.slot, output_tokens - booking.output_tokens)
            self._add("progress", booking.slot, 1)
            booking.output_tokens = output_tokens

    def free(self, request_id: str) -> Booking | None:
        """The request is over. None: it is not booked. O(blocks)."""
        booking = self._known(request_id)
        if booking is None:
            return None
        del self._bookings[request_id]
        self.elsewhere -= bool(booking.author)
        self._count(booking, -1)
        if booking.prefilling:
            self._count_prefill(booking, -1)
        if booking.nodes is not None:
            self._add("decode_blocks", booking.slot, -self._release(booking.nodes))
        return booking

    def _known(self, request_id: str) -> Booking | None:
        booking = self._bookings.get(request_id)
        if booking is None:
            self.unknown_requests += 1
        return booking

    def _count(self, booking: Booking, sign: int) -> None:
        self._add("active_requests", booking.slot, sign)
        self._add("context_tokens", booking.slot, sign * (booking.prompt_tokens + booking.output_tokens))

    def _count_prefill(self, booking: Booking, sign: int) -> None:
        self._add("prefilling_requests", booking.slot, sign)
        self._add("prefill_tokens", booking.slot, sign * booking.uncached_tokens)

    def _add(self, name: str, slot: int, amount: int) -> None:
        column = self.columns[name]
        column[slot] = column.item(slot) + amount  # twice as fast as to add in place, which makes numpy's own numbers

    def _reference(self, booking: Booking) -> int:
        self._reserve(len(booking.hashes))
        pairs = self._pairs
        booking.nodes = np.empty(len(booking.hashes), np.int32)
        table = (pairs.slots, pairs.keys, pairs.counts, self._references)
        new: int = _reference(*table, booking.slot, booking.hashes, booking.nodes)
        return new

    def _reserve(self, blocks: int) -> None:
        if self._pairs.reserve(blocks):
            self._references = resized(self._references, self._pairs.nodes)

    def _release(self, nodes: NDArray[np.int32]) -> int:
        pairs = self._pairs
        gone: int = _release(pairs.slots, pairs.keys, pairs.counts, self._references, nodes)
        return gone

    def _check(self) -> None:
        expected = Columns(**dict.fromkeys(_COLUMNS, np.int64))
        expected.reserve(self.columns.slots)
        references = Counter[tuple[int, int]]()
        assert self.elsewhere == sum(bool(booking.author) for booking in self._bookings.values())
        for booking in self._bookings.values():
            expected["active_requests"][booking.slot] += 1
            expected["context_tokens"][booking.slot] += booking.prompt_tokens + booking.output_tokens
            expected["prefilling_requests"][booking.slot] += booking.prefilling
            expected["prefill_tokens"][booking.slot] += booking.prefilling * booking.uncached_tokens
            references.update((prefix, booking.slot) for prefix in booking.hashes.tolist())
        self._pairs._check()  # noqa: SLF001 - a structure checks its parts
        assert len(self._pairs) == len(references)
        for (prefix, slot), requests in references.items():
            expected["decode_blocks"][slot] += 1
            assert self._references[kernels.find(self._pairs.slots, self._pairs.keys, prefix, slot)] == requests
        for name in _COLUMNS:
            assert self.columns[name].tolist() == expected[name].tolist(), name

    def __repr__(self) -> str:
        return f"Bookings({len(self)} requests)"


_COLUMNS = ("prefill_tokens", "prefilling_requests", "active_requests", "decode_blocks", "context_tokens")


class Reported(NamedTuple):
    """An engine's last word on its load."""

    load: WorkerLoad
    received_at: float


class ReportedLoads:
    """The last load report per target and source; one older than `REPORT_LIFETIME_SECONDS` says nothing any more.

    A worker that restarts is another one: a report of an epoch before the latest known is stale, and refused.
    """

    def __init__(self) -> None:
        self._last: dict[int, dict[str, Reported]] = {}
        self._columns = Columns(waiting_tokens=np.float64, received_at=np.float64)
        self.stale = 0
        """Reports refused."""

    def add_target(self, slot: int) -> None:
        """Make room for a target's reports."""
        self._columns.reserve(slot + 1)

    def remove_target(self, slot: int) -> None:
        """Forget a target."""
        self._last.pop(slot, None)
        self._columns.reset(slot)

    def report(self, slot: int, load: WorkerLoad, now: float) -> bool:
        """Take a report in place of its source's last one; False: it is stale."""
        sources = self._last.setdefault(slot, {})
        newest = max((reported.load.epoch for reported in sources.values()), default=load.epoch)
        if load.epoch < newest:
            self.stale += 1
            return False
        if load.epoch > newest:
            sources.clear()
        sources[load.source] = Reported(load, now)
        self._columns["waiting_tokens"][slot] = load.waiting_uncached_tokens or 0
        self._columns["received_at"][slot] = now
        return True

    def last(self, slot: int) -> Reported | None:
        """The latest report of any source, however old. None: there was none yet. O(sources)."""
        sources = self._last.get(slot)
        return max(sources.values(), key=lambda reported: reported.received_at) if sources else None

    def prefill_tokens(
        self, rates: NDArray[np.float64], now: float, out: NDArray[np.float64] | None = None
    ) -> NDArray[np.float64]:
        """Uncached tokens that still wait in each engine's queue: what it reported, less what it has prefilled since at its rate.

        So an old report fades by itself, and counts no more once it has expired. 0 where the engine did not say: this is a lower
        bound, not a load. float64 (slots,); in `out`, if given.
        """
        waiting = np.empty(len(rates)) if out is None else out
        columns = self._columns
        _still_waiting(columns["waiting_tokens"], columns["received_at"], rates, now, waiting)
        return waiting
