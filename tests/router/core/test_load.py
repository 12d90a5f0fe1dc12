from itertools import count

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, rule
from msgspec import structs

from events.messages import WorkerLoad
from router.core.decision_kernels import REPORT_LIFETIME_SECONDS
from router.core.load import Booking, Bookings, ReportedLoads

TICKETS = count()


def booking(
    request_id: str, slot: int = 0, hashes: list[int] | None = None, prompt: int = 100, uncached: int = 60
) -> Booking:
    prefixes = np.array(hashes or [], np.uint64)
    return Booking(request_id, slot, next(TICKETS), prefixes, prompt, uncached, 0, len(prefixes))


class BookingsAgainstSums(RuleBasedStateMachine):
    """Every request is counted once from booking to free, whatever order calls come in."""

    requests = Bundle("requests")

    @initialize()
    def fleet(self) -> None:
        self.bookings = Bookings()
        self.booked: dict[str, Booking] = {}
        self.unknown = 0
        for slot in range(3):
            self.bookings.add_target(slot)

    @rule(
        target=requests,
        slot=st.integers(0, 2),
        depth=st.integers(0, 5),
        branch=st.integers(0, 2),
        uncached=st.integers(1, 100),
    )
    def book(self, slot: int, depth: int, branch: int, uncached: int) -> str:
        request_id = f"r{next(TICKETS)}"
        hashes = [level * 10 + (branch if level > 2 else 0) for level in range(depth)]
        self.booked[request_id] = booking(request_id, slot, hashes, 100, uncached)
        self.bookings.book(self.booked[request_id])
        return request_id

    @rule(request_id=requests)
    def first_token(self, request_id: str) -> None:
        known = request_id in self.booked
        self.unknown += not known
        fresh = known and self.booked[request_id].prefilling
        assert (self.bookings.first_token(request_id) is not None) == fresh

    @rule(request_id=requests, tokens=st.integers(0, 500))
    def progress(self, request_id: str, tokens: int) -> None:
        self.unknown += request_id not in self.booked
        self.bookings.progress(request_id, tokens)

    @rule(request_id=requests | consumes(requests))
    def free(self, request_id: str) -> None:
        known = self.booked.pop(request_id, None)
        self.unknown += known is None
        assert self.bookings.free(request_id) is known

    @rule(slot=st.integers(0, 2))
    def replace_target(self, slot: int) -> None:
        gone = {request_id for request_id, its in self.booked.items() if its.slot == slot}
        assert set(self.bookings.of(slot)) == gone
        assert {freed.request_id for freed in self.bookings.remove_target(slot)} == gone
        for request_id in gone:
            del self.booked[request_id]
        self.bookings.add_target(slot)

    @invariant()
    def sums_are_those_of_what_is_booked(self) -> None:
        self.bookings._check()
        assert len(self.bookings) == len(self.booked)
        assert self.bookings.unknown_requests == self.unknown
        for slot in range(3):
            here = [its for its in self.booked.values() if its.slot == slot]
            columns = {
                name: int(self.bookings.columns[name][slot])
                for name in ("prefill_tokens", "active_requests", "decode_blocks")
            }
            assert columns == {
                "prefill_tokens": sum(its.uncached_tokens for its in here if its.prefilling),
                "active_requests": len(here),
                "decode_blocks": len({prefix for its in here for prefix in its.hashes.tolist()}),
            }

    def teardown(self) -> None:
        for request_id in list(self.booked):
            self.bookings.free(request_id)
        for name in ("prefill_tokens", "prefilling_requests", "active_requests", "decode_blocks", "context_tokens"):
            assert not self.bookings.columns[name].any()


TestBookings = BookingsAgainstSums.TestCase
TestBookings.settings = settings(max_examples=80, stateful_step_count=30, deadline=None, derandomize=True)


@pytest.fixture
def bookings() -> Bookings:
    result = Bookings()
    result.add_target(0)
    result.add_target(1)
    return result


