"""Dynamo's cost: a weighted sum in blocks."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from router.core import decision_kernels as kernels
from router.core.policy import Policy, pick

if TYPE_CHECKING:
    from random import Random

    from numpy.typing import NDArray

    from router.core.fleet import FleetView
    from router.core.request import RoutingRequest


class Linear(Policy):
    """prefill_load_scale · (prefill blocks - overlap credit) + decode blocks, as in Dynamo 1.6; see linear.md for every term.

    :raises ValueError: an option is negative or not finite, or a tier's weight is above 1.
    """

    name = "linear"

    def __init__(
        self,
        *,
        overlap_score_credit: float = 1.0,
        overlap_score_credit_decay: float = 0.0,
        prefill_load_scale: float = 1.0,
        decode_active_request_weight: float = 0.0,
        host_cache_hit_weight: float = 0.75,
        disk_cache_hit_weight: float = 0.25,
        temperature: float = 0.0,
    ) -> None:
        self.overlap_score_credit = overlap_score_credit
        self.overlap_score_credit_decay = overlap_score_credit_decay
        self.prefill_load_scale = prefill_load_scale
        self.decode_active_request_weight = decode_active_request_weight
        self.host_cache_hit_weight = host_cache_hit_weight
        self.disk_cache_hit_weight = disk_cache_hit_weight
        self.temperature = temperature
        for option, value in vars(self).items():
            most = 1.0 if option.endswith("_cache_hit_weight") else math.inf
            if not (0 <= value <= most and math.isfinite(value)):
                raise ValueError(f"policy 'linear': {option} must be finite and in [0, {most:g}], not {value}")

    def score(self, fleet: FleetView, request: RoutingRequest, chance: Random) -> NDArray[np.float64]:
        """The cost in blocks."""
        scores = np.empty(len(fleet.eligible))
        kernels.linear(
            *fleet.overlap,
            fleet.active_blocks(),
            fleet.prefill_tokens,
            fleet.decode_blocks,
            fleet.active_requests,
            fleet.eligible,
            fleet.block_size,
            request.prompt_tokens,
            len(request.hashes),
            float(self.overlap_score_credit),
            float(self.overlap_score_credit_decay),
            float(self.prefill_load_scale),
            float(self.decode_active_request_weight),
            float(self.host_cache_hit_weight),
            float(self.disk_cache_hit_weight),
            scores,
        )
        return scores

    def pick(self, scores: NDArray[np.float64], eligible: NDArray[np.bool_], chance: Random) -> int:
        """By softmax over costs normalised by their range; at temperature 0 the lowest, exact ties by chance."""
        return pick.softmax(scores, eligible, chance, self.temperature)
