"""What became of every request, and of the fleet meanwhile."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

NOWHERE = -1


@dataclass(frozen=True, eq=False)
class Samples:
    """The fleet at regular times: arrays of shape (samples, workers), in requests and tokens."""

    sample_seconds: NDArray[np.float64]
    """Shape (samples,)."""
    running: NDArray[np.int64]
    waiting: NDArray[np.int64]
    used_tokens: NDArray[np.int64]
    """Of memory that requests hold."""
    cached_tokens: NDArray[np.int64]
    """In the prefix cache, in use or not."""


@dataclass(frozen=True, eq=False)
class Outcome:
    """One policy's replay of a trace: columns of shape (n,), by the trace's order. Times are absolute virtual seconds."""

    policy: str
    seed: int
    arrival_seconds: NDArray[np.float64]
    """When it was really sent; NaN: never, for what it waits for never ended."""
    worker: NDArray[np.int32]
    """Who answered it; `NOWHERE`: nobody."""
    prefill_worker: NDArray[np.int32]
    """Who prefilled it; `NOWHERE`: the same."""
    input_tokens: NDArray[np.int64]
    output_tokens: NDArray[np.int64]
    """That came out."""
    cached_tokens: NDArray[np.int64]
    """Of the prompt, found in the cache when it was first admitted."""
    expected_cached_tokens: NDArray[np.int64]
    """What the router expected of it when it chose the worker."""
    best_cached_tokens: NDArray[np.int64]
    """The most that any worker had in its cache at that moment: what the best choice in hindsight would have found there."""
    first_token_seconds: NDArray[np.float64]
    """NaN: never came; so the next."""
    finish_seconds: NDArray[np.float64]
    predicted_ttft_seconds: NDArray[np.float64]
    """By the router, at its choice. NaN: it had not learned enough."""
    queue_seconds: NDArray[np.float64]
    """From the engine's queue's end to the first prefill."""
    retractions: NDArray[np.int32]
    failed: NDArray[np.bool_]
    gap_edges_seconds: NDArray[np.float64]
    """Shape (bins + 1,): between which lengths token gaps are counted."""
    gap_counts: NDArray[np.int64]
    """Shape (bins,): every token gap of every request."""
    samples: Samples
    busy_prefill_seconds: NDArray[np.float64]
    """Per worker."""
    busy_decode_seconds: NDArray[np.float64]
    cpu_seconds: float
    """Of this process, for the replay alone."""
    settings: dict[str, Any]

    @property
    def done(self) -> NDArray[np.bool_]:
        """Which requests were answered in full."""
        answered: NDArray[np.bool_] = ~(self.failed | np.isnan(self.finish_seconds))
        return answered

    @property
    def ttft_seconds(self) -> NDArray[np.float64]:
        """From being sent to the first token, of the answered requests."""
        return (self.first_token_seconds - self.arrival_seconds)[self.done]

    @property
    def mean_gap_seconds(self) -> float:
        """The mean of all token gaps of the answered requests (inter-token latency)."""
        done = self.done & (self.output_tokens > 1)
        gaps = int((self.output_tokens[done] - 1).sum())
        return float((self.finish_seconds - self.first_token_seconds)[done].sum()) / gaps if gaps else float("nan")

    @property
    def cached_token_ratio(self) -> float:
        """Of the prompt tokens of the answered requests, those that came from a cache."""
        done = self.done
        return float(self.cached_tokens[done].sum() / max(1, self.input_tokens[done].sum()))

    def __repr__(self) -> str:
        return (
            f"<Outcome of {self.policy}: {self.done.sum()} of {len(self.worker)} requests, "
            f"mean TTFT {self.ttft_seconds.mean():.4f} s, {self.cached_token_ratio:.1%} cached>"
        )
