"""When an engine that ended by itself is started again."""

from __future__ import annotations

from dataclasses import dataclass

from events.command import USAGE_ERROR

POLICIES = ("never", "on-failure", "always")
FIRST_PAUSE_SECONDS = 1.0
LONGEST_PAUSE_SECONDS = 30.0
STEADY_SECONDS = 60.0
"""An engine that lived this long begins a new row."""


@dataclass
class Restarts:
    """The policy, and how far a row of failures has come."""

    policy: str = "never"
    most_in_a_row: int = 5
    in_a_row: int = 0

    def pause_after(self, status: int, lived_seconds: float) -> float | None:
        """Seconds until the next start; None: there is none.

        Status 2 is an engine's refusal of its options: they would be no better the next time.

        >>> restarts = Restarts("on-failure", most_in_a_row=3)
        >>> [restarts.pause_after(1, 0.5) for _ in range(4)]
        [1.0, 2.0, 4.0, None]
        """
        if lived_seconds >= STEADY_SECONDS:
            self.in_a_row = 0
        if self.policy == "never" or status == USAGE_ERROR or (status == 0 and self.policy == "on-failure"):
            return None
        if self.in_a_row >= self.most_in_a_row:
            return None
        self.in_a_row += 1
        return float(min(FIRST_PAUSE_SECONDS * 2 ** (self.in_a_row - 1), LONGEST_PAUSE_SECONDS))
