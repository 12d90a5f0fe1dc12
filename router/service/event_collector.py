"""The state of every rank's events as metrics, read when they are scraped."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from collections.abc import Iterable

    from prometheus_client.metrics_core import Metric

    from router.service.feed import EventFeed


class EventCollector(Collector):
    """Which ranks are in step, which are not heard, and what their adapters say of themselves."""

    def __init__(self, feed: EventFeed) -> None:
        self._feed = feed

    def collect(self) -> Iterable[Metric]:
        """All families, as of now."""
        live = GaugeMetricFamily("warmpath_rank_live", "1: all its events known of are applied.", labels=("target",))
        silent = GaugeMetricFamily("warmpath_rank_silent", "1: its adapter is not heard any more.", labels=("target",))
        orphans = GaugeMetricFamily(
            "warmpath_orphans", "Pages an engine holds whose prefix its adapter does not know.", labels=("target",)
        )
        for target in self._feed.targets():
            state = self._feed.statistics(target)
            assert state is not None
            name = str(target)
            live.add_metric((name,), state.live)
            silent.add_metric((name,), state.silent)
            if state.mark is not None:
                orphans.add_metric((name,), state.mark.orphans)
        return live, silent, orphans
