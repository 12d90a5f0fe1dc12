from typing import Any

import numpy as np
import pytest

from events.blocks import sequence_hashes
from events.messages import BlocksRemoved, BlocksStored, CacheCleared, Tier, WorkerLoad, pack_hashes
from router.core import NoTarget, RoutingRequest, Scheduler, Target
from router.core.policy import Policy, create, names

A, B, C = Target("a"), Target("b"), Target("c")
BLOCK_SIZE = 4


def scheduler(policy: str | Policy = "warm", targets: tuple[Target, ...] = (A, B), **card: Any) -> Scheduler:
    result = Scheduler(create(policy) if isinstance(policy, str) else policy, BLOCK_SIZE, seed=1)
    for target in targets:
        result.add_target(target, **{"capacity_tokens": 4000, "model": "m", **card})
    return result


def tokens(count: int, start: int = 0) -> np.ndarray:
    return np.arange(start, start + count, dtype=np.uint32)


def hashes(count: int, start: int = 0) -> np.ndarray:
    return sequence_hashes(tokens(count, start), BLOCK_SIZE)


def request(request_id: str, count: int = 41, start: int = 0, **fields: Any) -> RoutingRequest:
    return RoutingRequest(request_id, hashes(count, start), count, **fields)


def stored(prefixes: np.ndarray, tier: Tier = Tier.DEVICE) -> BlocksStored:
    return BlocksStored(pack_hashes(prefixes), tier)


def state(fleet: Scheduler, target: Target) -> Any:
    return next(state for state in fleet.targets() if state.target == target)


# ---- a request's life


def test_a_request_goes_to_the_holder_of_its_prefix() -> None:
    fleet = scheduler()
    fleet.apply(B, stored(hashes(20)))
    placement = fleet.place(request("r"), now=0.0)
    assert placement.target == B
    assert (placement.overlap_blocks, placement.predicted_blocks) == (5, 0)
    assert (placement.cached_tokens, placement.uncached_tokens) == (20, 21)
    assert placement.predicted_ttft_seconds is None


def test_an_earlier_request_predicts_for_a_later_one() -> None:
    fleet = scheduler()
    first = fleet.place(request("r1"), now=0.0)
    fleet.first_token("r1", 0, now=0.01)
    fleet.free("r1", now=0.02)
    second = fleet.place(request("r2"), now=0.03)
    assert second.target == first.target
    assert (second.overlap_blocks, second.predicted_blocks, second.uncached_tokens) == (10, 10, 1)


def test_a_full_hit_still_computes_the_last_page() -> None:
    fleet = scheduler(targets=(A,), page_size=16)
    fleet.apply(A, stored(hashes(32)))
    placement = fleet.place(request("r", count=32), now=0.0)
    assert (placement.overlap_blocks, placement.cached_tokens, placement.uncached_tokens) == (8, 16, 16)


def test_predictions_stop_at_the_last_full_page() -> None:
    fleet = scheduler(targets=(A,), page_size=16)
    fleet.place(request("r", count=41), now=0.0)
    assert state(fleet, A).predicted_blocks == 8  # two pages of four blocks, though ten blocks are full


def test_the_first_token_ends_the_wait_and_teaches_the_rate() -> None:
    fleet = scheduler(targets=(A,))
    fleet.place(request("r", count=2001), now=0.0)
    assert state(fleet, A).prefill_tokens == 2001
    fleet.first_token("r", 1, now=4.0)
    now = state(fleet, A)
    assert (now.prefill_tokens, now.context_tokens, now.decode_blocks) == (0, 2001, 500)
    assert now.prefill_rate == pytest.approx(500, rel=0.01)
    counts = fleet.statistics()
    assert (counts.expected_cached_tokens, counts.actual_cached_tokens) == (0, 1)
    fleet.free("r", now=5.0)
    later = fleet.place(request("s", count=1001, start=9000), now=5.0)
    assert later.predicted_ttft_seconds == pytest.approx(2.0, rel=0.01)


def test_progress_adds_context() -> None:
    fleet = scheduler(targets=(A,))
    fleet.place(request("r"), now=0.0)
    fleet.progress("r", 5)
    fleet.progress("r", 9)
    assert state(fleet, A).context_tokens == 50
    fleet.free("r", now=1.0)
    assert state(fleet, A).context_tokens == 0


