"""The default: answer first, at the least cost to those already there."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from events.entry import entry
from router.core import decision_kernels as kernels
from router.core.policy import Policy
from router.core.request import Part

if TYPE_CHECKING:
    from random import Random

    from numpy.typing import NDArray

    from router.core.fleet import FleetView
    from router.core.request import RoutingRequest

_warm = entry(kernels.warm)
WORK_WEIGHT = 3.0
"""A token that is prefilled again counts for itself, for those that queue behind it, and for what it pushes out of the caches."""
STALL_WEIGHT = 1 / 50
"""… and that much more for every request there: a prefill stalls them all."""
CONTEXT_WEIGHT = 1 / 10
"""A token of KV in use slows down every decode step, and is one less to be had: that part of a token of prefill."""
HOST_COST = 1 / 8
"""Loading a block from host memory takes so much of its prefill. An 8B model's KV is 128 KiB a token: 2.4 µs over a link of
54.6 GB/s (PCIe 5 and pinned memory, by benchmarks/load_back.py on an H200), where computing it takes 22.7 µs (44,000 tokens/s)."""
DISK_COST = 3 / 4
"""The same from a disk of 8 GB/s; not measured."""


class Warm(Policy):
    """The wait at a target, and the work that a request makes there for all, in seconds of prefill."""

    name = "warm"

    def score(self, fleet: FleetView, request: RoutingRequest, chance: Random) -> NDArray[np.float64]:
        """(queued + own uncached tokens · (3 + active requests / 50) + context tokens / 10) / rate.

        Where only prefills run nobody decodes: what is there waits in line, and is counted as queued.
        """
        decodes = request.part is not Part.PREFILL
        scores = np.empty(len(fleet.eligible))
        _warm(
            fleet.uncached_tokens,
            fleet.overlap.host_blocks,
            fleet.overlap.disk_blocks,
            fleet.prefill_tokens,
            fleet.reported_prefill_tokens,
            fleet.active_requests,
            fleet.context_tokens,
            fleet.prefill_rate,
            HOST_COST * fleet.block_size,
            DISK_COST * fleet.block_size,
            WORK_WEIGHT,
            STALL_WEIGHT if decodes else 0.0,
            CONTEXT_WEIGHT if decodes else 0.0,
            scores,
        )
        return scores
