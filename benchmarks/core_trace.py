"""A recorded trace of conversations as index traffic: match, place, store what was not cached, remove what an LRU evicts.

The trace is JSON lines with `hash_ids`, one per block of 512 tokens (Mooncake's format). Only the index's calls are timed;
the caches that the workers would have, and the choice of a worker, are the same for both sides.
"""

from __future__ import annotations

import json
import time
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from benchmarks import radix
from benchmarks.figures import Figure, Skipped, against
from router.core.index import PrefixIndex

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

TRACE_BLOCK_TOKENS = 512
CAPACITY_TOKENS = 1 << 20
_MASK = (1 << 64) - 1


class Side(Protocol):
    """An index under test; each call returns the seconds that the index itself took."""

    def match(self, chain: list[int]) -> tuple[list[int], float]:
        """Leading blocks by worker."""

    def store(self, worker: int, chain: list[int], start: int) -> float:
        """A worker holds the chain from a position on."""

    def remove(self, worker: int, blocks: list[int]) -> float:
        """A worker holds these no longer."""


class Ours:
    """Arrays in and out, as they come from the hash kernels and the wire."""

    def __init__(self, workers: int) -> None:
        self._index = PrefixIndex()
        self._matcher = self._index.matcher(workers)

    def match(self, chain: list[int]) -> tuple[list[int], float]:
        """As `Side` says."""
        hashes = np.array(chain, np.uint64)
        began = time.perf_counter()
        overlap = self._matcher(hashes)
        seconds = time.perf_counter() - began
        return overlap.device_blocks.tolist(), seconds

    def store(self, worker: int, chain: list[int], start: int) -> float:
        """As `Side` says."""
        return _timed(self._index.store, worker, np.array(chain[start:], np.uint64))

    def remove(self, worker: int, blocks: list[int]) -> float:
        """As `Side` says."""
        return _timed(self._index.remove, worker, np.array(blocks, np.uint64))


class Rival:
    """Lists and JSON bytes, as the wheel takes them."""

    def __init__(self, workers: int) -> None:
        self._tree, self._workers = radix.tree(), workers

    def match(self, chain: list[int]) -> tuple[list[int], float]:
        """As `Side` says."""
        began = time.perf_counter()
        scores = self._tree.find_matches(chain).scores
        seconds = time.perf_counter() - began
        depths = [0] * self._workers
        for (worker, _), depth in scores.items():
            depths[worker] = depth
        return depths, seconds

    def store(self, worker: int, chain: list[int], start: int) -> float:
        """As `Side` says."""
        return _timed(self._tree.apply_event, worker, radix.stored(chain[start - 1] if start else None, chain[start:]))

    def remove(self, worker: int, blocks: list[int]) -> float:
        """As `Side` says."""
        return _timed(self._tree.apply_event, worker, radix.removed(blocks))


@dataclass
class Traffic:
    """The workers' caches and what was asked of the index so far."""

    side: Side
    workers: int
    capacity_blocks: int
    seconds: float = 0.0
    hit_blocks: int = 0
    blocks: int = 0
    booked: list[int] = field(init=False)
    caches: list[OrderedDict[int, None]] = field(init=False)

    def __post_init__(self) -> None:
        self.booked = [0] * self.workers
        self.caches = [OrderedDict() for _ in range(self.workers)]

    def serve(self, chain: list[int]) -> None:
        """Place one request, and keep up the cache of its worker."""
        depths, seconds = self.side.match(chain)
        self.seconds += seconds
        worker = min(range(self.workers), key=lambda one: self.booked[one] - depths[one])
        cached = depths[worker]
        self.hit_blocks, self.blocks = self.hit_blocks + cached, self.blocks + len(chain)
        self.booked[worker] += len(chain) - cached
        self._cache(worker, chain, cached)

    def _cache(self, worker: int, chain: list[int], cached: int) -> None:
        """What was computed enters the cache, and what was used longest ago leaves it, children before parents."""
        cache = self.caches[worker]
        for block in reversed(chain[:cached]):
            if block in cache:
                cache.move_to_end(block)
        new = sum(block not in cache for block in chain[cached:])
        if not 0 < new < self.capacity_blocks:
            return
        over = len(cache) + new - self.capacity_blocks
        if over > 0:
            self.seconds += self.side.remove(worker, [cache.popitem(last=False)[0] for _ in range(over)])
        self.seconds += self.side.store(worker, chain, cached)
        for block in reversed(chain):
            cache[block] = None
            cache.move_to_end(block)


def trace(
    path: Path | None, requests: int = 3000, workers: int = 16, block_tokens: int = 16
) -> Iterator[Figure | Skipped]:
    """Seconds in the index for the first requests of a trace."""
    name = f"conversation trace, {requests:,} requests, {block_tokens}-token blocks, {workers} workers"
    if path is None:
        yield Skipped(name, "give the trace with --trace")
        return
    chains = _chains(path, requests, TRACE_BLOCK_TOKENS // block_tokens)
    sides: dict[str, Any] = {"rival": Rival(workers), "ours": Ours(workers)}
    runs = {key: Traffic(side, workers, CAPACITY_TOKENS // block_tokens) for key, side in sides.items()}
    for chain in chains:
        for traffic in runs.values():
            traffic.serve(chain)
    yield against(name, "s", runs["ours"].seconds, runs["rival"].seconds, 20)
    ratio = {key: round(traffic.hit_blocks / traffic.blocks, 4) for key, traffic in runs.items()}
    yield Figure(
        "  its share of blocks hit",
        "of blocks",
        ratio["ours"],
        ratio["rival"],
        "the same",
        len(set(ratio.values())) == 1,
    )


def _chains(path: Path, requests: int, parts: int) -> list[list[int]]:
    with path.open() as lines:
        ids = [json.loads(line)["hash_ids"] for line, _ in zip(lines, range(requests), strict=False)]
    return [[_mixed(block * parts + part) for block in one for part in range(parts)] for one in ids]


def _mixed(number: int) -> int:
    """A number spread over 63 bits, as hashes are."""
    number = (number + 0x9E3779B97F4A7C15) & _MASK
    number = ((number ^ (number >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    number = ((number ^ (number >> 27)) * 0x94D049BB133111EB) & _MASK
    return (number ^ (number >> 31)) >> 1


def _timed(function: Any, *arguments: Any) -> float:
    began = time.perf_counter()
    function(*arguments)
    return time.perf_counter() - began
