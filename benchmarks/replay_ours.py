"""One run of ours on the same ground, as a JSON object on standard output: see `benchmarks.replay`.

python -m benchmarks.replay_ours TRACE --policy linear
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import time
from pathlib import Path

import numpy as np

from router.core import warm_up
from router.core.policy import create
from sim.engine import EngineConfig
from sim.engine.timing import profile
from sim.replay import Settings, replay
from sim.traces import Trace, load

MILLION = 1_000_000


def same_ground(workers: int, blocks: int = 16384, block_size: int = 64) -> Settings:
    """The engine of Dynamo's mocker with its backend sglang: the polynomial timing, no overlap, and no more known of a request's
    length than its limit.
    """
    engine = EngineConfig(
        capacity_tokens=blocks * block_size,
        page_size=block_size,
        context_length=blocks * block_size,
        timing=profile.load("polynomial").timing,
        version="0.5.21",
    )
    return Settings(workers=workers, engine=engine, block_size=block_size)


def short_prompts(requests: int, workers: int) -> Trace:
    """Prompts of 1,050 to 1,536 tokens, of which 2,000 groups share the first 1,024 each; four a second and worker."""
    draw = np.random.default_rng(0)
    group = draw.zipf(1.3, requests) % 2000
    blocks = np.stack([2 * group, 2 * group + 1, 4000 + np.arange(requests)], axis=1).astype(np.uint64)
    return Trace.open_loop(
        f"{requests} short prompts",
        np.cumsum(draw.exponential(1 / (4.0 * workers), requests)),
        draw.integers(1050, 1536, requests),
        draw.integers(20, 120, requests),
        blocks=blocks.ravel(),
        first_block=np.arange(requests + 1) * 3,
    )


def main() -> None:
    """Run it once; CPU time includes reading the trace."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("trace", type=Path, nargs="?", help="without one: a million short prompts")
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument("--policy", default="round-robin")
    parser.add_argument("--requests", type=int, default=MILLION)
    options = parser.parse_args()
    warm_up()
    begin = time.process_time()
    if options.trace is None:
        trace, settings = short_prompts(options.requests, options.workers), Settings(workers=options.workers)
    else:
        trace, settings = load(options.trace), same_ground(options.workers)
    outcome = replay(trace, lambda: create(options.policy), settings)
    answer = {
        "requests": int(outcome.done.sum()),
        "hit": outcome.cached_token_ratio,
        "ttft_ms": float(outcome.ttft_seconds.mean() * 1e3),
        "itl_ms": outcome.mean_gap_seconds * 1e3,
        "cpu_seconds": time.process_time() - begin,
        "memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }
    json.dump(answer, sys.stdout)


if __name__ == "__main__":
    main()
