"""Which targets must not get a request, and why.

Filters run in order; the first that refuses a target is its reason, the first that leaves none is the request's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from events.entry import entry
from router.core import decision_kernels as kernels
from router.core.decision import NoTarget
from router.core.fleet import PARTS

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from router.core.fleet import Fleet
    from router.core.request import RoutingRequest

    Mask = NDArray[np.bool_]


_available = entry(kernels.available)
_PART_NUMBERS = {part: number for number, part in enumerate(PARTS)}


class Filter(NamedTuple):
    """One reason to refuse targets."""

    refusal: str
    """What is wrong with a target that does not pass."""
    emptied: str
    """What to say when nobody passed: the constant reason of `NoTarget`."""
    applies: Callable[[RoutingRequest], object]
    """Whether the request has anything for the filter to look at; otherwise all pass."""
    passes: Callable[[Fleet, RoutingRequest], Mask]
    """Who passes, bool (slots,)."""
    detail: Callable[[RoutingRequest], str]
    """What of the request was in the way."""


NO_PART = "no worker for this part"


def _serves_model(fleet: Fleet, request: RoutingRequest) -> Mask:
    mask: Mask = fleet.columns["model"] == fleet.model_number(request.model or "")
    return mask


def _does_part(fleet: Fleet, request: RoutingRequest) -> Mask:
    mask: Mask = fleet.columns["part"] == PARTS.index(request.part)
    return mask


def _is_pinned(fleet: Fleet, request: RoutingRequest) -> Mask:
    mask = np.zeros(fleet.slots, np.bool_)
    slot = None if request.pinned is None else fleet.slot(request.pinned)
    if slot is not None:
        mask[slot] = fleet.columns["available"][slot] and request.pinned not in request.excluded
    return mask


def _is_not_excluded(fleet: Fleet, request: RoutingRequest) -> Mask:
    mask = np.ones(fleet.slots, np.bool_)
    mask[[slot for target in request.excluded if (slot := fleet.slot(target)) is not None]] = False
    return mask


FILTERS = (
    Filter(
        "serves another model",
        "no worker serves the model",
        applies=lambda request: request.model is not None,
        passes=_serves_model,
        detail=lambda request: repr(request.model),
    ),
    Filter(
        "does another part",
        NO_PART,
        applies=lambda _: True,
        passes=_does_part,
        detail=lambda request: request.part,
    ),
    Filter(
        "the request is pinned",
        "pinned target unavailable",
        applies=lambda request: request.pinned,
        passes=_is_pinned,
        detail=lambda request: str(request.pinned),
    ),
    Filter(
        "unavailable",
        "all unavailable",
        applies=lambda _: True,
        passes=lambda fleet, _: fleet.columns["available"],
        detail=lambda _: "",
    ),
    Filter(
        "excluded",
        "all excluded",
        applies=lambda request: request.excluded,
        passes=_is_not_excluded,
        detail=lambda request: ", ".join(sorted(map(str, request.excluded))),
    ),
)


def eligible(fleet: Fleet, request: RoutingRequest, out: Mask | None = None) -> Mask:
    """The targets that pass all filters, bool (slots,), at least one; in `out`, if given. O(slots).

    :raises NoTarget: there is none; its reason is "no worker" or the `emptied` of the filter that took out the last.
    """
    # What every request asks for in one pass; the rules for the few that ask for more after that.
    left = np.empty(fleet.slots, np.bool_) if out is None else out
    model = kernels.ANY_MODEL if request.model is None else fleet.model_number(request.model)
    columns = fleet.columns
    part = _PART_NUMBERS[request.part]
    count = _available(columns["present"], columns["available"], columns["model"], model, columns["part"], part, left)
    if request.pinned or request.excluded:
        for rule in FILTERS:
            if rule.applies(request):
                left &= rule.passes(fleet, request)
        count = np.count_nonzero(left)
    if not count:
        raise _nobody(fleet, request)
    return left


def _nobody(fleet: Fleet, request: RoutingRequest) -> NoTarget:
    left: Mask = fleet.columns["present"].copy()
    for rule in FILTERS:
        if left.any() and rule.applies(request):
            left &= rule.passes(fleet, request)
            if not left.any():
                return NoTarget(rule.emptied, rule.detail(request))
    return NoTarget("no worker")


def refusals(fleet: Fleet, request: RoutingRequest) -> dict[int, str]:
    """Slot → why it is not eligible, for targets that are there. O(slots)."""
    reasons: dict[int, str] = {}
    for rule in FILTERS:
        if rule.applies(request):
            refused = fleet.columns["present"] & ~rule.passes(fleet, request)
            for slot in np.flatnonzero(refused).tolist():
                reasons.setdefault(slot, rule.refusal)
    return reasons
