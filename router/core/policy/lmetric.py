"""Work times company: no unit, no knob."""

from __future__ import annotations

from typing import TYPE_CHECKING

from router.core.policy import Policy

if TYPE_CHECKING:
    from random import Random

    import numpy as np
    from numpy.typing import NDArray

    from router.core.fleet import FleetView
    from router.core.request import RoutingRequest


class LMetric(Policy):
    """Tokens to prefill before this request's first one, times the requests that would then be in flight."""

    name = "lmetric"

    def score(self, fleet: FleetView, request: RoutingRequest, chance: Random) -> NDArray[np.float64]:
        """(queued + own uncached tokens) · (active requests + 1)."""
        scores: NDArray[np.float64] = (fleet.queued_prefill_tokens() + fleet.uncached_tokens) * (
            fleet.active_requests + 1
        )
        return scores
