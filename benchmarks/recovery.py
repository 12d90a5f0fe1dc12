"""A router that starts: how long until its index holds what the fleet holds.

64 ranks hold 2 million blocks together; since their last checkpoint, each has changed as much as makes the next one due. A
router's write path starts with an empty index and is in step when every rank is live: once from the history that the broker keeps
(`--durable-events`, no worker is asked), once from the adapters' snapshots. Figures: wall-clock seconds, and the CPU seconds of the
router; broker and adapters are other processes.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.figures import Figure, at_most, report
from events import messages, subjects
from events.blocks import load_kernels
from events.bus.broker import EmbeddedBroker
from events.bus.log import Limits
from events.bus.nats import NatsBus
from events.history import jetstream_history
from events.messages import BlocksRemoved, BlocksStored, CacheEvent, KvEvents, SnapshotChunk, pack_hashes
from router.core import Scheduler, Target, warm_up
from router.core.policy import create
from router.metrics import Metrics
from router.service.feed import EventFeed
from router.service.snapshots import AdapterSnapshots, HistorySnapshots, SnapshotSource
from workers.sglang.checkpoints import CheckpointPace

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

NAMESPACE = "bench"
RANKS = 64
BLOCKS = 2_000_000
RANK_BLOCKS = BLOCKS // RANKS
BLOCKS_PER_MESSAGE = 512
CAPACITY_TOKENS = 64 * 2**20
REACH_SECONDS = 3.0


def targets() -> list[Target]:
    """The ranks."""
    return [Target(f"w{number}", 0) for number in range(RANKS)]


class Rank:
    """One adapter's truth: what it holds, and what it has published since its checkpoint."""

    def __init__(self, target: Target, seed: int) -> None:
        self.target = target
        self.seq = -1
        self._random = np.random.default_rng(seed)
        self._held = self._fresh(RANK_BLOCKS)

    def _fresh(self, blocks: int) -> np.ndarray[tuple[int], np.dtype[np.uint64]]:
        return self._random.integers(1, 2**63, blocks, dtype=np.uint64)

    def snapshot(self, position: int = 0) -> list[SnapshotChunk]:
        """All that it holds."""
        stored = [BlocksStored(pack_hashes(self._held))]
        return [SnapshotChunk(*self.target, 1, self.seq, 0, 1, stored, position)]

    def churn(self) -> bytes:
        """Some blocks go, as many others come: an event message."""
        fresh, gone = self._fresh(BLOCKS_PER_MESSAGE), self._held[:BLOCKS_PER_MESSAGE]
        self._held = np.concatenate([self._held[BLOCKS_PER_MESSAGE:], fresh])
        self.seq += 1
        events: list[CacheEvent] = [BlocksRemoved(pack_hashes(gone)), BlocksStored(pack_hashes(fresh))]
        return messages.encode(KvEvents(*self.target, 1, self.seq, events))

    async def answer(self, _: bytes) -> Iterable[bytes]:
        """A snapshot request's answer."""
        return [messages.encode(chunk) for chunk in self.snapshot()]


async def adapters(url: str) -> None:
    """The adapters' process: checkpoints, events up to the next one, then snapshots on request until told to end."""
    ranks = [Rank(target, seed) for seed, target in enumerate(targets())]
    async with NatsBus(url, name="adapters") as bus:
        history = jetstream_history(bus, NAMESPACE, Limits())
        await history.open()
        for rank in ranks:
            await history.write(rank.snapshot)
        for rank in ranks:
            await publish(bus, rank)
            await bus.serve(subjects.snapshot(NAMESPACE, *rank.target), rank.answer)
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        await asyncio.to_thread(sys.stdin.readline)


async def publish(bus: NatsBus, rank: Rank) -> None:
    """A rank's events, until its next checkpoint would be due."""
    size = 0
    while size < CheckpointPace().least_bytes:
        data = rank.churn()
        size += len(data)
        await bus.publish(subjects.kv(NAMESPACE, *rank.target), data)
    await bus.flush()


async def recover(url: str, durable: bool) -> tuple[float, float]:
    """Seconds from a feed's first step until all ranks are live, on the wall and of this process's CPU."""
    scheduler = Scheduler(create("warm"), 64)
    async with NatsBus(url, name="router") as bus:
        history, asked = jetstream_history(bus, NAMESPACE, Limits()), AdapterSnapshots(bus, NAMESPACE)
        sources: list[SnapshotSource] = [HistorySnapshots(history)] if durable else [asked]
        feed = EventFeed(bus, scheduler, namespace=NAMESPACE, metrics=Metrics(), clock=time.monotonic, sources=sources)
        gc.freeze()  # as a server does after its start
        started, spent = time.perf_counter(), time.process_time()
        await feed.open()
        for target in targets():
            scheduler.add_target(target, capacity_tokens=CAPACITY_TOKENS, model="m", exact=False)
            feed.follow(target, epoch=1)
        while not all(state.exact for state in scheduler.targets()):
            await asyncio.sleep(0.01)
        seconds, spent = time.perf_counter() - started, time.process_time() - spent
        held = sum(state.device_blocks for state in scheduler.targets())
        assert held == RANKS * RANK_BLOCKS, f"{held} blocks in the index"
        await feed.close()
        return seconds, spent


def rows() -> Iterator[Figure]:
    """The two figures."""

    async def run() -> list[tuple[float, float]]:
        with tempfile.TemporaryDirectory() as folder:
            async with EmbeddedBroker(store_dir=Path(folder)) as broker:
                command = [sys.executable, "-m", "benchmarks.recovery", "--adapters", broker.url]
                with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
                    assert process.stdout is not None
                    assert process.stdout.readline() == b"ready\n", "the adapters did not start"
                    seconds = [await recover(broker.url, durable) for durable in (True, False)]
                    process.communicate(b"done\n")
                    return seconds

    what = f"a router in step with {BLOCKS:,} blocks of {RANKS} ranks"
    for source, (seconds, spent) in zip(("the broker's history", "the adapters"), asyncio.run(run()), strict=True):
        yield at_most(f"{what}, from {source}", "s", seconds, REACH_SECONDS)
        yield at_most("… CPU of the router", "s", spent, REACH_SECONDS)


def main() -> int:
    """Measure, or be the adapters."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.recovery", description=__doc__.split("\n\n")[0])
    parser.add_argument("--adapters", metavar="URL", help="be the adapters (internal)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here too")
    options = parser.parse_args()
    if options.adapters:
        asyncio.run(adapters(options.adapters))
    else:
        load_kernels()
        warm_up()
        report([rows], options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