def test_a_failure_takes_its_predictions_back() -> None:
    fleet = scheduler(targets=(A,))
    fleet.place(request("r1", count=21), now=0.0)
    fleet.free("r1", now=0.1)
    fleet.place(request("r2", count=41), now=0.2)
    fleet.free("r2", now=0.3, failed=True)
    assert state(fleet, A).predicted_blocks == 5  # what r1 left
    assert fleet.statistics().predicted.retracted == 5


def test_a_retry_avoids_who_failed() -> None:
    fleet = scheduler()
    first = fleet.place(request("r"), now=0.0).target
    fleet.free("r", now=0.1, failed=True)
    assert fleet.place(request("r", excluded=frozenset({first})), now=0.2).target != first


def test_what_was_generated_is_predicted_where_no_events_tell() -> None:
    for exact, expected in ((False, 15), (True, 10)):
        fleet = scheduler(targets=(A,), exact=exact)
        fleet.place(request("r", count=41), now=0.0)
        fleet.free("r", now=1.0, generated=hashes(60))
        assert state(fleet, A).predicted_blocks == expected


def test_predictions_last_as_long_as_events_may_take() -> None:
    for exact, seconds in ((False, 3600.0), (True, 5.0)):
        fleet = scheduler(targets=(A,), exact=exact)
        fleet.place(request("r"), now=0.0)
        assert fleet.explain(request("s"), now=seconds - 0.1).candidates[0].predicted_blocks == 10
        assert fleet.explain(request("s"), now=seconds).candidates[0].predicted_blocks == 0


def test_bookings_count_at_once_for_the_next_decision() -> None:
    fleet = scheduler(targets=(A, B, C))
    placed = {fleet.place(request(f"r{n}", start=1000 * n), now=0.0).target for n in range(3)}
    assert placed == {A, B, C}


# ---- events


def test_an_event_takes_over_from_the_prediction() -> None:
    fleet = scheduler(targets=(A,))
    fleet.place(request("r"), now=0.0)
    fleet.apply(A, stored(hashes(24)))
    now = state(fleet, A)
    assert (now.device_blocks, now.predicted_blocks) == (6, 4)
    row = fleet.explain(request("s"), now=0.1).candidates[0]
    assert (row.device_blocks, row.predicted_blocks) == (6, 4)


def test_what_is_held_exactly_is_not_predicted() -> None:
    fleet = scheduler(targets=(A,))
    fleet.apply(A, stored(hashes(24)))
    fleet.place(request("r"), now=0.0)
    fleet.apply(A, BlocksRemoved(pack_hashes(hashes(24))))
    row = fleet.explain(request("s"), now=0.1).candidates[0]
    assert (row.device_blocks, row.predicted_blocks) == (0, 0)  # blocks 7 to 10 are predicted, but behind a hole


def test_a_cleared_cache_holds_nothing() -> None:
    fleet = scheduler(targets=(A,))
    fleet.apply(A, stored(hashes(24)))
    fleet.apply(A, stored(hashes(40), Tier.HOST))
    fleet.place(request("r"), now=0.0)
    fleet.apply(A, CacheCleared())
    now = state(fleet, A)
    assert (now.device_blocks, now.host_blocks, now.disk_blocks, now.predicted_blocks) == (0, 0, 0, 0)


def test_a_snapshot_replaces_all_that_was_exact() -> None:
    fleet = scheduler(targets=(A,))
    fleet.apply(A, stored(hashes(24)))
    fleet.apply(A, stored(hashes(24), Tier.DISK))
    fleet.restore(A, [stored(hashes(8)), stored(hashes(12, start=500)), stored(hashes(16), Tier.HOST)])
    now = state(fleet, A)
    assert (now.device_blocks, now.host_blocks, now.disk_blocks) == (5, 4, 0)


def test_an_unreadable_snapshot_changes_nothing() -> None:
    fleet = scheduler(targets=(A,))
    fleet.apply(A, stored(hashes(24)))
    with pytest.raises(ValueError, match="size"):
        fleet.restore(A, [stored(hashes(8)), BlocksStored(b"abc")])
    assert state(fleet, A).device_blocks == 6


# ---- the fleet


