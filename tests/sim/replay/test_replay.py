"""The loop in virtual time: whatever is asked is answered, and the same again gives the same."""

import numpy as np
import pytest

from router.core.policy import create, names
from sim.engine import EngineConfig
from sim.replay import Kill, Replay, Settings, replay
from sim.traces import Trace


def conversations(requests=60, seed=1):
    """Prompts that share a system prompt and extend each other, far more than the caches hold."""
    draw = np.random.default_rng(seed)
    chains, blocks, inputs = [[0] for _ in range(6)], [], []
    for number in range(requests):
        chain = chains[draw.integers(len(chains))]
        chain.extend(100 * number + 1 + np.arange(draw.integers(1, 4)))
        inputs.append(16 * len(chain) - int(draw.integers(0, 8)))
        blocks.append(list(chain))
    return Trace.open_loop(
        "conversations",
        np.sort(draw.uniform(0, 2.0, requests)),
        np.array(inputs),
        draw.integers(1, 40, requests),
        block_tokens=16,
        blocks=np.array([block for one in blocks for block in one], np.uint64),
        first_block=np.cumsum([0, *map(len, blocks)]),
    )


def settings(**changes):
    engine = EngineConfig(capacity_tokens=4096, page_size=16, chunked_prefill_tokens=256)
    return Settings(**{"workers": 3, "engine": engine, "block_size": 16, **changes})


def columns(outcome):
    return {name: value for name, value in vars(outcome).items() if isinstance(value, np.ndarray)}


@pytest.mark.parametrize("policy", names())
def test_every_policy_answers_every_request(policy):
    trace = conversations()
    outcome = replay(trace, lambda: create(policy), settings())
    assert outcome.done.all()
    assert (outcome.output_tokens == trace.output_tokens).all()
    assert (outcome.cached_tokens < outcome.input_tokens).all()
    assert outcome.gap_counts.sum() == (trace.output_tokens - 1).sum()
    assert set(outcome.worker) <= {0, 1, 2}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"kv_events": False},
        {"event_lag_seconds": 0.1, "event_loss": 0.3},
        {"routers": 3, "load_report_interval_seconds": 0.5},
        {"routers": 3, "booking_lag_seconds": 0.01},
        {"kills": (Kill(0.5, 1, restart=0.9), Kill(1.0, 2))},
    ],
    ids=str,
)
def test_the_same_again_gives_the_same(changes):
    trace = conversations()
    first, again = (replay(trace, lambda: create("warm"), settings(**changes)) for _ in range(2))
    assert first.done.all()
    assert first.cached_tokens.sum() > 0
    for name, column in columns(first).items():
        np.testing.assert_array_equal(column, columns(again)[name], err_msg=name)


def in_sessions(trace, delay):
    """Every third request starts a session that the two after it continue."""
    previous = np.where(np.arange(len(trace)) % 3 == 0, -1, np.arange(len(trace)) - 1)
    return trace.with_columns(previous=previous, delay_seconds=np.where(previous < 0, 0.0, delay))


PAIRS = {"prefill": 2, "decode": 2}


@pytest.mark.parametrize("changes", [{}, PAIRS], ids=["whole", "pairs"])
@pytest.mark.parametrize("delay", [0.0, 0.01, 5.0])
def test_a_session_goes_on_when_its_answer_is_there(changes, delay):
    trace = in_sessions(conversations(), delay)
    outcome = replay(trace, lambda: create("warm"), settings(**changes))
    assert outcome.done.all()
    later = np.flatnonzero(trace.previous >= 0)
    expected = outcome.finish_seconds[trace.previous[later]] + delay
    np.testing.assert_array_equal(outcome.arrival_seconds[later], expected)
    first = trace.previous < 0
    np.testing.assert_array_equal(outcome.arrival_seconds[first], trace.arrival_seconds[first])


@pytest.mark.parametrize("changes", [{}, PAIRS], ids=["whole", "pairs"])
def test_how_far_engines_look_ahead_of_each_other_changes_nothing(changes):
    trace = in_sessions(conversations(), 0.2)
    far, near = (Replay(trace, lambda: create("warm"), settings(**changes), "warm") for _ in range(2))
    near._service._lookahead = 0.0
    far, near = far.run(), near.run()
    for name, column in columns(far).items():
        np.testing.assert_array_equal(column, columns(near)[name], err_msg=name)


def test_a_pair_is_as_fast_as_its_parts():
    trace = Trace.open_loop("one", np.zeros(1), np.array([500]), np.array([10]))
    whole = replay(trace, lambda: create("warm"), settings(workers=1))
    pair = replay(trace, lambda: create("warm"), settings(prefill=1, decode=1))
    transfer = 500 * 131_072 / 64e9
    assert pair.first_token_seconds[0] == pytest.approx(whole.first_token_seconds[0] + transfer)
    assert pair.finish_seconds[0] == pytest.approx(whole.finish_seconds[0] + transfer)
    assert (pair.prefill_worker[0], pair.worker[0]) == (0, 1)


