"""Our instruments show what prometheus_client's own would."""

from __future__ import annotations

from typing import Any

import prometheus_client
import pytest
from hypothesis import given
from hypothesis import strategies as st

from router import instruments

BUCKETS = (-4, 0, 0.5, 2)
NUMBERS = st.lists(st.one_of(st.sampled_from(BUCKETS), st.floats(-10, 10)), max_size=20)


@pytest.fixture(autouse=True, scope="module")
def _without_times_of_birth() -> None:
    prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]


def shown(kinds: Any, numbers: list[float]) -> str:
    """All kinds, with labels and without, after the same events."""
    registry = prometheus_client.CollectorRegistry()
    counter = kinds.Counter("a", "Of a.", registry=registry)
    labelled = kinds.Counter("b", "Of b.", ("x", "y"), registry=registry)
    gauge = kinds.Gauge("c", "Of c.", registry=registry)
    histogram = kinds.Histogram("d", "Of d.", registry=registry, buckets=BUCKETS)
    parts = kinds.Histogram("e", "Of e.", ("x",), registry=registry, buckets=BUCKETS)
    for number in numbers:
        counter.inc(abs(number))
        labelled.labels(int(number) % 3, "z\n").inc()
        labelled.labels(y="named", x=1).inc(2)
        with gauge.track_inprogress():
            gauge.inc(number)
        gauge.dec()
        histogram.observe(number)
        parts.labels(int(number) % 2).observe(number)
    return prometheus_client.generate_latest(registry).decode()


@given(NUMBERS)
def test_they_agree(numbers: list[float]) -> None:
    assert shown(instruments, numbers) == shown(prometheus_client, numbers)


@pytest.mark.parametrize(("values", "named"), [(("1",), {}), ((), {"x": 1}), ((), {"x": 1, "y": 2, "z": 3})])
def test_wrong_labels(values: Any, named: Any) -> None:
    with pytest.raises(ValueError, match="labels"):
        instruments.Counter("b", "Of b.", ("x", "y")).labels(*values, **named)
