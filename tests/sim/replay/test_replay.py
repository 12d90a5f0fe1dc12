"""The loop in virtual time: whatever is asked is answered, and the same again gives the same."""

import numpy as np
import pytest

from router.core.policy import create, names
from sim.engine import EngineConfig
from sim.replay import Kill, Settings, replay
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
