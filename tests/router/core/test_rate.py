import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from events.messages import WorkerLoad
from router.core.rate import DEFAULT_TOKENS_PER_SECOND, PrefillRates


@pytest.fixture
def rates() -> PrefillRates:
    return fleet(2)


def fleet(targets: int) -> PrefillRates:
    result = PrefillRates()
    for slot in range(targets):
        result.add_target(slot)
    return result


def serve(
    rates: PrefillRates, slot: int, tokens_per_second: float, requests: int = 30, tokens: int = 4000, start: float = 0.0
) -> float:
    now = start
    for _ in range(requests):
        rates.started(slot, now)
        now += tokens / tokens_per_second
        rates.prefilled(slot, tokens, now, still_busy=False)
        now += 1.0  # idle time teaches nothing
    return now


def engine(tokens: int | None, seconds: float | None, epoch: int = 1) -> WorkerLoad:
    return WorkerLoad(
        "w", 0, epoch, 0, 0, 0, 1000, total_prefill_uncached_tokens=tokens, total_prefill_busy_seconds=seconds
    )


def test_nothing_is_learned_at_first(rates: PrefillRates) -> None:
    assert not rates.learned
    assert rates.rates() == pytest.approx([DEFAULT_TOKENS_PER_SECOND] * 2)


@pytest.mark.parametrize("truth", [50.0, 2000.0, 100_000.0])
def test_the_rate_is_found(rates: PrefillRates, truth: float) -> None:
    serve(rates, 0, truth)
    assert rates.rates()[0] == pytest.approx(truth, rel=0.02)


def test_targets_without_experience_share_that_of_the_fleet(rates: PrefillRates) -> None:
    serve(rates, 0, 2000.0)
    assert rates.rates()[1] == pytest.approx(2000.0, rel=0.02)


def test_targets_differ(rates: PrefillRates) -> None:
    serve(rates, 0, 2000.0)
    serve(rates, 1, 500.0)
    fast, slow = rates.rates()
    assert fast == pytest.approx(2000.0, rel=0.2)
    assert slow == pytest.approx(500.0, rel=0.2)


def test_small_differences_are_taken_for_noise(rates: PrefillRates) -> None:
    """A request's fixed cost makes the holder of a prefix, who prefills little, look slower than its equals."""
    serve(rates, 0, 2000.0)
    serve(rates, 1, 1600.0)
    first, second = rates.rates()
    assert first == second == pytest.approx(1780.0, rel=0.05)


def test_waiting_in_line_and_in_a_batch_is_not_slowness(rates: PrefillRates) -> None:
    for period in range(10):
        now = period * 100.0
        for _ in range(4):
            rates.started(0, now)
        rates.prefilled(0, 1000, now + 1.0, still_busy=True)  # first in line
        for waiting in (2, 1, 0):  # the others in one batch
            rates.prefilled(0, 1000, now + 4.0, still_busy=waiting > 0)
    assert rates.rates()[0] == pytest.approx(1000.0, rel=0.02)


def test_a_target_that_is_never_idle_teaches_too(rates: PrefillRates) -> None:
    rates.started(0, 0.0)
    for second in range(1, 20):
        rates.started(0, second - 0.5)
        rates.prefilled(0, 3000, float(second), still_busy=True)
    assert rates.rates()[0] == pytest.approx(3000.0, rel=0.02)


def test_one_stall_does_not_decide(rates: PrefillRates) -> None:
    now = serve(rates, 0, 2000.0)
    rates.started(0, now)
    rates.prefilled(0, 100, now + 600.0, still_busy=False)
    assert rates.rates()[0] == pytest.approx(2000.0, rel=0.05)


def test_a_lasting_change_is_followed(rates: PrefillRates) -> None:
    now = serve(rates, 0, 2000.0)
    serve(rates, 0, 200.0, requests=400, start=now)
    assert rates.rates()[0] == pytest.approx(200.0, rel=0.1)


def test_an_aborted_prefill_spoils_its_period(rates: PrefillRates) -> None:
    now = serve(rates, 0, 2000.0)
    before = rates.rates()[0]
    rates.started(0, now)
    rates.started(0, now)
    rates.prefilled(0, 10, now + 0.5, still_busy=True)
    rates.aborted(0, now + 50.0, still_busy=False)
    assert rates.rates()[0] == before
    assert rates.statistics().ignored_samples == 1


@settings(derandomize=True, deadline=None)
@given(st.integers(-5, 5), st.sampled_from([0.0, -1.0, float("inf"), float("nan")]))
def test_nonsense_is_ignored_and_counted(tokens: int, seconds: float) -> None:
    rates = fleet(1)
    rates.started(0, 0.0)
    rates.prefilled(0, tokens, seconds, still_busy=False)
    assert rates.statistics() == (0, 0, 1)
    assert np.isfinite(rates.rates()).all()


def test_an_engines_own_totals_are_preferred(rates: PrefillRates) -> None:
    serve(rates, 0, 500.0)
    for report in range(30):
        rates.report(0, engine(4000 * report, float(report)))
    assert rates.rates()[0] == pytest.approx(4000.0, rel=0.05)
    serve(rates, 0, 500.0)
    assert rates.rates()[0] == pytest.approx(4000.0, rel=0.05)
    assert rates.statistics().engine_samples == 29


def test_small_steps_of_totals_are_taken_together(rates: PrefillRates) -> None:
    for step in range(0, 4096, 16):
        rates.report(0, engine(step, step / 1000))
    assert rates.statistics().engine_samples == 4080 // 256
    assert rates.rates()[0] == pytest.approx(1000.0, rel=0.01)


def test_a_restarted_engine_counts_from_zero(rates: PrefillRates) -> None:
    rates.report(0, engine(1_000_000, 1000.0, epoch=1))
    rates.report(0, engine(5000, 1.0, epoch=2))
    assert rates.statistics() == (0, 0, 0)
    rates.report(0, engine(100, 0.1, epoch=2))  # backwards within an epoch: not comparable either
    rates.report(0, engine(8100, 2.1, epoch=2))
    assert rates.rates()[0] == pytest.approx(4000.0, rel=0.01)


def test_totals_of_two_epochs_are_not_compared_even_if_they_grew(rates: PrefillRates) -> None:
    rates.report(0, engine(1000, 1.0, epoch=1))
    rates.report(0, engine(500_000, 2.0, epoch=2))
    assert rates.statistics() == (0, 0, 0)
    rates.report(0, engine(504_000, 4.0, epoch=2))
    assert rates.rates()[0] == pytest.approx(2000.0, rel=0.01)


def test_an_engine_that_does_not_say_teaches_nothing(rates: PrefillRates) -> None:
    for report in (engine(None, 1.0), engine(1000, None), engine(None, None)):
        rates.report(0, report)
    assert rates.statistics() == (0, 0, 0)


def test_a_removed_target_is_forgotten(rates: PrefillRates) -> None:
    serve(rates, 0, 50.0)
    rates.report(0, engine(1000, 1.0))
    rates.remove_target(0)
    rates.add_target(0)
    assert not rates.learned
    assert rates.rates() == pytest.approx([DEFAULT_TOKENS_PER_SECOND] * 2)
    rates._check()
