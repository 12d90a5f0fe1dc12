"""Where the least waits."""

from __future__ import annotations

from typing import TYPE_CHECKING

from router.core.policy import Policy

if TYPE_CHECKING:
    from random import Random

    import numpy as np
    from numpy.typing import NDArray

    from router.core.fleet import FleetView
    from router.core.request import RoutingRequest


class LeastLoaded(Policy):
    """The fewest prompt tokens booked and not yet prefilled; among equals, the fewest requests in flight."""

    name = "least-loaded"

    def score(self, fleet: FleetView, request: RoutingRequest, chance: Random) -> NDArray[np.float64]:
        """Whole tokens, and a fraction below 1 that grows with the requests: lexicographic order in one number."""
        fraction: NDArray[np.float64] = fleet.active_requests / (fleet.active_requests + 1.0)
        return fleet.prefill_tokens + fraction
