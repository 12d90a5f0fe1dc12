"""What the scheduler answers."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from router.core.request import Target


class Placement(NamedTuple):
    """Where a request goes; it is booked there."""

    target: Target
    overlap_blocks: int
    """Leading blocks of the prompt believed cached there, of every kind."""
    predicted_blocks: int
    """How many of them are only predicted."""
    cached_tokens: int
    """Prompt tokens that need no prefill; an engine always computes at least the last token."""
    uncached_tokens: int
    score: float
    """The policy's, lower is better; its unit is the policy's."""
    predicted_ttft_seconds: float | None
    """None until the fleet's prefill rate was observed at least once."""


class Pair(NamedTuple):
    """Where the two sides of one request go; it is booked at both."""

    prefill: Placement
    decode: Placement


class Candidate(NamedTuple):
    """One target's row in a `Decision`."""

    target: Target
    refusal: str | None
    """Why a filter took it out. None: it is eligible."""
    device_blocks: int
    host_blocks: int
    disk_blocks: int
    predicted_blocks: int
    uncached_tokens: int
    prefill_tokens: int
    """Booked there and still to be prefilled."""
    reported_prefill_tokens: float
    """Queued there by the engine's own account, less what it should have prefilled since it said so."""
    active_requests: int
    decode_blocks: int
    prefill_rate: float
    """Tokens per second."""
    score: float | None
    """None where a filter took the target out."""
    chosen: bool

    @property
    def eligible(self) -> bool:
        """Whether the target passed every filter."""
        return self.refusal is None


class Decision(NamedTuple):
    """How a request would be placed, and why: one row per target."""

    request_id: str
    policy: str
    candidates: list[Candidate]
    chosen: Target | None
    reason: str | None
    """Why no target was chosen."""


class NoTarget(Exception):
    """No target may take the request."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason
        """One of a few constant phrases (see `router.core.policy.filters`), fit for a metric's label."""
