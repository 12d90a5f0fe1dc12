"""Everything compiled, loaded and run once, before the first request comes."""

from __future__ import annotations

import numpy as np

from events.messages import BlocksRemoved, BlocksStored, Tier, pack_hashes
from router.core.policy import create
from router.core.request import RoutingRequest, Target
from router.core.scheduler import Scheduler

_POLICIES = ("warm", "linear")
"""Those with kernels on their way."""


def warm_up() -> None:
    """Have all kernels of the core compiled, or loaded from numba's cache, and run each way of a request once.

    Importing the core compiles most of them already: seconds without a cache (see `NUMBA_CACHE_DIR`), a fraction of one with it.
    """
    for policy in _POLICIES:
        _rehearse(Scheduler(create(policy), 16))


def _rehearse(scheduler: Scheduler) -> None:
    hashes = np.arange(1, 65, dtype=np.uint64)
    for number in range(2):
        target = Target("w", number)
        scheduler.add_target(target, capacity_tokens=512, model="m", exact=number == 0)
        for tier in Tier:
            scheduler.apply(target, BlocksStored(pack_hashes(hashes[:8]), tier))
        scheduler.apply(target, BlocksRemoved(pack_hashes(hashes[6:8])))
    for number in range(4):
        scheduler.place(RoutingRequest(f"r{number}", hashes[: 16 * number], 256 * number + 1, model="m"), number)
        scheduler.first_token(f"r{number}", 0, number + 0.5)
        scheduler.free(f"r{number}", number + 1, failed=number == 1, generated=hashes)
    scheduler.explain(RoutingRequest("later", hashes, 1024), 1000.0)
    for number in range(2):
        scheduler.remove_target(Target("w", number))
