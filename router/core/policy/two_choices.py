"""Two homes for every prefix, by its hash."""

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

_SEEDS = (0x9E37_79B9_7F4A_7C15, 0xC2B2_AE3D_27D4_EB4F)
_MIXER = np.uint64(0xBF58_476D_1CE4_E5B9)


class TwoChoices(Policy):
    """Of the two targets that a prompt's beginning hashes to, the one with the longer match, or the other if that one is too busy.

    :param prefix_blocks: leading blocks that are hashed; of a shorter prompt, all of it.
    :param slo_seconds: predicted time to first token beyond which the longer match loses to the shorter wait.
    :raises ValueError: an option is out of range.
    """

    name = "two-choices"

    def __init__(self, *, prefix_blocks: int = 16, slo_seconds: float = 5.0) -> None:
        if not (prefix_blocks >= 1 and prefix_blocks == int(prefix_blocks)):
            raise ValueError(
                f"policy 'two-choices': prefix_blocks must be a whole number from 1 on, not {prefix_blocks}"
            )
        if not (slo_seconds > 0 and math.isfinite(slo_seconds)):
            raise ValueError(f"policy 'two-choices': slo_seconds must be finite and positive, not {slo_seconds}")
        self.prefix_blocks = int(prefix_blocks)
        self.slo_seconds = slo_seconds

    def score(self, fleet: FleetView, request: RoutingRequest, chance: Random) -> NDArray[np.float64]:
        """Predicted seconds to the first token at the two candidates, less what a match in time deserves; infinity elsewhere."""
        homes = self._homes(fleet.eligible, self._key(request, chance))
        ttft_seconds = fleet.ttft_seconds()[homes]
        uncached_seconds = fleet.uncached_tokens[homes] / fleet.prefill_rate[homes]
        in_time = bool((ttft_seconds <= self.slo_seconds).all())
        scores = np.full(len(fleet.eligible), np.inf)
        scores[homes] = (
            uncached_seconds + ttft_seconds * 1e-6 if in_time else ttft_seconds
        )  # equal matches: the shorter wait
        return scores

    def _key(self, request: RoutingRequest, chance: Random) -> int:
        """What names a prompt's beginning; one without a full block has none, and goes by chance."""
        if not len(request.hashes):
            return chance.getrandbits(64)
        return int(request.hashes[min(self.prefix_blocks, len(request.hashes)) - 1])

    @staticmethod
    def _homes(eligible: NDArray[np.bool_], key: int) -> NDArray[np.intp]:
        """Two different slots by rendezvous hashing: few prefixes move when a target comes or goes. O(slots)."""
        slots = np.flatnonzero(eligible)
        homes: list[int] = []
        for seed in _SEEDS:
            weights = (slots.astype(np.uint64) + np.uint64(key ^ seed)) * _MIXER
            weights = (weights ^ (weights >> np.uint64(29))) * _MIXER
            if homes and len(slots) > 1:
                weights[slots == homes[0]] = 0
            homes.append(int(slots[weights.argmax()]))
        return np.unique(np.array(homes, np.intp))
