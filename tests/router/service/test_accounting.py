"""The zero-match alarm and the hit accounting, over the real scheduler and a feed that only notes what it is asked."""

from __future__ import annotations

import numpy as np

from events.blocks import sequence_hashes
from events.messages import BlocksStored, WorkerLoad, pack_hashes
from router.core import RoutingRequest, Scheduler, Target
from router.core.policy import create
from router.metrics import Metrics
from router.service.accounting import (
    COMPARED_REQUESTS,
    EXCESS_SECONDS,
    FIRST_PAUSE_SECONDS,
    LONGEST_PAUSE_SECONDS,
    UNTRACED_REQUESTS,
    Accounting,
)
from router.service.loads import compared

TARGET = Target("w", 0)
BLOCK = 4


class Feed:
    """Follows one target; what it is told to distrust it notes."""

    def __init__(self):
        self.followed, self.distrusted, self.mirrors = [TARGET], [], 0

    def targets(self):
        return self.followed

    def distrust(self, target, *, mirror):
        self.distrusted.append(target)
        self.mirrors += mirror


class Site:
    def __init__(self):
        self.scheduler = Scheduler(create("warm"), BLOCK)
        self.scheduler.add_target(TARGET, capacity_tokens=10**6, model="m")
        self.feed, self.metrics, self.now, self.number = Feed(), Metrics(), 0.0, 0
        self.accounting = Accounting(self.scheduler, self.feed, self.metrics, lambda: self.now)
        self.metrics.registry.register(self.accounting)

    def request(self, *, shift=0, stores=True, cached=None, tokens=None):
        """One request from placement to end; its engine hashes tokens `shift` away from ours."""
        self.number += 1
        tokens = np.arange(9, dtype=np.uint32) + 100 * self.number if tokens is None else tokens
        hashes = sequence_hashes(tokens, BLOCK)
        rid = str(self.number)
        placement = self.scheduler.place(RoutingRequest(rid, hashes, len(tokens)), self.now)
        self.scheduler.first_token(rid, placement.cached_tokens if cached is None else cached, self.now)
        if stores:
            self.scheduler.apply(TARGET, BlocksStored(pack_hashes(sequence_hashes(tokens + shift, BLOCK))))
        self.scheduler.free(rid, self.now)
        self.now += 0.01

    def count(self, name, **labels):
        return self.metrics.registry.get_sample_value(name, labels)


def test_prompts_that_show_in_the_events_raise_no_alarm_though_none_ever_hits():
    site = Site()
    for _ in range(3 * UNTRACED_REQUESTS):
        site.request()
        site.accounting.look()
    assert site.count("warmpath_zero_match_alarms_total") == 0
    assert site.count("warmpath_zero_match", target=str(TARGET)) == 0


def test_events_of_other_tokens_raise_one_alarm_and_end_it_when_they_match(caplog):
    site = Site()
    for _ in range(2 * UNTRACED_REQUESTS):
        site.request(shift=1)
        site.accounting.look()
    assert site.count("warmpath_zero_match_alarms_total") == 1
    assert site.count("warmpath_zero_match", target=str(TARGET)) == 1
    assert sum("left no trace" in record.getMessage() for record in caplog.records) == 1
    site.request()
    site.request()
    site.accounting.look()
    assert site.count("warmpath_zero_match", target=str(TARGET)) == 0


def test_events_that_do_not_come_at_all_are_the_same():
    site = Site()
    for _ in range(UNTRACED_REQUESTS + 1):
        site.request(stores=False)
    site.accounting.look()
    assert site.count("warmpath_zero_match_alarms_total") == 1


def test_repeated_prompts_prove_nothing():
    site = Site()
    tokens = np.arange(9, dtype=np.uint32)
    site.request(tokens=tokens)
    for _ in range(2 * UNTRACED_REQUESTS):
        site.request(tokens=tokens, stores=False)
    site.accounting.look()
    assert site.count("warmpath_zero_match_alarms_total") == 0


def test_hits_as_promised_are_left_alone():
    site = Site()
    for _ in range(3 * COMPARED_REQUESTS):
        site.request(tokens=np.arange(9, dtype=np.uint32))
        site.accounting.look()
    assert site.feed.distrusted == []
    assert site.count("warmpath_hit_prediction_error", target=str(TARGET)) == 0


def test_ghosts_are_resynchronised_with_longer_and_longer_pauses():
    site = Site()
    tokens = np.arange(9, dtype=np.uint32)
    site.request(tokens=tokens)
    times = []
    while len(times) < 8:
        site.request(tokens=tokens, cached=0)
        site.accounting.look()
        site.now += 1.0
        if len(site.feed.distrusted) > len(times):
            times.append(site.now)
    pauses = np.diff(times)
    wanted = [min(FIRST_PAUSE_SECONDS * 2**n, LONGEST_PAUSE_SECONDS) for n in range(7)]
    assert np.allclose(pauses, wanted, rtol=0.15), pauses
    assert site.count("warmpath_hit_resyncs_total", depth="index") == 1
    assert site.count("warmpath_hit_resyncs_total", depth="mirror") == 7 == site.feed.mirrors


