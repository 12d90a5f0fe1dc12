"""What the scheduler tells of itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from router.core.index import IndexStatistics
    from router.core.load import Reported
    from router.core.predicted import PredictedStatistics
    from router.core.rate import RateStatistics
    from router.core.request import Part, Target


class TargetState(NamedTuple):
    """One target, as the scheduler sees it now."""

    target: Target
    model: str
    part: Part
    available: bool
    exact: bool
    capacity_blocks: int
    device_blocks: int
    """Held by what its events say; so the next two."""
    host_blocks: int
    disk_blocks: int
    predicted_blocks: int
    requests: list[str]
    """Ids of the requests that this router has booked there."""
    requests_elsewhere: int
    """Requests that other routers have booked there."""
    prefill_tokens: int
    """Uncached tokens booked there that still wait for their request's first token."""
    decode_blocks: int
    context_tokens: int
    prefill_rate: float
    """Tokens per second."""
    reported: Reported | None


class Progress(NamedTuple):
    """Of the requests in flight on a target."""

    progress: int
    """Grows whenever one of them shows a token."""
    prefill_seconds: float
    """What the prefills booked there should take."""
    waits_for_others: bool
    """A prefill side begins when its decode side has memory for it: there its silence may come from."""


class Elsewhere(NamedTuple):
    """A request that another router has in flight."""

    target: Target
    prompt_tokens: int
    uncached_tokens: int
    prefilling: bool
    """It waits for its first token."""


class SchedulerStatistics(NamedTuple):
    """Sizes now, and counts since the start."""

    targets: int
    requests: int
    """Booked now, by this router."""
    requests_elsewhere: int
    """Booked now, by others."""
    placements: int
    refusals: dict[str, int]
    """`NoTarget` by reason."""
    unknown_requests: int
    """Calls about requests that are not booked: freed before, or never placed; ignored."""
    unknown_targets: int
    """Calls about targets that are not there, such as late events; ignored."""
    repeated_first_tokens: int
    expected_cached_tokens: int
    """What placements promised, summed over first tokens for which the engine told what was true: `actual_cached_tokens`."""
    actual_cached_tokens: int
    stale_reports: int
    """Load reports of an epoch that is over; ignored."""
    unheard_bookings: float
    """Of other routers, that cross one of ours before word of them comes: a mean of the last ones."""
    exact: IndexStatistics
    predicted: PredictedStatistics
    rates: RateStatistics
