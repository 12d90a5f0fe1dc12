"""Statistics of traces, side by side."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich import box
from rich.table import Table

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from sim.traces.statistics import Lengths, TraceStatistics


def table(statistics: Sequence[TraceStatistics]) -> Table:
    """One column per trace."""
    made = Table(box=box.SIMPLE_HEAD, title_justify="left")
    made.add_column("", no_wrap=True)
    for one in statistics:
        made.add_column(one.name, justify="right")
    for rows in zip(*(_rows(one) for one in statistics), strict=True):
        label = rows[0][0]
        made.add_row(label, *(value for _, value in rows), style="bold" if not label.startswith(" ") else None)
    return made


def _rows(one: TraceStatistics) -> Iterator[tuple[str, str]]:
    arrivals, sessions, sharing = one.arrivals, one.sessions, one.sharing
    yield "requests", f"{one.requests:,}"
    yield "  span", f"{one.span_seconds:,.0f} s"
    yield "  requests per second", f"{arrivals.per_second:,.2f}"
    yield "  distinct times, most at one", f"{arrivals.distinct_times:,}, {arrivals.most_at_once}"
    yield "  variation of gaps (1: Poisson)", f"{arrivals.gap_variation:.2f}"
    yield "  dispersion (by 1 s, by 60 s)", f"{arrivals.dispersion_1s:.2f}, {arrivals.dispersion_60s:.2f}"
    yield "input tokens", f"{one.input_tokens.mean:,.0f}"
    yield "  p50, p90, p99, max", _percentiles(one.input_tokens)
    yield "output tokens", f"{one.output_tokens.mean:,.0f}"
    yield "  p50, p90, p99, max ", _percentiles(one.output_tokens)
    yield "sessions of several turns", f"{sessions.sessions:,}"
    yield "  turns mean, max", f"{sessions.turns.mean:.1f}, {sessions.turns.max:,.0f}"
    yield "  delay mean, p50", f"{sessions.delay_seconds.mean:.1f}, {sessions.delay_seconds.p50:.1f} s"
    yield "prefix blocks", f"{sharing.blocks:,}"
    yield "  tokens of a block", f"{one.block_tokens:,}"
    yield "  unique", f"{sharing.unique_blocks:,}"
    yield "  requests that begin alike", f"{sharing.most_common_first_block:.1%}"
    yield "  requests without a hit", f"{sharing.requests_without_hit:.1%}"
    yield "hit ratio, infinite cache", f"{sharing.infinite_hit_ratio:.4f}"
    yield "  by tokens", f"{sharing.infinite_hit_token_ratio:.4f}"
    yield f"hit ratio, LRU of {sharing.pooled_capacity_tokens / 1e6:.2f} M tokens", f"{sharing.pooled_hit_ratio:.4f}"
    yield "  by tokens ", f"{sharing.pooled_hit_token_ratio:.4f}"
    yield "reuse distance, mean", f"{sharing.reuse_distance_tokens.mean / 1e6:.2f} M tokens"
    yield "  p50, p90, p99", " ".join(f"{value / 1e6:.2f}" for value in sharing.reuse_distance_tokens[1:4])
    yield "reuse after, mean", f"{sharing.reuse_seconds.mean:,.0f} s"
    yield "  p50, p90, p99 ", " ".join(f"{value:,.0f}" for value in sharing.reuse_seconds[1:4])


def _percentiles(lengths: Lengths) -> str:
    return " ".join(short(value) for value in lengths[1:])


def short(number: float) -> str:
    """A number in at most four digits.

    >>> [short(number) for number in (7, 999, 6909, 126_195, 2_500_000)]
    ['7', '999', '6.9k', '126k', '2.5M']
    """
    for unit, size in (("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.{0 if number >= 100 * size else 1}f}{unit}"
    return f"{number:.0f}"