def test_a_shared_prefix_is_one_load(bookings: Bookings) -> None:
    bookings.book(booking("a", hashes=[1, 2, 3]))
    bookings.book(booking("b", hashes=[1, 2, 4]))
    assert bookings.columns["decode_blocks"].tolist() == [4, 0]
    bookings.free("a")
    assert bookings.columns["decode_blocks"].tolist() == [3, 0]


def test_active_blocks_are_those_of_requests_in_flight(bookings: Bookings) -> None:
    bookings.book(booking("a", slot=1, hashes=[1, 2, 3]))
    assert bookings.active_blocks(np.array([1, 2, 9], np.uint64)).tolist() == [0, 2]
    bookings.free("a")
    assert bookings.active_blocks(np.array([1, 2, 9], np.uint64)).tolist() == [0, 0]


def test_strangers_and_repetitions_are_counted(bookings: Bookings) -> None:
    bookings.book(booking("a"))
    bookings.first_token("a")
    bookings.first_token("a")
    bookings.free("a")
    assert bookings.free("a") is None
    assert bookings.first_token("never") is None
    bookings.progress("never", 3)
    assert (bookings.unknown_requests, bookings.repeated_first_tokens) == (3, 1)


def test_an_id_in_flight_cannot_be_booked_again(bookings: Bookings) -> None:
    bookings.book(booking("a"))
    with pytest.raises(ValueError, match="'a' is booked already"):
        bookings.book(booking("a", slot=1))
    bookings._check()
    assert repr(bookings) == "Bookings(1 requests)"


def load(waiting: int | None) -> WorkerLoad:
    return WorkerLoad("w", 0, 1, 1, 1, 100, 1000, waiting_uncached_tokens=waiting)


def test_a_report_fades_as_its_queue_drains() -> None:
    reported = ReportedLoads()
    reported.add_target(0)
    reported.add_target(1)
    reported.report(0, load(1000), now=10.0)
    rates = np.array([100.0, 100.0])
    assert reported.prefill_tokens(rates, 10.0).tolist() == [1000, 0]
    assert reported.prefill_tokens(rates, 14.0).tolist() == [600, 0]
    assert reported.prefill_tokens(rates, 99.0).tolist() == [0, 0]


def test_an_old_report_counts_no_more() -> None:
    reported = ReportedLoads()
    reported.add_target(0)
    reported.report(0, load(1000), now=10.0)
    slow = np.array([1.0])
    assert reported.prefill_tokens(slow, 10.0 + REPORT_LIFETIME_SECONDS).tolist() == [995]
    assert reported.prefill_tokens(slow, 10.1 + REPORT_LIFETIME_SECONDS).tolist() == [0]
    assert reported.last(0).received_at == 10.0


def test_reports_of_an_epoch_that_is_over_are_refused() -> None:
    reported = ReportedLoads()
    reported.add_target(0)
    assert reported.report(0, structs.replace(load(10), epoch=2), now=1.0)
    assert not reported.report(0, structs.replace(load(99), epoch=1), now=2.0)
    assert reported.stale == 1
    assert reported.report(0, structs.replace(load(30), epoch=3), now=3.0)
    assert reported.last(0).load.waiting_uncached_tokens == 30


def test_sources_stand_beside_each_other_and_the_latest_counts() -> None:
    reported = ReportedLoads()
    reported.add_target(0)
    reported.report(0, structs.replace(load(10), source="stream"), now=1.0)
    reported.report(0, structs.replace(load(20), source="poll"), now=2.0)
    assert reported.last(0).load.source == "poll"
    reported.report(0, structs.replace(load(30), source="stream"), now=3.0)
    assert reported.last(0).load.waiting_uncached_tokens == 30


def test_an_engine_that_does_not_say_is_not_read_as_loaded_or_idle() -> None:
    reported = ReportedLoads()
    reported.add_target(0)
    assert reported.last(0) is None
    reported.report(0, load(5000), now=0.0)
    reported.report(0, load(None), now=1.0)
    assert reported.prefill_tokens(np.array([1.0]), 1.0).tolist() == [0]
    last = reported.last(0)
    assert last is not None
    assert (last.load.waiting_uncached_tokens, last.received_at) == (None, 1.0)
    reported.remove_target(0)
    assert reported.last(0) is None
