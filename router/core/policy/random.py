"""Anyone."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from router.core.policy import Policy

if TYPE_CHECKING:
    import random

    from numpy.typing import NDArray

    from router.core.fleet import FleetView
    from router.core.request import RoutingRequest


class Random(Policy):
    """A target by chance, all alike. The measure for what a better policy is worth."""

    name = "random"

    def score(self, fleet: FleetView, request: RoutingRequest, chance: random.Random) -> NDArray[np.float64]:
        """A random number each."""
        return np.array([chance.random() for _ in fleet.eligible])