def test_decode_workers_have_room_for_what_they_take_over():
    trace = conversations(120, seed=2)
    outcome = replay(trace, lambda: create("warm"), settings(**PAIRS))
    assert outcome.done.all()
    assert (outcome.output_tokens == trace.output_tokens).all()
    assert outcome.samples.cached_tokens[:, 2:].sum() == 0
    assert (outcome.samples.used_tokens <= 4096).all()
    assert outcome.gap_counts.sum() == (trace.output_tokens - 1).sum()


@pytest.mark.parametrize("changes", [{}, PAIRS], ids=["whole", "pairs"])
@pytest.mark.parametrize("worker", [0, 2])
def test_requests_of_a_dead_worker_go_on_elsewhere(changes, worker):
    trace = conversations()
    outcome = replay(trace, lambda: create("warm"), settings(kills=(Kill(0.7, worker, 1.2),), **changes))
    assert outcome.done.all()
    assert (outcome.output_tokens == trace.output_tokens).all()
    assert outcome.gap_counts.sum() == (trace.output_tokens - 1).sum()
    untouched = replay(trace, lambda: create("warm"), settings(**changes))
    before = outcome.finish_seconds < 0.7
    np.testing.assert_array_equal(outcome.finish_seconds[before], untouched.finish_seconds[before])
    assert outcome.finish_seconds.max() >= untouched.finish_seconds.max()


def test_a_fleet_that_is_gone_fails_its_requests():
    trace = conversations()
    outcome = replay(trace, lambda: create("warm"), settings(workers=1, kills=(Kill(0.7, 0),)))
    assert outcome.failed.any()
    assert outcome.done.any()
    assert (outcome.failed != outcome.done).all()


def test_a_prompt_that_no_worker_takes_fails_alone():
    trace = Trace.open_loop("long", np.arange(3.0), np.array([100, 5000, 100]), np.array([4, 4, 4]))
    outcome = replay(trace, lambda: create("warm"), settings())
    assert outcome.failed.tolist() == [False, True, False]


def test_late_events_cost_hits():
    trace = conversations(300)
    trace = trace.with_columns(arrival_seconds=trace.arrival_seconds * 100)  # predictions bridge a few seconds
    found = [
        replay(trace, lambda: create("linear"), settings(workers=6, event_lag_seconds=lag)).cached_token_ratio
        for lag in (0.0, 1e4)
    ]
    assert found[0] > found[1] + 0.05


def test_routers_that_share_nothing_see_less_load():
    burst = Trace.open_loop("burst", np.zeros(24), np.full(24, 100), np.full(24, 4))
    alone, many = (replay(burst, lambda: create("least-loaded"), settings(routers=k)) for k in (1, 24))
    assert np.bincount(alone.worker).tolist() == [8, 8, 8]
    assert np.bincount(many.worker, minlength=3).max() > 8


@pytest.mark.parametrize("policy", ["warm", "linear"])
def test_routers_that_share_do_not_herd_in_bursts(policy):
    draw = np.random.default_rng(2)
    bursts, size = 60, 12
    lengths = draw.lognormal(7, 1, bursts * size).astype(np.int64) + 1
    trace = Trace.open_loop("bursts", np.repeat(np.arange(bursts) * 0.5, size), lengths, np.full(len(lengths), 20))

    def ttft_seconds(**changes):
        engine = EngineConfig(capacity_tokens=1 << 20, page_size=16)
        outcome = replay(trace, lambda: create(policy), settings(workers=8, engine=engine, **changes))
        return (outcome.first_token_seconds - outcome.arrival_seconds).mean()

    one, apart = ttft_seconds(), ttft_seconds(routers=4)
    sharing = ttft_seconds(routers=4, booking_lag_seconds=0.003)
    assert one < sharing < 0.9 * apart


def test_the_same_decision_everywhere_leaves_nothing_to_regret():
    trace = conversations()
    outcome = replay(trace, lambda: create("round-robin"), settings(workers=1))
    assert (outcome.best_cached_tokens <= outcome.cached_tokens).mean() > 0.5


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"workers": 0}, "workers"),
        ({"prefill": 1}, "decode workers"),
        ({"event_loss": 1.0}, "event_loss"),
        ({"kills": (Kill(1.0, 3),)}, "no worker 3"),
        ({"kills": (Kill(1.0, 0, 0.5),)}, "restart"),
        ({"event_lag_seconds": -1}, "event_lag_seconds"),
    ],
)
def test_settings_say_what_is_wrong(fields, message):
    with pytest.raises(ValueError, match=message):
        settings(**fields)
