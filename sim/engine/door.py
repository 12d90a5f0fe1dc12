"""What is in front of the scheduler: the process that takes HTTP requests and tokenizes."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sim.engine.timing import TimingModel


class FrontDoor:
    """Lets requests through one after another, in the order in which they came.

    One process serves a whole SGLang server, so a short prompt does not overtake a long one that was sent before it. In the
    recordings that `python -m sim validate` was built on, the order in which a burst reached the scheduler decided far more
    about the waiting times than the few milliseconds themselves.

    >>> from sim.engine import StepTiming
    >>> door = FrontDoor(StepTiming(request_base_seconds=0.5, request_token_seconds=0.25))
    >>> door.arrival(1.0, prompt_tokens=10), door.arrival(1.5, prompt_tokens=1), door.arrival(4.0, prompt_tokens=1)
    (4.0, 4.0, 4.75)
    """

    def __init__(self, timing: TimingModel) -> None:
        self._timing = timing
        self._last = 0.0

    def arrival(self, sent_at: float, prompt_tokens: int) -> float:
        """When a request that is sent now reaches the scheduler; to be asked in order of sending. O(1)."""
        self._last = max(self._last, sent_at + self._timing.request_seconds(prompt_tokens))
        return self._last

    def __repr__(self) -> str:
        return f"<FrontDoor: last let through at {self._last:.3f} s>"
