"""What a step's time is linear in: see `StepTiming`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from sim.engine.timing.kernels import padded_tokens

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

PREFILL = (
    "prefill_base_seconds",
    "prefill_token_seconds",
    "prefill_pair_seconds",
    "prefill_sequence_seconds",
    "prefill_context_seconds",
)
DECODE = ("decode_base_seconds", "decode_sequence_seconds", "decode_kv_token_seconds")
REQUEST = ("request_base_seconds", "request_token_seconds")
"""The coefficients' names in `StepTiming`, in the order of the features."""


def prefill_features(new_tokens: Sequence[int], prefix_tokens: Sequence[int], graph_tokens: int) -> NDArray[np.float64]:
    """Of one prefill step, shape (5,). O(sequences)."""
    new, prefix = np.array(new_tokens, np.float64), np.array(prefix_tokens, np.float64)
    pairs = float((new * (prefix + new / 2)).sum())
    computed = padded_tokens(int(new.sum()), graph_tokens)
    return np.array([1.0, computed, pairs, len(new), (new + prefix).sum()])


def prompt_features(new: int, prefix: int, chunk_tokens: int, graph_tokens: int) -> NDArray[np.float64]:
    """Of all the steps that a prompt alone takes: `new` tokens after `prefix` cached ones, in chunks; shape (5,)."""
    starts = range(prefix, prefix + new, chunk_tokens)
    steps = [prefill_features([min(chunk_tokens, prefix + new - start)], [start], graph_tokens) for start in starts]
    total: NDArray[np.float64] = np.sum(steps, axis=0)
    return total
