"""Two million unique prompts' worth of blocks through the adapter's mirror and a bounded index: memory must not grow.

An engine that is always full is played to the real mirror: each prompt is stored, an old one is removed, a few stores come before
their parents and a few are stored twice. What the mirror says goes through messages, their codec and a rank's stream into a
scheduler with a bounded index, while requests are placed, predicted and freed. RSS is read as it goes. Figures: growth after
warm-up, and what a block costs.
"""

from __future__ import annotations

import argparse
import gc
import sys
import time
from collections import deque
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.figures import Figure, at_most, report
from events import messages
from events.blocks import load_kernels, sequence_hashes
from events.messages import CacheEvent, KvEvents
from events.stream import RankStream
from router.core import RoutingRequest, Scheduler, Target, warm_up
from router.core.policy import create
from workers.sglang.mirror import CacheMirror
from workers.sglang.wire import EngineRemoved, EngineStored

if TYPE_CHECKING:
    from collections.abc import Iterator

PROMPTS = 2_000_000
PAGE = BLOCK = 64
PROMPT_BLOCKS = 4
HELD_PROMPTS = 12_500
"""An engine's cache: 50,000 blocks, 3.2 M tokens."""
INDEX_BLOCKS = 40_000
"""The index's bound, below what the engine holds: it evicts as well."""
TARGET = Target("w", 0)
BATCH_PROMPTS = 64
WARM_UP = 0.25
"""Share of the prompts before the first reading that counts."""
REACH_GROWTH_MB = 8.0


def rss_mb() -> float:
    """Memory of this process, MiB."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * 4096 / 2**20


class Engine:
    """A full cache of unique prompts: page ids count up, and the oldest prompt goes when another comes."""

    def __init__(self) -> None:
        self._random = np.random.default_rng(1)
        self._held: deque[list[int | bytes]] = deque()
        self._next = 0

    def prompt(self) -> tuple[list[EngineStored | EngineRemoved], np.ndarray[tuple[int], np.dtype[np.uint32]]]:
        """What a prompt changes, and its tokens."""
        tokens = self._random.integers(0, 2**31, PROMPT_BLOCKS * BLOCK, dtype=np.uint32)
        ids: list[int | bytes] = list(range(self._next, self._next + PROMPT_BLOCKS))
        self._next += PROMPT_BLOCKS
        head = EngineStored(ids[:2], None, tokens[: 2 * PAGE], PAGE)
        tail = EngineStored(ids[2:], ids[1], tokens[2 * PAGE :], PAGE)
        number = self._next // PROMPT_BLOCKS
        events: list[EngineStored | EngineRemoved] = [tail, head] if number % 50 == 0 else [head, tail]
        self._held.append(ids)
        if number % 40 == 0:  # once more in another namespace, which the ids do not tell apart
            events.append(head)
            self._held.append(ids[:2])
        while len(self._held) > HELD_PROMPTS:
            events.append(EngineRemoved(self._held.popleft()[::-1]))
        return events, tokens


class WritePath:
    """From the engine to the index, in one process."""

    def __init__(self) -> None:
        self.mirror = CacheMirror(BLOCK)
        self.stream = RankStream(epoch=1)
        self.stream.adopt(1, -1)
        self.scheduler = Scheduler(create("warm"), BLOCK, max_index_blocks=INDEX_BLOCKS)
        self.scheduler.add_target(TARGET, capacity_tokens=HELD_PROMPTS * PROMPT_BLOCKS * BLOCK, model="m")
        self.requests = 0
        self._seq = -1

    def serve(self, engine: Engine) -> None:
        """A batch of prompts: placed, computed, told, freed."""
        changes: list[CacheEvent] = []
        names = []
        for _ in range(BATCH_PROMPTS):
            events, tokens = engine.prompt()
            self.requests += 1
            name, now = str(self.requests), self.requests / 1000
            self.scheduler.place(RoutingRequest(name, sequence_hashes(tokens, BLOCK), len(tokens)), now)
            self.scheduler.first_token(name, 0, now)
            names.append(name)
            for event in events:
                changes += self.mirror.apply(event)
        self._seq += 1
        data = messages.encode(KvEvents(*TARGET, 1, self._seq, changes))
        message = messages.decode(data)
        assert isinstance(message, KvEvents)
        for ready in self.stream.offer(message):
            for change in ready.events:
                self.scheduler.apply(TARGET, change)
        for name in names:
            self.scheduler.free(name, self.requests / 1000)


def readings(prompts: int) -> Iterator[tuple[int, float]]:
    """Prompts so far and RSS, a hundred times."""
    engine, path = Engine(), WritePath()
    step = max(1, prompts // BATCH_PROMPTS // 100)
    for batch in range(prompts // BATCH_PROMPTS):
        path.serve(engine)
        if batch % step == step - 1:
            yield path.requests, rss_mb()
    path.mirror._check()  # noqa: SLF001 - the mirror is still sound
    statistics = path.mirror.statistics()
    assert (statistics.unknown_removals, statistics.waiting_pages) == (0, 0), statistics
    assert path.scheduler.statistics().exact.prefixes[0] <= INDEX_BLOCKS
    assert path.scheduler.statistics().requests == 0


def rows(prompts: int) -> Iterator[Figure]:
    """Growth after warm-up, and its rate."""
    gc.freeze()
    started = time.process_time()
    seen = list(readings(prompts))
    spent = time.process_time() - started
    later = [mb for served, mb in islice(seen, int(WARM_UP * len(seen)), None)]
    first, last = np.mean(later[: len(later) // 5]), np.mean(later[-len(later) // 5 :])
    blocks = prompts * PROMPT_BLOCKS
    what = f"{prompts:,} unique prompts ({blocks:,} blocks) through mirror and index"
    yield at_most(f"{what}: RSS after warm-up grows by", "MiB", max(0.0, float(last - first)), REACH_GROWTH_MB)
    yield at_most("… from", "MiB", float(first), 1000.0)
    yield at_most("… CPU a block, all steps together", "us", spent / blocks * 1e6, 50.0)


def main() -> int:
    """Soak."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description=__doc__.split("\n\n")[0])
    parser.add_argument("--prompts", type=int, default=PROMPTS, help="default: 2,000,000")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here too")
    options = parser.parse_args()
    load_kernels()
    warm_up()
    report([lambda: rows(options.prompts)], options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
