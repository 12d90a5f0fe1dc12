"""A request's times, as its client sees them."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from router.metrics import Metrics


class RequestTimer:
    """Starts when it is made; observes time to first token, between tokens, and to the end."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._started = time.perf_counter()
        self._last: float | None = None

    def __repr__(self) -> str:
        return f"RequestTimer({time.perf_counter() - self._started:.3f} s)"

    def tokens(self, count: int) -> None:
        """So many tokens came, at once; their time is shared among them."""
        if not count:
            return
        now = time.perf_counter()
        if self._last is None:
            self._metrics.ttft_seconds.observe(now - self._started)
        else:
            self._metrics.itl_seconds.observe((now - self._last) / count)
        self._last = now

    def end(self) -> None:
        """The answer is complete."""
        self._metrics.e2e_seconds.observe(time.perf_counter() - self._started)