def test_a_target_that_leaves_takes_everything_along() -> None:
    fleet = scheduler()
    fleet.apply(A, stored(hashes(40)))
    fleet.place(request("r"), now=0.0)
    assert fleet.remove_target(A) == ["r"]
    fleet._check()
    assert fleet.place(request("s"), now=0.1).target == B
    fleet.add_target(C, capacity_tokens=4000, model="m")  # in A's slot
    fleet._check()
    row = next(row for row in fleet.explain(request("t"), now=0.2).candidates if row.target == C)
    assert (row.device_blocks, row.predicted_blocks, row.active_requests) == (0, 0, 0)
    assert fleet.remove_target(A) == []


def test_late_calls_are_counted_not_raised(caplog: pytest.LogCaptureFixture) -> None:
    fleet = scheduler(targets=(A,))
    gone = Target("gone")
    fleet.apply(gone, stored(hashes(4)))
    fleet.restore(gone, [])
    fleet.set_available(gone, True)
    fleet.report_load(gone, WorkerLoad("gone", 0, 1, 0, 0, 0, 1), now=0.0)
    fleet.free("never", now=0.0)
    fleet.first_token("never", 0, now=0.0)
    fleet.progress("never", 1)
    counts = fleet.statistics()
    assert (counts.unknown_targets, counts.unknown_requests) == (4, 3)
    assert caplog.text.count("gone/0") == 1


def test_an_unavailable_target_keeps_what_it_holds() -> None:
    fleet = scheduler()
    fleet.apply(A, stored(hashes(40)))
    fleet.set_available(A, False)
    assert fleet.place(request("r"), now=0.0).target == B
    fleet.set_available(A, True)
    assert fleet.place(request("s"), now=10.0).target == A


def test_refusals_are_counted_by_reason() -> None:
    fleet = scheduler()
    for number, fields in enumerate(({"model": "x"}, {"model": "x"}, {"pinned": C})):
        with pytest.raises(NoTarget):
            fleet.place(request(f"r{number}", **fields), now=0.0)
    assert fleet.statistics().refusals == {"no worker serves the model": 2, "pinned target unavailable": 1}
    assert fleet.statistics().requests == 0


def test_an_engines_own_queue_counts() -> None:
    fleet = scheduler()
    fleet.report_load(A, WorkerLoad("a", 0, 1, 4, 9, 100, 4000, waiting_uncached_tokens=80_000), now=0.0)
    assert fleet.place(request("r"), now=0.5).target == B
    assert state(fleet, A).reported.load.waiting_requests == 9


def test_an_engines_own_totals_set_its_rate() -> None:
    fleet = scheduler(targets=(A,))
    for tokens, seconds in ((0, 0.0), (50_000, 50.0)):
        totals = WorkerLoad("a", 0, 1, 0, 0, 0, 4000, None, None, tokens, seconds)
        fleet.report_load(A, totals, now=seconds)
    assert state(fleet, A).prefill_rate == pytest.approx(1000, rel=0.01)
    assert fleet.statistics().rates.engine_samples == 1


def test_a_request_that_ends_before_its_first_token_teaches_nothing() -> None:
    fleet = scheduler(targets=(A,))
    fleet.place(request("r", count=2001), now=0.0)
    fleet.free("r", now=100.0, failed=True)
    fleet.place(request("s", count=2001), now=100.0)
    fleet.first_token("s", 0, now=104.0)
    assert state(fleet, A).prefill_rate == pytest.approx(500, rel=0.01)  # not 2001 tokens in 104 seconds
    assert fleet.statistics().rates.ignored_samples == 1


@pytest.mark.parametrize("card", [{"capacity_tokens": 0}, {"page_size": 0}])
def test_an_unfit_card_is_refused(card: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(card))} of a/0 must be at least 1"):
        scheduler(targets=(A,), **card)
    with pytest.raises(ValueError, match="block_size"):
        Scheduler(create("warm"), 0)


def test_unfit_requests_are_refused() -> None:
    fleet = scheduler()
    with pytest.raises(ValueError, match="10 hashes, but 8 prompt tokens are 2 full blocks of 4"):
        fleet.place(RoutingRequest("r", hashes(40), 8), now=0.0)
    fleet.place(request("r"), now=0.0)
    with pytest.raises(ValueError, match="'r' is booked already"):
        fleet.place(request("r"), now=0.0)
    with pytest.raises(ValueError, match="there already"):
        fleet.add_target(A, capacity_tokens=100, model="m")
    fleet._check()
    assert len(fleet.targets()[0].requests) + len(fleet.targets()[1].requests) == 1


