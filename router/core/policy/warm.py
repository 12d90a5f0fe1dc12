"""The default: answer first, at the least cost to those already there."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from router.core import decision_kernels as kernels
from router.core.policy import Policy
from router.core.request import Part

if TYPE_CHECKING:
    from random import Random

    from numpy.typing import NDArray

    from router.core.fleet import FleetView
    from router.core.request import RoutingRequest

STALL_WEIGHT = 0.1
"""How much a second by which a running request is held up counts, against a second of this request's own wait."""
HOST_CREDIT = 0.75
DISK_CREDIT = 0.25
"""Part of a block's prefill that is saved by loading it from there: Dynamo's values, for want of a measurement."""


class Warm(Policy):
    """Predicted time to first token, plus a part of the time for which this prefill holds up each request there; in seconds."""

    name = "warm"

    def score(self, fleet: FleetView, request: RoutingRequest, chance: Random) -> NDArray[np.float64]:
        """(queued + own uncached tokens) / rate + 0.1 · own uncached tokens / rate · active requests.

        Where only prefills run nobody is held up: what is there waits in line, and is counted as queued.
        """
        scores = np.empty(len(fleet.eligible))
        kernels.warm(
            fleet.uncached_tokens,
            fleet.overlap.host_blocks,
            fleet.overlap.disk_blocks,
            fleet.prefill_tokens,
            fleet.reported_prefill_tokens,
            fleet.active_requests,
            fleet.prefill_rate,
            (1 - HOST_CREDIT) * fleet.block_size,
            (1 - DISK_CREDIT) * fleet.block_size,
            0.0 if request.part is Part.PREFILL else STALL_WEIGHT,
            scores,
        )
        return scores
