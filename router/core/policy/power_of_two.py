"""The better of two."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from router.core.policy import Policy

if TYPE_CHECKING:
    from random import Random

    from numpy.typing import NDArray

    from router.core.fleet import FleetView
    from router.core.request import RoutingRequest


class PowerOfTwo(Policy):
    """Of two different targets drawn by chance, the one with fewer requests in flight."""

    name = "power-of-two"

    def score(self, fleet: FleetView, request: RoutingRequest, chance: Random) -> NDArray[np.float64]:
        """Requests in flight for the two that were drawn, infinity for the others."""
        slots = np.flatnonzero(fleet.eligible).tolist()
        drawn = chance.sample(slots, min(2, len(slots)))
        scores = np.full(len(fleet.eligible), np.inf)
        scores[drawn] = fleet.active_requests[drawn]
        return scores
