"""The longest match, unless the fleet is out of balance: the rule of SGLang's gateway."""

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

LEAST_EXCESS, MOST_EXCESS = 4.0, 64.0
"""Requests above the fleet's mean, or twice its deviation if that lies between them, at which a holder is passed over."""


class CacheAware(Policy):
    """A balanced fleet: the target with the longest match, or the emptiest cache if no match is long. Else the fewest requests.

    :param mean_spill: what out of balance means. 0: the busiest and the idlest target are far apart. 1: a target is far above the
        fleet's mean, and then it alone is passed over.
    :raises ValueError: an option is out of range.
    """

    name = "cache-aware"

    def __init__(
        self,
        *,
        cache_threshold: float = 0.3,
        balance_abs_threshold: float = 64.0,
        balance_rel_threshold: float = 1.5,
        mean_spill: float = 0,
    ) -> None:
        if not 0 <= cache_threshold <= 1:
            raise ValueError(f"policy 'cache-aware': cache_threshold must be in [0, 1], not {cache_threshold}")
        for name, value in (
            ("balance_abs_threshold", balance_abs_threshold),
            ("balance_rel_threshold", balance_rel_threshold),
        ):
            if not (value >= 0 and math.isfinite(value)):
                raise ValueError(f"policy 'cache-aware': {name} must be finite and at least 0, not {value}")
        if mean_spill not in (0, 1):
            raise ValueError(f"policy 'cache-aware': mean_spill must be 0 or 1, not {mean_spill}")
        self.cache_threshold = cache_threshold
        self.balance_abs_threshold = balance_abs_threshold
        self.balance_rel_threshold = balance_rel_threshold
        self.mean_spill = bool(mean_spill)

    def score(self, fleet: FleetView, request: RoutingRequest, chance: Random) -> NDArray[np.float64]:
        """Blocks missing where the match decides, requests or held blocks where they do; infinity for who is passed over."""
        requests = fleet.active_requests.astype(np.float64)
        if not self.mean_spill and self._out_of_balance(requests[fleet.eligible]):
            return requests
        matched = fleet.overlap.cached_blocks()
        blocks = max(1, len(request.hashes))
        if matched[fleet.eligible].max(initial=0) <= self.cache_threshold * blocks:
            return fleet.held_blocks().astype(np.float64)
        missing: NDArray[np.float64] = (
            blocks - matched + requests / (requests + 1)
        )  # equal matches: the fewest requests
        if self.mean_spill:
            missing[self._overloaded(requests, fleet.eligible)] = np.inf
        return missing

    def _out_of_balance(self, requests: NDArray[np.float64]) -> bool:
        most, least = requests.max(), requests.min()
        return bool(most - least > self.balance_abs_threshold and most > self.balance_rel_threshold * least)

    def _overloaded(self, requests: NDArray[np.float64], eligible: NDArray[np.bool_]) -> NDArray[np.bool_]:
        mean = requests[eligible].mean()
        excess = min(max(LEAST_EXCESS, 2 * requests[eligible].std()), MOST_EXCESS)
        overloaded: NDArray[np.bool_] = (requests > mean + excess) & (requests > self.balance_rel_threshold * mean)
        return overloaded
