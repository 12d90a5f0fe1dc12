"""A part of a trace."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from sim.traces.draws import Draws
from sim.traces.errors import TraceError
from sim.traces.session_kernels import session_roots

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from sim.traces.trace import Trace


def by_time(trace: Trace, start_seconds: float = 0.0, end_seconds: float = math.inf) -> Trace:
    """The requests that arrive at or after the start and before the end; the first then arrives at 0. O(n + m).

    :raises TraceError: none does.
    """
    first, end = np.searchsorted(trace.arrival_seconds, [start_seconds, end_seconds])
    return _from_zero(trace, np.arange(first, end), f"arrives from {start_seconds:g} s to {end_seconds:g} s")


def by_requests(trace: Trace, count: int, skip: int = 0) -> Trace:
    """`count` requests after the first `skip`; the first then arrives at 0. O(n + m).

    :raises TraceError: there are none.
    """
    return _from_zero(trace, np.arange(skip, min(skip + count, len(trace))), f"is left after {skip}")


def by_sessions(trace: Trace, count: int, seed: int | None = None) -> Trace:
    """Whole sessions: the first ones that begin, or with a seed any. A request that follows no other is a session too. O(n + m).

    :raises TraceError: there are none.
    """
    roots = session_roots(trace.previous)
    sessions = np.unique(roots)
    chosen = sessions[:count] if seed is None else _any_of(sessions, count, seed)
    return _from_zero(trace, np.flatnonzero(np.isin(roots, chosen)), "is in the sessions")


def _any_of(sessions: NDArray[np.int64], count: int, seed: int) -> NDArray[np.int64]:
    return sessions[np.argsort(Draws(seed).uniform(len(sessions)), kind="stable")[:count]]


def _from_zero(trace: Trace, rows: NDArray[np.int64], what: str) -> Trace:
    if not len(rows):
        raise TraceError(f"no request {what}", path=trace.name)
    part = trace.take(rows)
    from_zero = part.arrival_seconds - part.arrival_seconds[0]
    return part.with_columns(arrival_seconds=np.round(from_zero, 9))
