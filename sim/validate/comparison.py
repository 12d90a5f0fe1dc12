"""What was recorded against what was played."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from events.command import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from sim.recordings.run import RecordedRequest
    from sim.validate.playback import Played


class Pair(NamedTuple):
    """A figure of the recording and of the model."""

    recorded: float
    played: float

    @property
    def error_percent(self) -> float:
        """Of the recorded one."""
        return (self.played / self.recorded - 1) * 100


class Goal(NamedTuple):
    """What an error may be at most, in percent."""

    figure: str
    most_percent: float


GOALS = (Goal("ttft_p50_seconds", 10.0), Goal("ttft_p99_seconds", 20.0), Goal("gap_mean_seconds", 5.0))
LEAST_EQUAL_SHARE = 0.97
"""Of the requests, those with exactly the recorded `cached_tokens`."""


class Comparison(NamedTuple):
    """One run, recorded and played."""

    name: str
    requests: int
    """With a recorded first token: those that are compared."""
    missing: int
    """Of those, without a first token in the model."""
    figures: dict[str, Pair]
    equal_cached_share: float
    """Of the finished requests."""
    median_ttft_error_percent: float
    """Absolute, request by request."""

    @property
    def misses(self) -> list[str]:
        """The goals that are not reached, in words."""
        found = [
            f"{goal.figure} {error:+.1f} % (at most {goal.most_percent:g} %)"
            for goal in GOALS
            if abs(error := self.figures[goal.figure].error_percent) > goal.most_percent
        ]
        if self.equal_cached_share < LEAST_EQUAL_SHARE:
            found.append(f"equal cached_tokens {self.equal_cached_share:.1%} (at least {LEAST_EQUAL_SHARE:.0%})")
        return found

    def as_json(self) -> dict[str, Any]:
        """For the report."""
        figures = {
            name: {"recorded": pair.recorded, "played": pair.played, "error_percent": round(pair.error_percent, 2)}
            for name, pair in self.figures.items()
        }
        return self._asdict() | {"figures": figures, "misses": self.misses}


def compare(name: str, recorded: Sequence[RecordedRequest], played: Sequence[Played | None]) -> Comparison:
    """Compare a run request by request.

    Times to first token are those of all requests with one in the recording and in the model, gaps between tokens those of the
    requests that finished in both, cached tokens those that the recording tells.

    :raises UsageError: there is nothing to compare.
    """
    both = [(r, p) for r, p in zip(recorded, played, strict=True) if r.ttft_ms is not None and p is not None]
    asked = sum(request.ttft_ms is not None for request in recorded)
    gaps = [(r.token_seconds(), p.token_seconds) for r, p in both if r.finished and p.finished and r.output_tokens > 1]
    cached = [(r.cached_tokens, p.cached_tokens) for r, p in both if r.cached_tokens is not None]
    if not gaps or not cached:
        raise UsageError(f"{name}: no request finished both in the recording and in the model")
    ttft = np.array([(r.ttft_ms, p.token_seconds[0] * 1e3) for r, p in both]).T / 1e3
    figures = _ttft_figures(*ttft) | _gap_figures(gaps)
    figures["cached_tokens"] = Pair(*(float(total) for total in np.array(cached).sum(axis=0)))
    equal = float(np.mean([one == other for one, other in cached]))
    errors = np.abs(ttft[1] / ttft[0] - 1)
    return Comparison(name, asked, asked - len(both), figures, equal, round(float(np.median(errors)) * 100, 2))


def _ttft_figures(recorded: NDArray[np.float64], played: NDArray[np.float64]) -> dict[str, Pair]:
    figures = {"ttft_mean_seconds": Pair(float(recorded.mean()), float(played.mean()))}
    for percent in (50, 90, 99):
        pair = Pair(*(float(np.percentile(values, percent)) for values in (recorded, played)))
        figures[f"ttft_p{percent}_seconds"] = pair
    return figures


def _gap_figures(times: Sequence[tuple[NDArray[np.float64], NDArray[np.float64]]]) -> dict[str, Pair]:
    """Of the gaps between the tokens of each request; tokens that came in one piece have gaps of 0."""
    recorded, played = (np.concatenate([np.diff(pair[side]) for pair in times]) for side in (0, 1))
    figures = {"gap_mean_seconds": Pair(float(recorded.mean()), float(played.mean()))}
    for percent in (50, 99):
        pair = Pair(*(float(np.percentile(gaps, percent)) for gaps in (recorded, played)))
        figures[f"gap_p{percent}_seconds"] = pair
    return figures