def mislead(site, resyncs):
    """Requests whose hits are never as promised, one a second, until that has been found so often."""
    tokens = np.arange(9, dtype=np.uint32)
    site.request(tokens=tokens)
    while len(site.feed.distrusted) < resyncs:
        site.request(tokens=tokens, cached=0)
        site.accounting.look()
        site.now += 1.0


def fulfil(site, requests):
    for _ in range(requests):
        site.request(tokens=np.arange(9, dtype=np.uint32))
        site.accounting.look()


def test_a_snapshot_that_does_not_help_makes_the_mirror_doubtful(caplog):
    site = Site()
    mislead(site, 1)
    assert site.feed.mirrors == 0
    mislead(site, 2)
    assert site.feed.mirrors == 1
    assert [record.getMessage().endswith("the mirror built anew") for record in caplog.records] == [False, True]


def test_a_doubt_stands_until_hits_come_true_however_long_nobody_asks():
    site = Site()
    mislead(site, 1)
    site.now += 100 * FIRST_PAUSE_SECONDS
    mislead(site, 2)
    assert site.feed.mirrors == 1


def test_hits_that_come_true_again_for_a_while_end_the_doubt():
    site = Site()
    mislead(site, 1)
    fulfil(site, COMPARED_REQUESTS)  # too soon to be sure
    assert repr(site.accounting) == "<Accounting, 0 alarms, 1 doubts>"
    site.now += 2 * FIRST_PAUSE_SECONDS
    fulfil(site, 1)
    assert repr(site.accounting) == "<Accounting, 0 alarms, 0 doubts>"
    mislead(site, 2)
    assert site.feed.mirrors == 0


def test_hits_that_nobody_promised_count_the_other_way():
    site = Site()
    for _ in range(COMPARED_REQUESTS + 1):
        site.request(cached=8)
    site.accounting.look()
    assert site.feed.distrusted == [TARGET]
    assert site.count("warmpath_hit_prediction_error", target=str(TARGET)) == 0  # it begins anew


def test_a_target_that_left_is_forgotten():
    site = Site()
    for _ in range(UNTRACED_REQUESTS + 1):
        site.request(stores=False, cached=8)
    site.accounting.look()
    site.feed.followed = []
    site.accounting.look()
    assert repr(site.accounting) == "<Accounting, 0 alarms, 0 doubts>"


# booked against reported


def report(site, running, waiting=0, **said):
    load = WorkerLoad(*TARGET, 1, running, waiting, 0, 10**6, **said)
    site.scheduler.report_load(TARGET, load, site.now)


def book(site, name):
    hashes = sequence_hashes(np.arange(9, dtype=np.uint32), BLOCK)
    site.scheduler.place(RoutingRequest(name, hashes, 9), site.now)


def state(site):
    (found,) = site.scheduler.targets()
    return found


def test_both_sides_are_shown_and_what_is_not_said_is_null():
    site = Site()
    book(site, "a")
    shown = compared(state(site), site.now)
    assert shown["booked"] == {"requests": 1, "prefill_tokens": 9, "context_tokens": 9}
    assert (shown["reported"], shown["difference"]) == (None, None)
    report(site, running=2, waiting=1)
    shown = compared(state(site), site.now + 3.0)
    assert shown["reported"]["requests"] == 3
    assert shown["reported"]["prefill_tokens"] is None
    assert (shown["reported"]["age_seconds"], shown["reported"]["expired"]) == (3.0, False)
    assert shown["difference"] == -2
    assert compared(state(site), site.now + 6.0)["reported"]["expired"]


def look_for(site, seconds, running):
    end = site.now + seconds
    while site.now < end:
        report(site, running)
        site.accounting.look()
        site.now += 1.0


def test_bookings_that_the_engine_does_not_know_of_are_said_after_a_while(caplog):
    site = Site()
    book(site, "a")
    look_for(site, EXCESS_SECONDS - 2, running=0)
    assert site.count("warmpath_booking_excess", target=str(TARGET)) is None
    look_for(site, 10, running=0)
    assert site.count("warmpath_booking_excess", target=str(TARGET)) == 1
    assert sum("does not report" in record.getMessage() for record in caplog.records) == 1
    look_for(site, 1, running=1)
    assert site.count("warmpath_booking_excess", target=str(TARGET)) is None


def test_without_a_fresh_report_nothing_is_said_of_bookings():
    site = Site()
    report(site, running=0)
    book(site, "a")
    site.now += 2 * EXCESS_SECONDS
    for _ in range(3):
        site.accounting.look()
        site.now += EXCESS_SECONDS
    assert site.count("warmpath_booking_excess", target=str(TARGET)) is None
