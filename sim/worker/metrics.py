"""/metrics under SGLang's names."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from prometheus_client.core import Metric

    from sim.worker.generation import Generation
    from sim.worker.rank import Rank

LATENCY_BUCKETS = (0.001, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 60)
GAUGE_LABELS = ("model_name", "engine_type", "tp_rank", "pp_rank", "moe_ep_rank", "dp_rank")
REQUEST_LABELS = ("model_name", "engine_type", "is_streaming")


class Metrics:
    """Counters and histograms of finished requests, and gauges read from the ranks."""

    def __init__(self, model_name: str, ranks: Sequence[Rank]) -> None:
        self._labels = (model_name, "unified")
        self._registry = CollectorRegistry()
        self._registry.register(_RankCollector(model_name, ranks))
        self._requests = self._counter("sglang:num_requests", "Finished requests.")
        self._prompt = self._counter("sglang:prompt_tokens", "Prompt tokens of finished requests.")
        self._generated = self._counter("sglang:generation_tokens", "Tokens generated.")
        self._first_token = self._histogram("sglang:time_to_first_token_seconds", "From arrival to the first token.")
        self._end = self._histogram("sglang:e2e_request_latency_seconds", "From arrival to the end.")
        self._gaps = self._histogram("sglang:inter_token_latency_seconds", "Between two tokens.")

    def finished(self, generation: Generation, *, streaming: bool) -> None:
        """Count a finished request."""
        labels = (*self._labels, str(streaming).lower())
        self._requests.labels(*labels).inc()
        self._prompt.labels(*labels).inc(len(generation.request.prompt))
        self._generated.labels(*labels).inc(len(generation.output_ids))
        self._end.labels(*labels).observe(generation.finished_at - generation.received_at)
        times = generation.token_times
        if times:
            self._first_token.labels(*labels).observe(times[0] - generation.received_at)
        for before, after in pairwise(times):
            self._gaps.labels(*labels).observe(after - before)

    def render(self) -> bytes:
        """The exposition text."""
        return generate_latest(self._registry)

    def _counter(self, name: str, help_: str) -> Counter:
        return Counter(name, help_, REQUEST_LABELS, registry=self._registry)

    def _histogram(self, name: str, help_: str) -> Histogram:
        return Histogram(name, help_, REQUEST_LABELS, registry=self._registry, buckets=LATENCY_BUCKETS)


class _RankCollector(Collector):
    """Reads the engines when asked."""

    def __init__(self, model_name: str, ranks: Sequence[Rank]) -> None:
        self._model_name = model_name
        self._ranks = ranks

    def collect(self) -> Iterator[Metric]:
        readings = [(rank.number, dict(self._gauges(rank))) for rank in self._ranks]
        for name in readings[0][1]:
            family = GaugeMetricFamily(name, name.partition(":")[2].replace("_", " "), labels=GAUGE_LABELS)
            for number, values in readings:
                family.add_metric((self._model_name, "unified", "0", "0", "0", str(number)), values[name])
            yield family
        yield from self._counters()

    def _counters(self) -> Iterator[Metric]:
        cached = CounterMetricFamily("sglang:cached_tokens", "Prompt tokens found in the cache.", labels=("dp_rank",))
        evicted = CounterMetricFamily("sglang:evicted_tokens", "Tokens evicted.", labels=("dp_rank",))
        aborted = CounterMetricFamily("sglang:num_aborted_requests", "Requests aborted.", labels=("dp_rank",))
        for rank in self._ranks:
            statistics, labels = rank.engine.statistics(), (str(rank.number),)
            cached.add_metric(labels, statistics.cached_tokens)
            evicted.add_metric(labels, statistics.evicted_tokens)
            aborted.add_metric(labels, statistics.aborted_requests)
        yield from (cached, evicted, aborted)

    @staticmethod
    def _gauges(rank: Rank) -> Iterable[tuple[str, float]]:
        load, statistics = rank.load(), rank.engine.statistics()
        page = rank.engine.config.page_size
        usage = load.used_tokens / load.capacity_tokens
        return (
            ("sglang:num_running_reqs", load.running_requests),
            ("sglang:num_queue_reqs", load.waiting_requests),
            ("sglang:num_used_tokens", load.used_tokens),
            ("sglang:token_usage", usage),
            ("sglang:full_token_usage", usage),
            ("sglang:kv_available_tokens", statistics.free_tokens),
            ("sglang:kv_evictable_tokens", statistics.evictable_tokens),
            ("sglang:kv_used_tokens", load.used_tokens),
            ("sglang:max_total_num_tokens", load.capacity_tokens),
            ("sglang:page_size", page),
            ("sglang:num_pages", load.capacity_tokens // page),
            ("sglang:cache_hit_rate", statistics.cache_hit_rate),
            ("sglang:gen_throughput", statistics.generated_tokens_per_second if load.running_requests else 0.0),
            ("sglang:utilization", load.running_requests / load.max_running_requests),
            ("sglang:num_retracted_reqs", statistics.retractions),
            ("fakeworker:late_steps", rank.statistics().late_steps),
        )
