"""The router's state as metrics, read when they are scraped: nothing is kept up to date in between."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from router.core import Path

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from prometheus_client.metrics_core import Metric

    from events.bus import Bus
    from router.core import Paths, Scheduler, SchedulerStatistics, TargetState
    from router.dispatch.engine import EngineClient
    from router.dispatch.http.client import ClientStatistics
    from router.frontend.encoder import EncoderStatistics
    from router.frontend.tokenizer import ModelTokenizer
    from router.service.replicas import Replicas, ReplicaStatistics
    from router.service.roster import Roster


class StateCollector(Collector):
    """Sizes and counts of the scheduler, its targets and the bus."""

    def __init__(
        self,
        scheduler: Scheduler,
        paths: Paths,
        roster: Roster,
        bus: Bus | None,
        replicas: Replicas | None,
        engine: EngineClient,
        tokenizer: ModelTokenizer | None,
    ) -> None:
        self._scheduler = scheduler
        self._paths = paths
        self._roster = roster
        self._bus = bus
        self._replicas = replicas
        self._engine = engine
        self._tokenizer = tokenizer

    def collect(self) -> Iterator[Metric]:
        """All families, as of now."""
        statistics = self._scheduler.statistics()
        yield from _sizes(statistics)
        yield from _counts(statistics)
        yield from _targets(self._scheduler.targets())
        yield _gauge("warmpath_workers", "Workers that may get requests.", self._roster.ready_workers())
        yield _gauge(
            "warmpath_workers_refused", "Workers refused; GET /workers says why.", self._roster.refused_workers()
        )
        yield _gauge(
            "warmpath_unread_registries",
            "Registries that have never said who is there.",
            self._roster.unread_registries(),
        )
        yield from _path_families(self._paths, self._roster)
        if self._bus is not None:
            yield from _bus(self._bus)
        if self._replicas is not None:
            yield from _others(self._replicas.statistics())
        yield from _connections(self._engine.statistics())
        if self._tokenizer is not None:
            yield from _tokens(self._tokenizer.statistics())


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(name, text, value)


def _counter(name: str, text: str, value: float) -> Metric:
    return CounterMetricFamily(name, text, value)


def _sizes(statistics: SchedulerStatistics) -> Iterable[Metric]:
    yield _gauge("warmpath_targets", "Targets (worker, rank).", statistics.targets)
    yield _gauge("warmpath_booked_requests", "Requests booked on some target.", statistics.requests)
    yield _gauge(
        "warmpath_index_prefixes", "Distinct prefixes in the index, by events.", sum(statistics.exact.prefixes)
    )
    yield _gauge("warmpath_index_bytes", "Memory of the index.", statistics.exact.bytes)
    yield _counter("warmpath_index_evicted", "Prefixes evicted at --max-index-blocks.", statistics.exact.evicted)
    yield _gauge("warmpath_predicted_blocks", "Blocks predicted to be held.", statistics.predicted.blocks)


def _counts(statistics: SchedulerStatistics) -> Iterable[Metric]:
    yield _counter(
        "warmpath_unknown_requests",
        "Calls about requests that are not booked (freed before).",
        statistics.unknown_requests,
    )
    yield _counter("warmpath_unknown_targets", "Calls about targets that are not there.", statistics.unknown_targets)
    yield _counter(
        "warmpath_expected_cached_tokens", "Cached tokens that decisions counted on.", statistics.expected_cached_tokens
    )
    yield _counter(
        "warmpath_actual_cached_tokens",
        "Cached tokens that engines reported for them.",
        statistics.actual_cached_tokens,
    )


def _targets(states: list[TargetState]) -> Iterable[Metric]:
    families = {
        "held_blocks": GaugeMetricFamily("warmpath_held_blocks", "Blocks held, by events.", labels=("target", "tier")),
        "requests": GaugeMetricFamily("warmpath_target_requests", "Requests booked.", labels=("target",)),
        "prefill": GaugeMetricFamily(
            "warmpath_target_prefill_tokens", "Uncached tokens booked and not yet prefilled.", labels=("target",)
        ),
        "rate": GaugeMetricFamily(
            "warmpath_target_prefill_rate", "Learned prefill rate, tokens/s.", labels=("target",)
        ),
        "available": GaugeMetricFamily("warmpath_target_available", "1: may get requests.", labels=("target",)),
        "exact": GaugeMetricFamily("warmpath_target_exact", "1: its events are in step.", labels=("target",)),
    }
    for state in states:
        name = str(state.target)
        for tier, blocks in (("device", state.device_blocks), ("host", state.host_blocks), ("disk", state.disk_blocks)):
            families["held_blocks"].add_metric((name, tier), blocks)
        families["requests"].add_metric((name,), len(state.requests))
        families["prefill"].add_metric((name,), state.prefill_tokens)
        families["rate"].add_metric((name,), state.prefill_rate)
        families["available"].add_metric((name,), state.available)
        families["exact"].add_metric((name,), state.exact)
    return families.values()


def _path_families(paths: Paths, roster: Roster) -> Iterable[Metric]:
    statistics = paths.statistics(time.monotonic())
    taken = CounterMetricFamily("warmpath_paths", "Placements, by the path taken.", labels=("path",))
    overhead = GaugeMetricFamily(
        "warmpath_path_overhead_seconds",
        "Learned: what the time to first token is above the prediction.",
        labels=("path",),
    )
    for path, count, seconds in (
        (Path.WHOLE, statistics.whole, statistics.whole_overhead_seconds),
        (Path.PAIR, statistics.pair, statistics.pair_overhead_seconds),
    ):
        taken.add_metric((path,), count)
        overhead.add_metric((path,), seconds)
    apart, quarantines = roster.pairs_apart()
    yield taken
    yield overhead
    yield _gauge("warmpath_pairs_apart", "Pairs of prefill and decode targets kept apart now.", apart)
    yield _counter(
        "warmpath_pair_quarantines", "Times that a pair was kept apart after it failed to meet.", quarantines
    )


def _bus(bus: Bus) -> Iterable[Metric]:
    statistics = bus.statistics()
    yield _gauge("warmpath_bus_connected", "1: the broker is there.", statistics.connected)
    yield _counter("warmpath_bus_received", "Messages received.", statistics.received)
    yield _counter("warmpath_bus_dropped", "Messages this client lost.", statistics.dropped)
    yield _counter("warmpath_bus_reconnects", "Reconnects.", statistics.reconnects)


def _others(statistics: ReplicaStatistics) -> Iterable[Metric]:
    yield _gauge("warmpath_other_routers", "Routers over the same workers, but for this one.", statistics.others)
    yield _gauge("warmpath_other_routers_requests", "Requests that they have in flight.", statistics.bookings)
    yield _gauge(
        "warmpath_other_routers_unheard_bookings", "Bookings of theirs that cross one of ours.", statistics.unheard
    )
    yield _counter("warmpath_other_routers_sent", "Messages to them.", statistics.sent)
    yield _counter("warmpath_other_routers_received", "Messages of theirs.", statistics.received)
    yield _counter("warmpath_other_routers_misfits", "Messages of theirs that could not be used.", statistics.misfits)
    yield _counter("warmpath_other_routers_healed", "Bookings that a statement had to correct.", statistics.healed)
    yield _counter("warmpath_other_routers_expired", "Routers that fell silent.", statistics.expired)


def _connections(statistics: ClientStatistics) -> Iterable[Metric]:
    yield _gauge("warmpath_engine_connections", "Connections to engines.", statistics.open)
    yield _counter("warmpath_engine_connections_opened", "Connections made.", statistics.opened)
    yield _counter(
        "warmpath_engine_connections_reused", "Requests on a connection that served others.", statistics.reused
    )
    yield _counter("warmpath_engine_connections_stale", "Of those, sent again on a new one.", statistics.stale)


def _tokens(statistics: EncoderStatistics) -> Iterable[Metric]:
    yield _counter("warmpath_tokens_reused", "Prompt tokens taken from the token cache.", statistics.reused_tokens)
    yield _counter("warmpath_tokens_encoded", "Prompt tokens that had to be tokenized.", statistics.new_tokens)
    yield _counter("warmpath_token_checks", "Texts tokenized whole, too, to compare.", statistics.checks)
    yield _counter(
        "warmpath_token_mismatches", "Of those, different: cutting texts stops at the first.", statistics.mismatches
    )
    yield _gauge("warmpath_token_cache_bytes", "Held by the token cache.", statistics.cache.size_bytes)
    yield _counter("warmpath_token_cache_evictions", "Texts the token cache let go.", statistics.cache.evictions)
