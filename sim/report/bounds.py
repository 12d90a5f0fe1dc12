"""What caches could have given at most."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from sim.traces.reuse import Reuse

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from sim.traces.trace import Trace


class Bounds(NamedTuple):
    """Leading prompt tokens of each request that a cache would have, shape (n,)."""

    pooled_tokens: NDArray[np.int64]
    """One least-recently-used cache as large as all workers' together, of all that ids name."""
    infinite_tokens: NDArray[np.int64]
    """A cache without limit."""

    @classmethod
    def of(cls, trace: Trace, capacity_tokens: int) -> Bounds:
        """For a fleet that holds `capacity_tokens` in all. O(m + n log n)."""
        reuse = Reuse.of(trace)
        return cls(reuse.hit_tokens(capacity_tokens), reuse.hit_tokens(np.inf))
