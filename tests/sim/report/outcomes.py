"""An outcome made by hand, with round numbers."""

from __future__ import annotations

from typing import Any

import numpy as np

from sim.replay.outcome import Outcome, Samples
from sim.traces import Trace

NAN = float("nan")


def trace() -> Trace:
    """Four requests of two blocks of 100 tokens; the second and the fourth begin like the first and the third."""
    return Trace.open_loop(
        "by hand",
        np.array([0.0, 1.0, 2.0, 3.0]),
        np.array([200, 200, 200, 200]),
        np.array([11, 11, 11, 1]),
        block_tokens=100,
        blocks=np.array([1, 2, 1, 3, 4, 5, 4, 6], np.uint64),
        first_block=np.array([0, 2, 4, 6, 8]),
    )


def outcome(policy: str = "one", **columns: Any) -> Outcome:
    """Two workers of 150 tokens; the third request failed."""
    values: dict[str, Any] = {
        "policy": policy,
        "seed": 7,
        "arrival_seconds": np.array([0.0, 1.0, 2.0, 3.0]),
        "worker": np.array([0, 1, -1, 0], np.int32),
        "prefill_worker": np.full(4, -1, np.int32),
        "input_tokens": np.full(4, 200),
        "output_tokens": np.array([11, 11, 0, 1]),
        "cached_tokens": np.array([0, 0, 0, 90]),
        "expected_cached_tokens": np.array([0, 30, 0, 90]),
        "best_cached_tokens": np.array([0, 120, 0, 90]),
        "first_token_seconds": np.array([0.1, 1.3, NAN, 3.5]),
        "finish_seconds": np.array([0.2, 4.3, NAN, 3.5]),
        "predicted_ttft_seconds": np.array([NAN, 0.3, NAN, 0.1]),
        "queue_seconds": np.array([0.0, 0.1, 0.0, 0.2]),
        "retractions": np.array([0, 2, 0, 0], np.int32),
        "failed": np.array([False, False, True, False]),
        "gap_edges_seconds": np.array([0.0, 0.02, 0.04, 0.4]),
        "gap_counts": np.array([10, 0, 10]),
        "samples": Samples(
            sample_seconds=np.array([0.0, 2.0, 4.0]),
            running=np.array([[1, 0], [1, 1], [0, 0]]),
            waiting=np.array([[0, 0], [2, 1], [0, 0]]),
            used_tokens=np.array([[200, 0], [150, 120], [0, 0]]),
            cached_tokens=np.array([[0, 0], [100, 50], [150, 150]]),
        ),
        "busy_prefill_seconds": np.array([0.43, 0.43]),
        "busy_decode_seconds": np.array([2.15, 0.0]),
        "cpu_seconds": 0.25,
        "settings": {"workers": 2, "capacity_tokens": 150, "kv_events": True, "routers": 1},
    }
    return Outcome(**(values | columns))


def nothing_answered() -> Outcome:
    """Every request failed."""
    unknown = np.full(4, NAN)
    return outcome(
        "none",
        worker=np.full(4, -1, np.int32),
        failed=np.ones(4, bool),
        first_token_seconds=unknown,
        finish_seconds=unknown,
        predicted_ttft_seconds=unknown,
        gap_counts=np.zeros(3, np.int64),
    )
