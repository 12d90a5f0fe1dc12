"""Where a decode costs its neighbours least: by the memory in use."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from router.core.policy import Policy

if TYPE_CHECKING:
    from random import Random

    from numpy.typing import NDArray

    from router.core.fleet import FleetView
    from router.core.request import RoutingRequest

REQUEST_TOKENS = 400.0
"""A request in the batch slows a decode step as much as that many tokens of KV: 13 µs against 30 ns a token on an 8B model and an
H200 (the defaults of `sim.engine.StepTiming`, fitted to a recorded SGLang)."""


class DecodeLoad(Policy):
    """The part of its KV memory that a target would have in use; it bounds both a decode step's length and how many can join it."""

    name = "decode-load"

    def score(self, fleet: FleetView, request: RoutingRequest, chance: Random) -> NDArray[np.float64]:
        """(context tokens + 400 · active requests + own tokens not held yet) / capacity."""
        own_tokens = request.prompt_tokens - fleet.overlap.cached_blocks() * fleet.block_size
        tokens = fleet.context_tokens + REQUEST_TOKENS * fleet.active_requests + own_tokens
        scores: NDArray[np.float64] = tokens / np.maximum(fleet.capacity_blocks * fleet.block_size, 1)
        return scores
