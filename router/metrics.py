"""All metrics of a router process, in one registry: what `GET /metrics` shows.

Labels are bounded: none holds a name that clients choose, but for the first few unknown request fields.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from router.instruments import Counter, Gauge, Histogram

if TYPE_CHECKING:
    from events.messages import KvMark

CONTENT_TYPE = CONTENT_TYPE_LATEST
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 60, 120, 300)
TOKEN_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1, 5)
DECISION_SECONDS = (0.00001, 0.000025, 0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.01, 0.1)
TOKEN_ERRORS = (-16384, -4096, -1024, -256, -64, -1, 0, 64, 256, 1024, 4096, 16384)
IGNORED_FIELD_NAMES = 32


class Metrics:
    """The metrics, each an attribute; prefix `warmpath_`."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()

        # the frontend's
        self.requests = Counter(
            "warmpath_requests",
            "Replies, by route and status (499: the client left).",
            ("endpoint", "status"),
            registry=registry,
        )
        self.requests_in_flight = Gauge(
            "warmpath_requests_in_flight", "Generations now being served.", registry=registry
        )
        self.broken_streams = Counter(
            "warmpath_broken_streams",
            "Streams that ended in an error after their first token.",
            ("code",),
            registry=registry,
        )
        self.ttft_seconds = Histogram(
            "warmpath_ttft_seconds", "From a request's arrival to its first token.", registry=registry, buckets=SECONDS
        )
        self.itl_seconds = Histogram(
            "warmpath_itl_seconds",
            "Between two messages of a stream, per token.",
            registry=registry,
            buckets=TOKEN_SECONDS,
        )
        self.e2e_seconds = Histogram(
            "warmpath_e2e_seconds", "From a request's arrival to its last token.", registry=registry, buckets=SECONDS
        )
        self.prompt_tokens = Counter("warmpath_prompt_tokens", "Prompt tokens of requests answered.", registry=registry)
        self.cached_tokens = Counter(
            "warmpath_cached_tokens", "How many of them the engine had in its cache.", registry=registry
        )
        self.completion_tokens = Counter("warmpath_completion_tokens", "Tokens generated.", registry=registry)
        self.ignored_fields = Counter(
            "warmpath_ignored_fields", "Unknown fields in requests, by name.", ("field",), registry=registry
        )

        self.process_index = Gauge(
            "warmpath_process_index", "Which of the router's processes this is.", registry=registry
        )
        self.untokenized = Counter(
            "warmpath_untokenized",
            "Requests in text mode whose prompt could not be tokenized here: placed by load alone.",
            registry=registry,
        )

        self.held_requests = Counter(
            "warmpath_held_requests",
            "Requests that waited for a first worker, as the router had just started.",
            registry=registry,
        )

        self.admin_calls = Counter(
            "warmpath_admin_calls", "Calls to engines for administrators.", ("operation", "outcome"), registry=registry
        )

        # the dispatcher's
        self.decisions = Counter("warmpath_decisions", "Placements.", ("policy",), registry=registry)
        self.decision_seconds = Histogram(
            "warmpath_decision_seconds", "Time to place a request.", registry=registry, buckets=DECISION_SECONDS
        )
        self.unplaced = Counter(
            "warmpath_unplaced", "Requests that no target could take.", ("reason",), registry=registry
        )
        self.cached_tokens_error = Histogram(
            "warmpath_cached_tokens_error",
            "Cached tokens the decision believed in, less those the engine reported.",
            registry=registry,
            buckets=TOKEN_ERRORS,
        )
        self.engine_errors = Counter(
            "warmpath_engine_errors", "Failed attempts at engines.", ("kind",), registry=registry
        )
        self.migrations = Counter(
            "warmpath_migrations", "Requests that went on at another worker.", ("reason",), registry=registry
        )
        self.aborts = Counter("warmpath_aborts", "Requests given up at an engine.", ("reason",), registry=registry)
        self.failed_aborts = Counter(
            "warmpath_failed_aborts", "Aborts that the engine did not take.", registry=registry
        )

        # worker health's
        self.ejections = Counter(
            "warmpath_ejections",
            "Times a target was taken out of new work, by reason (stalled, or an engine error's kind).",
            ("reason",),
            registry=registry,
        )
        self.health_checks = Counter(
            "warmpath_health_checks", "Questions to workers that are out, by result.", ("result",), registry=registry
        )

        # the event feed's
        self.events_applied = Counter(
            "warmpath_events_applied", "Cache events applied to the index.", registry=registry
        )
        self.events_dropped = Counter(
            "warmpath_events_dropped", "Messages that could not be used, by reason.", ("reason",), registry=registry
        )
        self.event_lag_seconds = Histogram(
            "warmpath_event_lag_seconds",
            "From an event's publication by the adapter to its application.",
            registry=registry,
            buckets=SECONDS,
        )
        self.gaps = Counter(
            "warmpath_gaps",
            "Times that events were found missing: between adapter and router (bus), or engine and adapter (engine).",
            ("hop",),
            registry=registry,
        )
        self.resyncs = Counter(
            "warmpath_resyncs", "Snapshots taken in place of what was known, by source.", ("source",), registry=registry
        )
        self.stale_epoch = Counter(
            "warmpath_stale_epoch",
            "Messages of a life of engine or adapter that is over, dropped.",
            ("kind",),
            registry=registry,
        )
        self.silences = Counter(
            "warmpath_silences", "Times that a rank's adapter was not heard any more.", registry=registry
        )
        self.parity_failures = Counter(
            "warmpath_parity_failures",
            "Workers whose events cannot match this router's prompts, by what does not fit.",
            ("kind",),
            registry=registry,
        )
        self.zero_match_alarms = Counter(
            "warmpath_zero_match_alarms", "Targets whose events never matched what was sent there.", registry=registry
        )
        self.hit_resyncs = Counter(
            "warmpath_hit_resyncs",
            "Snapshots taken because cached tokens were persistently not as expected; mirror: and a new mirror asked for.",
            ("depth",),
            registry=registry,
        )
        self.engine_events_lost = Counter(
            "warmpath_engine_events_lost", "Event batches of engines that no replay could bring.", registry=registry
        )
        self.mirror_resets = Counter(
            "warmpath_mirror_resets",
            "Times that an adapter emptied its mirror, as events were lost or unreadable.",
            registry=registry,
        )
        self.mirror_rebuilds = Counter(
            "warmpath_mirror_rebuilds",
            "Times that an adapter built its mirror anew from its engine's events, as a router doubted it.",
            registry=registry,
        )
        self.mirror_corrections = Counter(
            "warmpath_mirror_corrections",
            "Of those, mirrors that differed from what all of the engine's events say.",
            registry=registry,
        )
        for depth in ("index", "mirror"):
            self.hit_resyncs.labels(depth)
        for hop in ("bus", "engine"):
            self.gaps.labels(hop)
        for kind in ("events", "mark", "load", "snapshot"):
            self.stale_epoch.labels(kind)
        self.failed_snapshots = Counter(
            "warmpath_failed_snapshots", "Snapshot requests without a usable answer.", registry=registry
        )

        self._replies: dict[tuple[str, int], Counter] = {}
        self._ignored_names: set[str] = set()

    def __repr__(self) -> str:
        return f"Metrics({len(list(self.registry.collect()))} families)"

    def exposition(self) -> bytes:
        """All of them in Prometheus' text format (`CONTENT_TYPE`)."""
        return generate_latest(self.registry)

    def replied(self, endpoint: str, status: int) -> None:
        """Count a reply; `endpoint` is one of the routes' patterns."""
        counter = self._replies.get((endpoint, status))
        if counter is None:
            counter = self._replies[endpoint, status] = self.requests.labels(endpoint, str(status))
        counter.inc()

    def answered(self, prompt_tokens: int, completion_tokens: int, cached_tokens: int) -> None:
        """Count the tokens of an answer."""
        self.prompt_tokens.inc(prompt_tokens)
        self.completion_tokens.inc(completion_tokens)
        self.cached_tokens.inc(cached_tokens)

    def marked(self, mark: KvMark, before: KvMark | None) -> None:
        """Count what happened at an adapter since its last mark of the same epoch."""
        for counter, name in (
            (self.gaps.labels("engine"), "gaps"),
            (self.engine_events_lost, "lost"),
            (self.mirror_resets, "resets"),
            (self.mirror_rebuilds, "rebuilds"),
            (self.mirror_corrections, "corrections"),
        ):
            counter.inc(max(0, getattr(mark, name) - (getattr(before, name) if before is not None else 0)))

    def ignored_field(self, name: str) -> bool:
        """Count an unknown request field; true if it is the first of its name. Only the first 32 names are told apart."""
        label = name[:64]
        new = label not in self._ignored_names and len(self._ignored_names) < IGNORED_FIELD_NAMES
        if new:
            self._ignored_names.add(label)
        self.ignored_fields.labels(label if label in self._ignored_names else "other").inc()
        return new
