"""Lines in a frame, as SVG, with their numbers beside them for the page's script."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from sim.report.html.axis import Axis

WIDTH, HEIGHT = 600, 300
LEFT, RIGHT, TOP, BOTTOM = 54, 16, 12, 42
COLOURS = 8
"""Policies that have a colour of their own; after that they begin again."""


class Series(NamedTuple):
    """A line: x ascending; NaN is a gap."""

    label: str
    x: NDArray[np.float64]
    y: NDArray[np.float64]
    policy: int | None
    """Its number, which is its colour; None: something to compare with, in grey and dashed."""
    band: tuple[NDArray[np.float64], NDArray[np.float64]] | None = None
    """Around the line: from, to."""


class Mark(NamedTuple):
    """A vertical line."""

    x: float
    label: str


@dataclass(frozen=True, kw_only=True)
class Chart:
    """A plot. `about` says in a sentence what it shows."""

    name: str
    title: str
    about: str
    x: Axis
    y: Axis
    series: Sequence[Series]
    marks: Sequence[Mark] = ()
    diagonal: bool = False

    def svg(self) -> str:
        """The drawing; the colours are the page's."""
        parts = [
            f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(self.title)}" data-chart="{self.name}">'
        ]
        parts += self._grid()
        if self.diagonal:
            parts.append(self._line("reference", *np.array([[self.x.low, self.x.high], [self.x.low, self.x.high]])))
        for mark in self.marks:
            parts.append(self._mark(mark))
        for one in self.series:
            parts += self._one(one)
        parts.append('<line class="cross" y1="12" y2="258" x1="0" x2="0"/></svg>')
        return "".join(parts)

    def numbers(self) -> dict[str, Any]:
        """What the script needs to tell values under the pointer."""
        return {
            "x": {"low": self.x.low, "high": self.x.high, "log": self.x.is_log, "form": self.x.form.__name__},
            "y": {"form": self.y.form.__name__},
            "series": [
                {"label": one.label, "policy": one.policy, "x": _short(one.x), "y": _short(one.y)}
                for one in self.series
            ],
        }

    def _grid(self) -> Iterator[str]:
        right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM
        for tick in self.y.ticks():
            place = self._down(np.array([tick]))[0]
            yield f'<line class="grid" x1="{LEFT}" x2="{right}" y1="{place:.1f}" y2="{place:.1f}"/>'
            yield f'<text class="tick" x="{LEFT - 7}" y="{place + 3.5:.1f}" text-anchor="end">{escape(self.y.form(tick))}</text>'
        for tick in self.x.ticks():
            place = self._across(np.array([tick]))[0]
            yield f'<line class="grid faint" x1="{place:.1f}" x2="{place:.1f}" y1="{TOP}" y2="{bottom}"/>'
            yield f'<text class="tick" x="{place:.1f}" y="{bottom + 15}" text-anchor="middle">{escape(self.x.form(tick))}</text>'
        yield f'<line class="axis" x1="{LEFT}" x2="{right}" y1="{bottom}" y2="{bottom}"/>'
        middle = (LEFT + right) / 2
        yield f'<text class="name" x="{middle}" y="{HEIGHT - 6}" text-anchor="middle">{escape(self.x.title)}</text>'

    def _one(self, one: Series) -> Iterator[str]:
        style = "bound" if one.policy is None else f"line p{one.policy % COLOURS}"
        yield "<g>" if one.policy is None else f'<g data-of="{one.policy}">'
        if one.band is not None and one.policy is not None:
            yield self._band(f"band p{one.policy % COLOURS}", one.x, *one.band)
        yield f"{self._line(style, one.x, one.y)}</g>"

    def _line(self, style: str, x: NDArray[np.float64], y: NDArray[np.float64]) -> str:
        return f'<path class="{style}" d="{self._path(x, y)}"/>'

    def _band(self, style: str, x: NDArray[np.float64], low: NDArray[np.float64], high: NDArray[np.float64]) -> str:
        known = np.isfinite(low) & np.isfinite(high)
        there, back = self._path(x[known], high[known]), self._path(x[known][::-1], low[known][::-1])
        return f'<path class="{style}" d="{there}{back.replace("M", "L")}Z"/>' if known.any() else ""

    def _path(self, x: NDArray[np.float64], y: NDArray[np.float64]) -> str:
        """Straight lines between the points, a new stroke after each gap."""
        known = np.isfinite(x) & np.isfinite(y)
        strokes = np.where(known & ~np.concatenate([[False], known[:-1]]), "M", "L")
        points = zip(strokes[known], self._across(x[known]), self._down(y[known]), strict=True)
        return "".join(f"{stroke}{across:.1f},{down:.1f}" for stroke, across, down in points)

    def _mark(self, mark: Mark) -> str:
        if not self.x.low <= mark.x <= self.x.high:
            return ""
        place = self._across(np.array([mark.x]))[0]
        text = f'<text class="tick" x="{place + 5:.1f}" y="{HEIGHT - BOTTOM - 7}">{escape(mark.label)}</text>'
        return f'<line class="mark" x1="{place:.1f}" x2="{place:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>{text}'

    def _across(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.asarray(LEFT + self.x.place(values) * (WIDTH - LEFT - RIGHT))

    def _down(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.asarray(HEIGHT - BOTTOM - self.y.place(values) * (HEIGHT - TOP - BOTTOM))


def _short(values: NDArray[np.float64]) -> list[float | None]:
    """Four digits are enough to read."""
    return [float(f"{value:.4g}") if np.isfinite(value) else None for value in values.tolist()]
