"""The index against Dynamo's radix tree: match, store, remove, memory, growth.

Events and queries are made before the clock starts: a store of the rival is its JSON parsing, insertion and thread hop, a store of
ours is one call with a uint64 array. Ours is matched through `PrefixIndex.matcher`, as the scheduler does it: arrays in and out.
"""

from __future__ import annotations

import gc
import itertools
import os
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks import radix
from benchmarks.figures import Figure, Skipped, against, at_most, percentile, seconds_each
from router.core.index import PrefixIndex

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

CHAIN = 4096
EVENT = 64
TIMES = {16: 10, 256: 12, 4096: 8}
MORE_WORKERS_TIMES = 6


@dataclass(frozen=True)
class Load:
    """Chains of blocks, each held by one worker."""

    chains: NDArray[np.uint64]
    homes: list[int]

    @classmethod
    def random(cls, blocks: int, workers: int, seed: int = 1) -> Load:
        """Chains of 4,096 random blocks, spread over the workers."""
        draw = np.random.default_rng(seed)
        chains = draw.integers(0, 1 << 63, (blocks // CHAIN, CHAIN), np.uint64)
        return cls(chains, draw.integers(0, workers, len(chains)).tolist())

    def events(self) -> Iterator[tuple[int, NDArray[np.uint64]]]:
        """Who stores what, 64 blocks at a time."""
        for home, chain in zip(self.homes, self.chains, strict=True):
            for start in range(0, CHAIN, EVENT):
                yield home, chain[start : start + EVENT]


def match(blocks: int, workers: int, queries: int, figures_times: dict[int, float]) -> Iterator[Figure | Skipped]:
    """p50 of a match by depth; ours and the rival's queries take turns."""
    load = Load.random(blocks, workers)
    index, tree = _filled(load), _grown(load)
    matcher = index.matcher(workers)
    for depth, times in figures_times.items():
        chosen = np.random.default_rng(depth).integers(0, len(load.chains), queries)
        arrays = [load.chains[chain][:depth] for chain in chosen]
        lists = [array.tolist() for array in arrays]
        ours, rival = list[float](), list[float]()
        for start in range(0, queries, 100):
            part = slice(start, start + 100)
            rival += seconds_each(tree.find_matches, lists[part])
            ours += seconds_each(matcher, arrays[part])
        assert matcher.overlap.device_blocks.max() == depth
        name = f"match, {workers} workers, depth {depth:,}"
        yield against(f"{name}, p50", "us", median(ours) * 1e6, median(rival) * 1e6, times)
        yield Figure(f"{name}, p99", "us", percentile(ours, 0.99) * 1e6, percentile(rival, 0.99) * 1e6)
    yield _shared_prefix(workers, queries)


def store_and_remove(blocks: int, rounds: int = 3) -> Iterator[Figure]:
    """CPU time of filling an index in events, with room for all or grown from empty, and of emptying a part of it leaf first.

    The median of rounds in turns.
    """
    load = Load.random(blocks, 64)
    made = [(home, hashes) for home, hashes in load.events()]
    leaving = [
        (home, np.ascontiguousarray(chain[::-1][start : start + EVENT]))
        for home, chain in zip(load.homes[: max(1, len(load.homes) // 10)], load.chains, strict=False)
        for start in range(0, CHAIN, EVENT)
    ]
    seconds: dict[str, list[float]] = {
        "store": [],
        "growing store": [],
        "remove": [],
        "rival store": [],
        "rival remove": [],
    }
    for _ in range(rounds):
        index, tree = PrefixIndex(expected_blocks=blocks), radix.tree()
        json_made = _json_events(load)
        json_leaving = [(home, radix.removed(hashes.tolist())) for home, hashes in leaving]
        seconds["rival store"].append(_cpu_seconds(tree.apply_event, json_made))
        seconds["store"].append(_cpu_seconds(index.store, made))
        seconds["growing store"].append(_cpu_seconds(PrefixIndex().store, made))
        seconds["rival remove"].append(_cpu_seconds(tree.apply_event, json_leaving))
        seconds["remove"].append(_cpu_seconds(index.remove, leaving))
    rate = {
        name: (EVENT * (len(leaving) if "remove" in name else len(made))) / median(of) for name, of in seconds.items()
    }
    yield against(
        "store, events of 64 blocks, room made beforehand", "blocks/s", rate["store"], rate["rival store"], 12
    )
    yield against(
        "store, events of 64 blocks, grown from empty", "blocks/s", rate["growing store"], rate["rival store"], 12
    )
    yield against("remove, events of 64 blocks, leaf first", "blocks/s", rate["remove"], rate["rival remove"], 5)


def memory(blocks: int) -> Iterator[Figure]:
    """Growth of the resident set per block held by one worker."""
    load = Load.random(blocks, 64)
    json_events = _json_events(load)
    before = _resident_bytes()
    tree = radix.tree()
    for home, event in json_events:
        tree.apply_event(home, event)
    rival = (_resident_bytes() - before) / blocks
    before = _resident_bytes()
    index = _filled(load)
    ours = (_resident_bytes() - before) / blocks
    counts = index.statistics()
    yield at_most(f"memory, resident, load factor {counts.load_factor:.2f}", "bytes/block", ours, 32, rival)
    yield at_most("memory, by the index's own account", "bytes/block", counts.bytes / blocks, 32)


def growth(blocks: int, queries: int) -> Iterator[Figure]:
    """The longest store while growing tenfold, and what a match costs at either size."""
    small, large = Load.random(blocks, 64), Load.random(10 * blocks, 64, seed=2)
    p50 = _match_p50(_filled(small), small, queries)
    index, calls = PrefixIndex(), list[float]()
    gc.collect()
    gc.disable()
    for home, hashes in large.events():
        began, used = time.perf_counter(), time.thread_time()
        index.store(home, hashes)
        calls.append(min(time.perf_counter() - began, time.thread_time() - used))
    gc.enable()
    name = f"growth to {10 * blocks / (1 << 20):g} Mi blocks"
    yield at_most(f"{name}: longest store of 64 blocks, CPU time", "ms", max(calls) * 1e3, 5)
    yield Figure(f"{name}: p99.9 of a store", "us", percentile(calls, 0.999) * 1e6)
    for depth, seconds in _match_p50(index, large, queries).items():
        yield at_most(f"{name}: match at depth {depth:,}, p50 against that at a tenth", "x", seconds / p50[depth], 2)


def pinned_to_one_core() -> None:
    """The rival's best case; no worse for ours."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})


def _shared_prefix(workers: int, queries: int) -> Figure:
    """A prefix of 64 blocks that every worker holds: the system prompt."""
    prefix = Load.random(CHAIN, 1, seed=7).chains[0][:64]
    index, tree = PrefixIndex(), radix.tree()
    for worker in range(workers):
        index.store(worker, prefix)
        tree.apply_event(worker, radix.stored(None, prefix.tolist()))
    matcher, as_list = index.matcher(workers), prefix.tolist()
    ours, rival = list[float](), list[float]()
    for _ in range(10):
        rival += seconds_each(lambda hashes: tree.find_matches(hashes).scores, itertools.repeat(as_list, queries // 10))
        ours += seconds_each(matcher, itertools.repeat(prefix, queries // 10))
    assert matcher.overlap.device_blocks.min() == len(prefix)
    return Figure(f"match, 64 blocks held by all {workers} workers, p50", "us", median(ours) * 1e6, median(rival) * 1e6)


def _filled(load: Load) -> PrefixIndex:
    index = PrefixIndex()
    for home, hashes in load.events():
        index.store(home, hashes)
    return index


def _grown(load: Load) -> Any:
    tree = radix.tree()
    for home, event in _json_events(load):
        tree.apply_event(home, event)
    return tree


def _json_events(load: Load) -> list[tuple[int, bytes]]:
    pairs = zip(load.homes, load.chains, strict=True)
    return [(home, event) for home, chain in pairs for event in radix.stores(chain.tolist(), EVENT)]


def _cpu_seconds(function: Any, calls: list[tuple[Any, ...]]) -> float:
    used = time.process_time()
    for arguments in calls:
        function(*arguments)
    return time.process_time() - used


def _match_p50(index: PrefixIndex, load: Load, queries: int) -> dict[int, float]:
    matcher, draw = index.matcher(64), np.random.default_rng(3)
    arrays = [load.chains[chain] for chain in draw.integers(0, len(load.chains), queries)]
    return {depth: median(seconds_each(matcher, [array[:depth] for array in arrays])) for depth in TIMES}


def _resident_bytes() -> int:
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
