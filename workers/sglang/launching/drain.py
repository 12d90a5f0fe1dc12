"""Waiting for an engine's requests to end, within bounds."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any, NamedTuple

from workers.sglang.engine import EngineUnreachable

if TYPE_CHECKING:
    from workers.sglang.engine import Engine

logger = logging.getLogger(__name__)

LOOK_SECONDS = 0.5
IDLE_LOOKS = 2
"""So many in a row, and it is idle."""


class Patience(NamedTuple):
    """How long an end may take, step by step."""

    grace_seconds: float = 2.0
    """For routers to see that the worker has left."""
    drain_seconds: float = 30.0
    """For its requests to end."""
    stop_seconds: float = 15.0
    """For the engine to stop. SGLang looks every five seconds whether it was asked to."""


def in_flight(reply: dict[str, Any]) -> int:
    """Requests in a reply of `/v1/loads`: running, waiting, and those whose KV is under way to or from another worker. O(ranks).

    A rank whose counts are all 0 while it holds tokens of requests has at least one: SGLang counts right after a prefill, when the
    request has left one queue and is not yet in the next, and stays with that for some decode steps.

    >>> in_flight({"loads": [{"num_running_reqs": 2, "num_waiting_reqs": 1, "disaggregation": {"prefill_inflight_queue_reqs": 1}}]})
    4
    >>> in_flight({"loads": [{"num_running_reqs": 0, "num_waiting_reqs": 0, "num_used_tokens": 48}]})
    1
    """
    loads = [load for load in reply.get("loads") or () if isinstance(load, dict)]
    return sum(_of_rank(load) for load in loads)


def _of_rank(load: dict[str, Any]) -> int:
    moved = load.get("disaggregation")
    queues = [value for name, value in moved.items() if name.endswith("_queue_reqs")] if isinstance(moved, dict) else []
    counts = [load.get("num_running_reqs"), load.get("num_waiting_reqs"), *queues]
    return sum(count for count in counts if isinstance(count, int)) or bool(load.get("num_used_tokens"))


async def drain(engine: Engine, within_seconds: float) -> bool:
    """Wait until the engine has nothing left to do; False: it still had when the time was over.

    An engine that does not say (it has no `/v1/loads`, or does not answer) is given the whole time.
    """
    left: int | None = None
    idle_looks = 0
    try:
        async with asyncio.timeout(within_seconds):
            while idle_looks < IDLE_LOOKS:
                left = await _left(engine)
                idle_looks = idle_looks + 1 if left == 0 else 0
                await asyncio.sleep(LOOK_SECONDS)
    except TimeoutError:
        logger.warning(
            "%s requests were still in flight after %g s: routers continue them elsewhere",
            "an unknown number of" if left is None else left,
            within_seconds,
        )
        return False
    return True


async def _left(engine: Engine) -> int | None:
    try:
        return in_flight(await engine.loads(everything=True))
    except EngineUnreachable as error:
        logger.debug("requests in flight are not known: %s", error)
        return None
