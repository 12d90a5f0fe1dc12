"""What surrounds every attempt, however its bytes are carried: a placement that is counted, and a failure that is blamed."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

from router.core import NoTarget, Pair, Target
from router.dispatch.errors import EngineError, EngineRefused, EngineUnreachable

if TYPE_CHECKING:
    from collections.abc import Callable

    from router.core import Paths, Placement, RoutingRequest
    from router.dispatch.errors import Blamed
    from router.dispatch.leg import Endpoints
    from router.metrics import Metrics

logger = logging.getLogger(__name__)


class Placements:
    """Places requests and judges failures.

    `on_failure(target, error)` is told of every failure that is a worker's fault, `on_apart(prefill, decode, error)` of every one
    that is a pair's.
    """

    def __init__(
        self,
        paths: Paths,
        endpoints: Endpoints,
        metrics: Metrics,
        policy: str,
        on_failure: Callable[[Target, EngineError], None],
        on_apart: Callable[[Target, Target, EngineError], None],
        clock: Callable[[], float],
    ) -> None:
        self._paths = paths
        self._endpoints = endpoints
        self._metrics = metrics
        self._decisions = metrics.decisions.labels(policy)
        self._on_failure = on_failure
        self._on_apart = on_apart
        self._clock = clock

    def place(self, request: RoutingRequest, last: EngineError | None, *, may_pair: bool = True) -> Placement | Pair:
        """Book a request, for the first time or again after its `last` failure; `may_pair` False: only as a whole.

        :raises NoTarget: nobody can take it, and nobody has tried.
        :raises EngineError: nobody is left; the last failure, as "all workers failed" says less than how.
        """
        started = time.perf_counter()
        try:
            placement = self._paths.place(request, self._clock(), may_pair=may_pair)
        except NoTarget as nobody:
            self._metrics.unplaced.labels(nobody.reason).inc()
            if last is None:
                raise
            raise last from nobody
        self._metrics.decision_seconds.observe(time.perf_counter() - started)
        self._decisions.inc()
        if last is not None:
            self._metrics.migrations.labels(last.kind).inc()
            logger.warning("%s goes on at %s after %s", request.request_id, _places(placement), last)
        return placement

    def failed(self, blamed: Blamed, error: EngineError) -> frozenset[Target]:
        """Note a failure of a target, or of a prefill and a decode target together; the targets to avoid after it: without a
        connection, all ranks behind it. Two that failed together may go on with others.

        :raises EngineRefused: the failure is the request's own fault.
        """
        self._metrics.engine_errors.labels(error.kind).inc()
        if isinstance(error, EngineRefused):
            raise error
        if len(blamed) == 2:
            self._on_apart(*blamed, error)
            return frozenset()
        (target,) = blamed
        self._on_failure(target, error)
        ranks = self._ranks(target) if isinstance(error, EngineUnreachable) else 0
        return frozenset({target, *(Target(target.worker_id, rank) for rank in range(ranks))})

    def _ranks(self, target: Target) -> int:
        try:
            return self._endpoints.ranks(target)
        except KeyError:  # it has left
            return 0


def _places(placement: Placement | Pair) -> str:
    """Where it is, for people."""
    if isinstance(placement, Pair):
        return f"{placement.prefill.target} and {placement.decode.target}"
    return str(placement.target)
