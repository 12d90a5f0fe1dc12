"""Counters, gauges and histograms that cost a tenth of a microsecond or two: what a router process counts, it counts on one thread.

They have the interface of prometheus_client's, whose locks, checks and linear search of buckets would be a tenth of a request's CPU
time, and show themselves to its registry.
"""

from __future__ import annotations

import contextlib
import math
from bisect import bisect_left
from typing import TYPE_CHECKING, ClassVar, Self

from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from prometheus_client import CollectorRegistry


class _Instrument(Collector):
    """One family: a value without labels, or one per combination of them."""

    kind: ClassVar[str]
    suffix: ClassVar[str] = ""
    """Of its samples' names; a family's own name is without it."""

    def __init__(
        self,
        name: str,
        documentation: str,
        labelnames: Sequence[str] = (),
        registry: CollectorRegistry | None = None,
    ) -> None:
        self._name = name.removesuffix(self.suffix)
        self._documentation = documentation
        self._labelnames = tuple(labelnames)
        self._children: dict[tuple[str, ...], Self] = {}
        if registry is not None:
            registry.register(self)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._name}{''.join(f', {name}' for name in self._labelnames)})"

    def labels(self, *values: object, **named: object) -> Self:
        """The one with these labels, by position or by name; made when it is first asked for.

        :raises ValueError: they are not the family's.
        """
        if named:
            values = tuple(named[name] for name in self._labelnames if name in named)
        key = tuple(map(str, values))
        child = self._children.get(key)
        if child is None:
            if len(key) != len(self._labelnames) or named.keys() - set(self._labelnames):
                raise ValueError(f"{self._name} has the labels {self._labelnames}")
            child = self._children[key] = self._child()
        return child

    def describe(self) -> list[Metric]:
        """The family's names, for the registry."""
        return [Metric(self._name, self._documentation, self.kind)]

    def collect(self) -> Iterator[Metric]:
        """The family's values now."""
        family = Metric(self._name, self._documentation, self.kind)
        for values, instrument in self._children.items() if self._labelnames else [((), self)]:
            instrument._show(family, dict(zip(self._labelnames, values, strict=True)))  # noqa: SLF001 - its own kind
        yield family

    def _child(self) -> Self:
        return type(self)(self._name, self._documentation)

    def _show(self, family: Metric, labels: dict[str, str]) -> None:
        raise NotImplementedError


class _Number(_Instrument):
    """One value."""

    value = 0.0

    def inc(self, amount: float = 1) -> None:
        """That many more."""
        self.value += amount

    def _show(self, family: Metric, labels: dict[str, str]) -> None:
        family.add_sample(f"{self._name}{self.suffix}", labels, self.value)


class Counter(_Number):
    """A number that grows.

    >>> Counter("replies", "Replies, by status.", ["status"]).labels(200).inc()
    """

    kind = "counter"
    suffix = "_total"


class Gauge(_Number):
    """A number that comes and goes."""

    kind = "gauge"

    def dec(self, amount: float = 1) -> None:
        """That many less."""
        self.value -= amount

    def set(self, value: float) -> None:
        """Now it is this."""
        self.value = value

    @contextlib.contextmanager
    def track_inprogress(self) -> Iterator[None]:
        """One more for as long as it lasts."""
        self.value += 1
        try:
            yield
        finally:
            self.value -= 1


class Histogram(_Instrument):
    """How often a number was how large.

    :param buckets: upper bounds, ascending; one without a bound is added.
    """

    kind = "histogram"

    def __init__(
        self,
        name: str,
        documentation: str,
        labelnames: Sequence[str] = (),
        registry: CollectorRegistry | None = None,
        buckets: Sequence[float] = (),
    ) -> None:
        self._bounds = tuple(float(bound) for bound in buckets)
        self._counts = [0] * (len(buckets) + 1)
        self._sum = 0.0
        super().__init__(name, documentation, labelnames, registry)

    def observe(self, amount: float) -> None:
        """One of this size. O(log buckets)."""
        self._counts[bisect_left(self._bounds, amount)] += 1
        self._sum += amount

    def _child(self) -> Self:
        return type(self)(self._name, self._documentation, buckets=self._bounds)

    def _show(self, family: Metric, labels: dict[str, str]) -> None:
        total = 0
        for bound, count in zip((*self._bounds, math.inf), self._counts, strict=True):
            total += count
            family.add_sample(f"{self._name}_bucket", {**labels, "le": _label(bound)}, total)
        family.add_sample(f"{self._name}_count", labels, total)
        if not self._bounds or self._bounds[0] >= 0:  # else it would not only grow
            family.add_sample(f"{self._name}_sum", labels, self._sum)


def _label(bound: float) -> str:
    label: str = floatToGoString(bound)  # type: ignore[no-untyped-call]
    return label
