"""From numbers to places on paper."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray


class Axis(NamedTuple):
    """A linear or logarithmic axis."""

    title: str
    low: float
    high: float
    form: Callable[[float], str]
    """How a number on it is written."""
    is_log: bool = False
    steps: Sequence[float] = ()
    """Distances of ticks to choose from; none: 1, 2, 2.5, 5 times a power of ten."""

    def place(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Where values lie: 0 at the low end, 1 at the high end; what lies outside is put on the end."""
        low, high = self._bent(np.array([self.low, self.high]))
        bent = self._bent(np.clip(values, self.low, self.high))
        return np.asarray((bent - low) / (high - low))

    def ticks(self) -> list[float]:
        """Round numbers between the ends, some four to seven of them."""
        return list(self._decades()) if self.is_log else list(self._steps())

    def _bent(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.log10(values) if self.is_log else values

    def _steps(self) -> Iterator[float]:
        rough = (self.high - self.low) / 9
        step = next((step for step in self.steps if step >= rough), None) or nice_step((self.high - self.low) / 5)
        for number in range(math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9) + 1):
            yield number * step

    def _decades(self) -> Iterator[float]:
        decades = math.log10(self.high / self.low)
        parts: Sequence[int] = (1,) if decades > 3 else (1, 3) if decades > 1.2 else (1, 2, 3, 5)
        for power in range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1):
            for part in parts:
                if self.low * 0.999 <= part * 10.0**power <= self.high * 1.001:
                    yield part * 10.0**power


def linear(title: str, high: float, form: Callable[[float], str], low: float = 0.0) -> Axis:
    """From `low` to a round number at or above `high`."""
    high = high if math.isfinite(high) and high > low else low + 1.0
    step = nice_step((high - low) / 5)
    return Axis(title, low, low + step * math.ceil((high - low) / step - 1e-9), form)


def logarithmic(title: str, values: NDArray[np.float64], form: Callable[[float], str]) -> Axis:
    """Around the positive ones of these values."""
    positive = values[np.isfinite(values) & (values > 0)]
    if not len(positive):
        return Axis(title, 1e-3, 1.0, form, is_log=True)
    low, high = float(positive.min()), float(positive.max())
    return Axis(title, low * 0.9, max(high * 1.1, low * 3), form, is_log=True)


def clock(title: str, end_seconds: float) -> Axis:
    """Time from the start to an end, with ticks at whole seconds, minutes or hours."""
    steps = (0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14_400, 28_800, 86_400)
    return Axis(title, 0.0, max(end_seconds, 1e-3), clock_text, steps=steps)


def nice_step(size: float) -> float:
    """The smallest of 1, 2, 2.5, 5 times a power of ten that is no less.

    >>> [nice_step(size) for size in (0.07, 1.0, 3.0, 21.0)]
    [0.1, 1.0, 5.0, 25.0]
    """
    power = 10.0 ** math.floor(math.log10(size))
    return next(part * power for part in (1.0, 2.0, 2.5, 5.0, 10.0) if part * power >= size * (1 - 1e-9))


def seconds_text(value: float) -> str:
    """A duration with its unit.

    >>> [seconds_text(value) for value in (0, 0.00025, 0.02, 1.5, 3600.0)]
    ['0', '250 µs', '20 ms', '1.5 s', '3600 s']
    """
    if not value:
        return "0"
    for factor, unit in ((1.0, "s"), (1e3, "ms"), (1e6, "µs")):
        if value * factor >= 1 or unit == "µs":
            number = value * factor
            return f"{number:.4g} {unit}" if number < 1000 else f"{number:.0f} {unit}"
    raise AssertionError


def percent_text(value: float) -> str:
    """A ratio in percent."""
    return f"{value * 100:.3g} %"


def number_text(value: float) -> str:
    """A number, short.

    >>> [number_text(value) for value in (0.25, 1234, 131_072, 2.5e6, 6.4e10)]
    ['0.25', '1,234', '131k', '2.5M', '64G']
    """
    if abs(value) < 10_000:
        return f"{value:,.4g}"
    factor, unit = next((size, unit) for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")) if abs(value) >= size)
    return f"{value / factor:.3g}{unit}" if abs(value) < 999.5 * factor else f"{value / factor:,.0f}{unit}"


def clock_text(value: float) -> str:
    """A moment of the replay, in minutes and seconds from its start.

    >>> [clock_text(value) for value in (5, 65, 3600)]
    ['0:05', '1:05', '60:00']
    """
    return f"{int(value) // 60}:{int(value) % 60:02}"
