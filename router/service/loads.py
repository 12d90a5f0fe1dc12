"""Booked against reported: what this router believes runs on a target, beside what its engine says."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from router.core import Part
from router.core.decision_kernels import REPORT_LIFETIME_SECONDS

if TYPE_CHECKING:
    from router.core.states import TargetState


def compared(state: TargetState, now: float) -> dict[str, Any]:
    """Both sides of a target's load, for `GET /workers`. What an engine does not say is null, never 0.

    `difference` is booked less reported, of requests: above 0 for longer than a message takes, bookings have outlived their
    requests; below 0, others send requests there, too.
    """
    booked = len(state.requests) + state.requests_elsewhere
    shown: dict[str, Any] = {
        "booked": {
            "requests": booked,
            "prefill_tokens": state.prefill_tokens,
            "context_tokens": state.context_tokens,
        },
        "reported": None,
        "difference": None,
    }
    if state.reported is None:
        return shown
    load, age_seconds = state.reported.load, now - state.reported.received_at
    shown["reported"] = {
        "requests": load.running_requests + load.waiting_requests,
        "prefill_tokens": load.waiting_uncached_tokens,
        "context_tokens": load.used_tokens,
        "source": load.source,
        "age_seconds": round(age_seconds, 3),
        "expired": age_seconds > REPORT_LIFETIME_SECONDS,
    }
    shown["difference"] = booked - load.running_requests - load.waiting_requests
    return shown


def excess_requests(state: TargetState, now: float) -> int:
    """Requests booked beyond those that a fresh report tells of; 0 where there is none, or the engine has other queues as well."""
    reported = state.reported
    if reported is None or state.part is not Part.WHOLE or now - reported.received_at > REPORT_LIFETIME_SECONDS:
        return 0
    load = reported.load
    return max(0, len(state.requests) + state.requests_elsewhere - load.running_requests - load.waiting_requests)
