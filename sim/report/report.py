"""Several policies' outcomes on one trace."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sim.report.bounds import Bounds
from sim.report.figures import Figures

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sim.replay.outcome import Outcome
    from sim.report.slo import Slo
    from sim.traces.trace import Trace


@dataclass(frozen=True, eq=False)
class Report:
    """What all forms of the report are made from: the outcomes, and for each its bounds and its figures."""

    trace: Trace
    slo: Slo
    outcomes: Sequence[Outcome]
    bounds: Sequence[Bounds]
    figures: Sequence[Figures]

    @classmethod
    def of(cls, trace: Trace, outcomes: Sequence[Outcome], slo: Slo) -> Report:
        """Work out the bounds and figures. `settings` of an outcome tells `workers` and `capacity_tokens`. O(n log n + m)."""
        capacities = [capacity_tokens(outcome) for outcome in outcomes]
        known = {capacity: Bounds.of(trace, capacity) for capacity in set(capacities)}
        bounds = [known[capacity] for capacity in capacities]
        figures = [Figures.of(outcome, bound, slo) for outcome, bound in zip(outcomes, bounds, strict=True)]
        return cls(trace, slo, outcomes, bounds, figures)

    @property
    def labels(self) -> list[str]:
        """The policies' names; with the seed where one comes more than once."""
        names = [outcome.policy for outcome in self.outcomes]
        return [
            name if names.count(name) == 1 else f"{name} (seed {outcome.seed})"
            for name, outcome in zip(names, self.outcomes, strict=True)
        ]

    def __repr__(self) -> str:
        return f"<Report on {self.trace.name}: {', '.join(self.labels)}>"


def capacity_tokens(outcome: Outcome) -> int:
    """Of all workers' caches together."""
    return len(outcome.busy_prefill_seconds) * int(outcome.settings["capacity_tokens"])