class Bad(Policy):
    name = "bad"

    def __init__(self, scores: list[Any]) -> None:
        self.scores = np.array(scores)

    def score(self, fleet: Any, request: Any, chance: Any) -> Any:
        return self.scores


@pytest.mark.parametrize("scores", [[1.0], [1.0, float("nan")], [1, 2], [[1.0, 2.0]]])
def test_a_policy_must_score_everyone(scores: list[Any]) -> None:
    fleet = scheduler(Bad(scores))
    with pytest.raises(ValueError, match="policy 'bad' must score"):
        fleet.place(request("r"), now=0.0)
    assert fleet.statistics().requests == 0


def test_nobody_looks_at_the_score_of_who_is_not_eligible() -> None:
    fleet = scheduler(Bad([float("nan"), 5.0]))
    assert fleet.place(request("r", excluded=frozenset({A})), now=0.0).score == 5.0


# ---- explain


def test_explain_shows_why() -> None:
    fleet = scheduler(targets=(A, B, C))
    fleet.apply(A, stored(hashes(20)))
    fleet.apply(A, stored(hashes(28), Tier.HOST))
    fleet.set_available(C, False)
    decision = fleet.explain(request("r"), now=0.0)
    assert (decision.chosen, decision.policy, decision.reason) == (A, "warm", None)
    first, second, third = decision.candidates
    assert (first.device_blocks, first.host_blocks, first.uncached_tokens, first.chosen) == (5, 2, 13, True)
    assert second.eligible
    assert second.score > first.score
    assert (third.refusal, third.eligible, third.score, third.chosen) == ("unavailable", False, None, False)


def test_explain_of_a_refusal_says_so_without_counting_it() -> None:
    fleet = scheduler()
    decision = fleet.explain(request("r", model="x"), now=0.0)
    assert (decision.chosen, decision.reason) == (None, "no worker serves the model: 'x'")
    assert [row.refusal for row in decision.candidates] == ["serves another model"] * 2
    assert fleet.statistics().refusals == {}
    assert Scheduler(create("warm"), 4).explain(request("r"), now=0.0).reason == "no worker"


@pytest.mark.parametrize("policy", names())
def test_explain_tells_what_place_then_does(policy: str) -> None:
    fleet = scheduler(policy, targets=tuple(Target(f"w{n}") for n in range(5)))
    for number in range(40):
        asked = request(f"r{number}", start=100 * (number % 7))
        expected = fleet.explain(asked, now=number)
        assert fleet.explain(asked, now=number) == expected
        placement = fleet.place(asked, now=number)
        assert expected.chosen == placement.target
        assert next(row.score for row in expected.candidates if row.chosen) == placement.score


# ---- determinism


def story(policy: str, seed: int, *, explained: bool = False) -> list[Target]:
    fleet = Scheduler(create(policy), BLOCK_SIZE, seed=seed)
    for number in range(8):
        fleet.add_target(Target(f"w{number}"), capacity_tokens=2000, model="m", exact=number % 2 == 0)
    placed = []
    for number in range(60):
        asked = request(f"r{number}", count=41 + number, start=50 * (number % 9))
        if explained:
            fleet.explain(asked, now=number * 0.1)
        placed.append(fleet.place(asked, now=number * 0.1).target)
        if number >= 5:
            fleet.first_token(f"r{number - 5}", None, now=number * 0.1 + 0.05)
            fleet.free(f"r{number - 5}", now=number * 0.1 + 0.05, failed=number % 4 == 0)
    return placed


@pytest.mark.parametrize("policy", names())
def test_the_same_calls_give_the_same_placements(policy: str) -> None:
    assert story(policy, seed=5) == story(policy, seed=5)
    assert story(policy, seed=5) == story(policy, seed=5, explained=True)


@pytest.mark.parametrize("policy", ["warm", "linear", "least-loaded", "power-of-two", "random"])
def test_another_seed_breaks_ties_otherwise(policy: str) -> None:
    assert len({tuple(story(policy, seed)) for seed in range(5)}) > 1


def test_a_scheduler_shows_what_it_is() -> None:
    fleet = scheduler("round-robin")
    fleet.place(request("r"), now=0.0)
    assert repr(fleet) == "Scheduler(RoundRobin(), 2 targets, 1 requests)"
