"""Faults on demand, for tests of what is in front of a worker: `POST /_fault`.

==============  ======================================================================================
`error`         answers with `status` (500); after tokens of a stream: an error event, then its end
`hang`          sends nothing more, and keeps the connection
`cut`           closes the connection without an ending
`die`           ends the worker at once: the process, or all its sockets where it runs inside a test
`*_events`      disturbs the next `count` KV-event batches of each rank, see `sim.worker.publisher.Disturbance`
==============  ======================================================================================

The first four hit the next `count` generation requests, each after `after_tokens` tokens.
"""

from __future__ import annotations

import logging
from collections import deque
from dataclasses import dataclass
from typing import Any, Literal, get_args

import msgspec

logger = logging.getLogger(__name__)

Kind = Literal[
    "error", "hang", "cut", "die", "drop_events", "lose_events", "duplicate_events", "reorder_events", "delay_events"
]


class FaultOrder(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of `POST /_fault`."""

    kind: Kind
    after_tokens: int = 0
    count: int = 1
    status: int = 500
    message: str = "injected fault"

    @property
    def disturbance(self) -> str | None:
        """What it does to events; None: nothing."""
        kind, _, subject = self.kind.partition("_")
        return kind if subject == "events" else None


class Triggered(Exception):
    """A fault hits the request at hand."""

    def __init__(self, order: FaultOrder) -> None:
        super().__init__(order.message)
        self.order = order


@dataclass(eq=False)
class Fuse:
    """The fault that one request carries, if any."""

    order: FaultOrder | None

    def check(self, tokens: int) -> None:
        """Go off once so many tokens were sent.

        :raises Triggered: it does.
        """
        if self.order is not None and tokens >= self.order.after_tokens:
            raise Triggered(self.order)


class Faults:
    """Orders not used up yet, first come first served."""

    def __init__(self) -> None:
        self._orders: deque[tuple[FaultOrder, int]] = deque()
        self.triggered: dict[str, int] = dict.fromkeys(get_args(Kind), 0)

    def order(self, order: FaultOrder) -> None:
        """Arm the next `order.count` requests."""
        logger.info("fault ordered: %s", order)
        if order.count > 0:
            self._orders.append((order, order.count))

    def clear(self) -> None:
        """Forget all orders."""
        self._orders.clear()

    def next(self) -> Fuse:
        """The fuse of the next request. O(1)."""
        if not self._orders:
            return Fuse(None)
        order, left = self._orders.popleft()
        if left > 1:
            self._orders.appendleft((order, left - 1))
        self.triggered[order.kind] += 1
        return Fuse(order)

    def describe(self) -> dict[str, Any]:
        """What is armed, and what was."""
        return {
            "armed": [msgspec.to_builtins(order) | {"count": left} for order, left in self._orders],
            "used": self.triggered,
        }
