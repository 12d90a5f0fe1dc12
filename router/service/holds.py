"""Telling other routers that a worker is to get no requests: by the worker's own card, which its adapter is asked to change."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from events import messages, subjects
from events.bus import BusError
from events.messages import HoldOrder

if TYPE_CHECKING:
    from events.bus import Bus
    from events.membership import WorkerCard

logger = logging.getLogger(__name__)


class HoldOrders:
    """Orders to adapters."""

    def __init__(self, bus: Bus, namespace: str) -> None:
        self._bus = bus
        self._namespace = namespace

    def __repr__(self) -> str:
        return f"HoldOrders({self._namespace!r})"

    async def send(self, card: WorkerCard) -> None:
        """Have a worker's card say what this router knows. Where that fails, other routers do not hear of it: the log says so."""
        order = messages.encode(HoldOrder(card.worker_id, list(card.held)))
        try:
            answered = [part async for part in self._bus.request(subjects.hold(self._namespace, card.worker_id), order)]
        except BusError as error:
            logger.warning("worker %s: other routers do not hear of it: %s", card.worker_id, error)
        else:
            if not answered:
                logger.warning("worker %s: other routers do not hear of it: it is not registered", card.worker_id)
