"""Whole or shared out: the rule, the pairs, and what is learned."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from events.messages import BlocksStored, pack_hashes
from router.core import NoTarget, Pair, Part, Path, Paths, Placement, RoutingRequest, Scheduler, Target
from router.core.paths import FORGOTTEN_AFTER_SECONDS, MOST_OVERHEAD_SECONDS, PAIR_OVERHEAD_SECONDS, Overhead
from router.core.policy import create

BLOCK = 16
RATE = 8000.0  # what is assumed before anything is learned
W, P, D = Part.WHOLE, Part.PREFILL, Part.DECODE


def fleet(*parts: Part, conditional: bool = True, caches: bool = False) -> tuple[Scheduler, Paths]:
    """Targets w0, w1, … with these parts; decode targets keep no prefixes unless told so."""
    scheduler = Scheduler(create("warm"), BLOCK)
    for index, part in enumerate(parts):
        scheduler.add_target(
            Target(f"w{index}"), capacity_tokens=1 << 20, model="m", part=part, caches=caches or part is not D
        )
    return scheduler, Paths(scheduler, conditional=conditional)


def request(name: str, tokens: int = 1600, seed: int = 0) -> RoutingRequest:
    hashes = np.arange(1, tokens // BLOCK + 1, dtype=np.uint64) + np.uint64(seed * 1_000_000)
    return RoutingRequest(name, hashes, tokens)


def pair(placement: Placement | Pair) -> tuple[str, str]:
    assert isinstance(placement, Pair), placement
    return placement.prefill.target.worker_id, placement.decode.target.worker_id


def whole(placement: Placement | Pair) -> str:
    assert isinstance(placement, Placement), placement
    return placement.target.worker_id


def hold(scheduler: Scheduler, target: str, held: RoutingRequest, blocks: int | None = None) -> None:
    scheduler.apply(Target(target), BlocksStored(pack_hashes(held.hashes[:blocks])))


def test_a_pair_is_booked_on_both_sides() -> None:
    scheduler, paths = fleet(P, D)
    assert pair(paths.place(request("r"), 0.0)) == ("w0", "w1")
    prefill, decode = scheduler.targets()
    assert (prefill.requests, decode.requests) == (["r/prefill"], ["r"])
    assert (prefill.prefill_tokens, decode.prefill_tokens) == (1600, 0)
    assert decode.decode_blocks == 100
    assert decode.predicted_blocks == 0  # it keeps nothing
    scheduler.first_token("r/prefill", 0, 1.0)
    scheduler.free("r/prefill", 1.0)
    scheduler.free("r", 2.0)
    assert scheduler.statistics().requests == scheduler.statistics().unknown_requests == 0
    scheduler._check()


def test_prefill_goes_to_the_holder_and_decode_to_the_emptier() -> None:
    scheduler, paths = fleet(P, P, D, D)
    hold(scheduler, "w1", request("r"))
    hold(scheduler, "w3", request("r"))  # an index entry that a decode target without a cache would not make: it counts
    assert pair(paths.place(request("r"), 0.0)) == ("w1", "w3")
    assert pair(paths.place(request("s", seed=1), 0.0))[1] == "w2"  # w3 has more in use


def test_load_moves_a_prefill_off_its_holder() -> None:
    scheduler, paths = fleet(P, P, D)
    hold(scheduler, "w0", request("r"), 20)
    for index in range(2):
        scheduler.place(
            RoutingRequest(f"x{index}", request("", seed=9 + index).hashes, 1600, part=P, pinned=Target("w0")), 0.0
        )
    assert pair(paths.place(request("r"), 0.0))[0] == "w1"


def test_a_decode_target_that_caches_is_chosen_by_what_it_holds() -> None:
    scheduler, paths = fleet(P, D, D, caches=True)
    hold(scheduler, "w2", request("r"))
    assert pair(paths.place(request("r"), 0.0)) == ("w0", "w2")


@pytest.mark.parametrize(("tokens", "path"), [(48, Path.WHOLE), (1600, Path.PAIR)])
def test_a_short_prompt_stays_whole_where_others_decode(tokens: int, path: Path) -> None:
    """Eight decodes are held up by 2.4 times the prefill's length: worth a pair's 20 ms above 67 tokens at 8000 a second."""
    scheduler, paths = fleet(W, P, D)
    for index in range(8):
        scheduler.place(request(f"x{index}", seed=7), 0.0)
        scheduler.first_token(f"x{index}", None, 0.0)
    placed = paths.place(request("r", tokens, seed=1), 0.0)
    assert path is (Path.PAIR if isinstance(placed, Pair) else Path.WHOLE)
    assert (paths.statistics(0.0).whole, paths.statistics(0.0).pair) == (path is Path.WHOLE, path is Path.PAIR)


def test_a_long_prompt_that_is_cached_stays_whole() -> None:
    scheduler, paths = fleet(W, P, D)
    for index in range(8):
        scheduler.place(request(f"x{index}", seed=7), 0.0)
        scheduler.first_token(f"x{index}", None, 0.0)
    hold(scheduler, "w0", request("r"))
    assert whole(paths.place(request("r"), 0.0)) == "w0"


def test_a_busy_prefill_pool_is_passed_over() -> None:
    _, paths = fleet(W, P, D)
    placed = [paths.place(request(f"r{index}", seed=index), 0.0) for index in range(6)]
    assert {isinstance(placement, Pair) for placement in placed} == {True, False}
    assert whole(placed[0]) == "w0"  # on an idle fleet nobody is held up, and a transfer costs
    assert pair(placed[1]) == ("w1", "w2")  # now there is a queue


def test_unconditional_pairs_as_long_as_there_is_one() -> None:
    scheduler, paths = fleet(W, P, D, conditional=False)
    assert pair(paths.place(request("r", 16), 0.0)) == ("w1", "w2")
    scheduler.set_available(Target("w2"), available=False)
    assert whole(paths.place(request("s", 16), 0.0)) == "w0"


def test_what_may_not_pair_goes_whole_or_nowhere() -> None:
    _, paths = fleet(W, P, D, conditional=False)
    assert whole(paths.place(request("r"), 0.0, may_pair=False)) == "w0"
    _, paths = fleet(P, D)
    with pytest.raises(NoTarget, match="no worker for this part: whole"):
        paths.place(request("r"), 0.0, may_pair=False)


def test_pairs_apart_meet_others() -> None:
    _, paths = fleet(P, D, D)
    paths.set_together(Target("w0"), Target("w1"), together=False)
    assert {pair(paths.place(request(f"r{index}", seed=index), 0.0)) for index in range(4)} == {("w0", "w2")}
    paths.set_together(Target("w0"), Target("w2"), together=False)
    with pytest.raises(NoTarget, match="all pairs apart"):
        paths.place(request("s"), 0.0)
    paths.set_together(Target("w0"), Target("w1"), together=True)
    assert pair(paths.place(request("t"), 0.0)) == ("w0", "w1")


def test_a_prefill_target_with_nobody_to_decode_for_it_is_passed_over() -> None:
    scheduler, paths = fleet(P, P, D)
    hold(scheduler, "w0", request("r"))
    paths.set_together(Target("w0"), Target("w2"), together=False)
    assert pair(paths.place(request("r"), 0.0)) == ("w1", "w2")


@pytest.mark.parametrize("parts", [(P,), (D,), (P, P)])
def test_half_a_fleet_says_what_is_missing(parts: tuple[Part, ...]) -> None:
    _, paths = fleet(*parts)
    with pytest.raises(NoTarget, match="no worker for this part"):
        paths.place(request("r"), 0.0)


def test_explaining_books_nothing_and_says_both_prices() -> None:
    scheduler, paths = fleet(W, P, D)
    decision = paths.explain(request("r"), 0.0)
    assert decision.path is Path.WHOLE
    assert decision.whole_seconds == pytest.approx(1600 / RATE)
    assert decision.pair_seconds == pytest.approx(1600 / RATE + PAIR_OVERHEAD_SECONDS)
    assert decision.first is decision.whole
    assert decision.decode is not None
    assert decision.decode.policy == "decode-load"
    assert decision.decode.chosen == Target("w2")
    assert scheduler.statistics().placements == 0
    _, paths = fleet(P, D)
    assert paths.explain(request("r"), 0.0).first.chosen == Target("w0")


def test_what_pairs_cost_is_learned_and_forgotten() -> None:
    _, paths = fleet(W, P, D)
    for _ in range(50):
        paths.first_token(Path.PAIR, 0.1, 0.5, 10.0)
        paths.first_token(Path.WHOLE, None, 9.0, 10.0)  # there was no prediction to compare with
    learned = paths.statistics(10.0)
    assert learned.pair_overhead_seconds == pytest.approx(0.4, rel=0.01)
    assert learned.whole_overhead_seconds == 0.0
    later = paths.statistics(10.0 + 20 * FORGOTTEN_AFTER_SECONDS)
    assert later.pair_overhead_seconds == pytest.approx(PAIR_OVERHEAD_SECONDS, rel=1e-3)


@settings(derandomize=True, deadline=None)
@given(st.lists(st.tuples(st.floats(-1e6, 1e6), st.floats(0, 1e4)), max_size=60), st.floats(0, 1e4))
def test_an_overhead_stays_within_its_samples(samples: list[tuple[float, float]], later: float) -> None:
    overhead, now = Overhead(0.02), 0.0
    for seconds, passed in samples:
        now += passed
        overhead.observe(seconds, now)
        assert 0 <= overhead.seconds(now) <= MOST_OVERHEAD_SECONDS
    assert 0 <= overhead.seconds(now + later) <= MOST_OVERHEAD_SECONDS


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("place"), st.integers(0, 3), st.integers(1, 60)),
        st.tuples(st.just("end"), st.integers(0, 30), st.booleans()),
        st.tuples(st.just("apart"), st.integers(0, 1), st.integers(0, 1)),
        st.tuples(st.just("available"), st.integers(0, 4), st.booleans()),
    ),
    max_size=40,
)


@settings(derandomize=True, deadline=None, max_examples=60)
@given(STEPS, st.booleans())
def test_whatever_happens_sides_match_and_bookings_end(steps: list[tuple[str, int, int]], conditional: bool) -> None:
    scheduler, paths = fleet(W, P, P, D, D, conditional=conditional)
    apart: set[tuple[str, str]] = set()
    out: set[str] = set()
    there: dict[str, Placement | Pair] = {}
    for number, (kind, first, second) in enumerate(steps):
        if kind == "place":
            open_pairs = {(p, d) for p in ("w1", "w2") for d in ("w3", "w4")} - apart
            open_pairs = {both for both in open_pairs if not out & set(both)}
            try:
                there[f"r{number}"] = placed = paths.place(request(f"r{number}", 16 * second, seed=first), 0.0)
            except NoTarget:
                assert "w0" in out
                assert not open_pairs
                continue
            if isinstance(placed, Pair):
                assert pair(placed) in open_pairs
            else:
                assert whole(placed) == "w0"
                assert "w0" not in out
                assert conditional or not open_pairs
        elif kind == "end" and there:
            name = sorted(there)[first % len(there)]
            if isinstance(there.pop(name), Pair):
                scheduler.free(f"{name}/prefill", 0.0, failed=bool(second))
            scheduler.free(name, 0.0, failed=bool(second))
        elif kind == "apart":
            both = f"w{1 + first}", f"w{3 + second}"
            paths.set_together(*map(Target, both), together=both in apart)
            apart ^= {both}
        elif kind == "available":
            scheduler.set_available(Target(f"w{first}"), available=bool(second))
            (out.discard if second else out.add)(f"w{first}")
        scheduler._check()
    assert scheduler.statistics().requests == len(there) + sum(isinstance(value, Pair) for value in there.values())
    assert scheduler.statistics().unknown_requests == 0
