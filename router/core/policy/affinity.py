"""Only holders, while they are fast enough."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from router.core.policy import Policy

if TYPE_CHECKING:
    from random import Random

    from numpy.typing import NDArray

    from router.core.fleet import FleetView
    from router.core.request import RoutingRequest


class Affinity(Policy):
    """The shortest predicted time to first token among the targets that hold nearly all of the prompt, if there are any.

    :param threshold: part of the prompt that a holder has.
    :param exploration: part of the requests for which nobody is a holder.
    :param break_seconds: so much longer may the first token take at the best holder than at the best other target.
    :raises ValueError: an option is out of range.
    """

    name = "affinity"

    def __init__(self, *, threshold: float = 0.8, exploration: float = 0.01, break_seconds: float = 5.0) -> None:
        for name, value, most in (
            ("threshold", threshold, 1.0),
            ("exploration", exploration, 1.0),
            ("break_seconds", break_seconds, math.inf),
        ):
            if not (0 <= value <= most and math.isfinite(value)):
                raise ValueError(f"policy 'affinity': {name} must be finite and in [0, {most:g}], not {value}")
        self.threshold = threshold
        self.exploration = exploration
        self.break_seconds = break_seconds

    def score(self, fleet: FleetView, request: RoutingRequest, chance: Random) -> NDArray[np.float64]:
        """Predicted seconds to the first token; infinity for others than holders while holders are preferred."""
        seconds = fleet.ttft_seconds()
        matched = fleet.overlap.cached_blocks() * fleet.block_size / request.prompt_tokens
        holders = fleet.eligible & (matched >= self.threshold)
        others = fleet.eligible & ~holders
        if not holders.any() or not others.any() or chance.random() < self.exploration:
            return seconds
        if seconds[holders].min() > seconds[others].min() + self.break_seconds:
            return seconds
        return np.where(holders, seconds, np.inf)
