"""What all kinds of made-up workloads have in common."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from sim.traces.errors import TraceError
from sim.traces.synthesize.distribution import exponential

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from sim.traces.draws import Draws
    from sim.traces.trace import Trace


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A workload by its parameters. Fields are what a user may set; means are of what is drawn, before any limit."""

    name: ClassVar[str]
    summary: ClassVar[str]

    block_tokens: int = 512

    def __post_init__(self) -> None:
        """Check the parameters.

        :raises TraceError: one is not positive.
        """
        for item in fields(self):
            if not getattr(self, item.name) > 0:
                raise TraceError(f"must be positive, not {getattr(self, item.name)}", field=item.name)

    def generate(self, requests: int, per_second: float, seed: int) -> Trace:
        """A trace of so many requests that arrive at that rate. O(n + m)."""
        raise NotImplementedError


def poisson(requests: int, per_second: float, draws: Draws) -> NDArray[np.float64]:
    """Random arrivals, the first at 0, rounded to microseconds."""
    gaps = exponential(1e6 / per_second).draw(draws, requests)
    microseconds = np.cumsum(np.rint(gaps).astype(np.int64))
    arrivals: NDArray[np.float64] = (microseconds - microseconds[0]) / 1e6
    return arrivals
