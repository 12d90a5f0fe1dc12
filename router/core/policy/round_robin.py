"""One after another."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from router.core.policy import Policy

if TYPE_CHECKING:
    from random import Random

    from numpy.typing import NDArray

    from router.core.fleet import FleetView
    from router.core.request import RoutingRequest


class RoundRobin(Policy):
    """The target whose last turn is longest ago: fair also when requests differ in which targets may take them."""

    name = "round-robin"

    def score(self, fleet: FleetView, request: RoutingRequest, chance: Random) -> NDArray[np.float64]:
        """The number of the last decision in favour of the target; those that had none yet go in the order of slots."""
        slots = len(fleet.eligible)
        scores: NDArray[np.float64] = fleet.last_placed + np.arange(slots) / max(slots, 1)
        return scores
