"""KV events from NATS into the index: blocks a second of one core, and how long the event loop is held up.

A publisher process sends hash-only batches of 64 ranks as fast as the broker takes them; the router's own write path (bus, stream,
scheduler, index) applies them. Figures: blocks per CPU second of this process, and the longest time for which the event loop
could do nothing else.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.figures import Figure, at_least, at_most, report
from events import messages, subjects
from events.blocks import load_kernels
from events.bus.broker import EmbeddedBroker
from events.bus.nats import NatsBus
from events.messages import BlocksStored, KvEvents, SnapshotChunk, SnapshotRequest, pack_hashes
from router.core import Scheduler, Target, warm_up
from router.core.policy import create
from router.metrics import Metrics
from router.service.feed import EventFeed

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

NAMESPACE = "bench"
RANKS = 64
BLOCKS_PER_MESSAGE = 512
CAPACITY_TOKENS = 64 * 2**20
TICK_SECONDS = 0.0005
REACH_BLOCKS_PER_SECOND = 3e6
REACH_HELD_UP_MS = 2.0


def targets() -> list[Target]:
    """The ranks that publish."""
    return [Target(f"w{number}", 0) for number in range(RANKS)]


def encoded(rank_messages: int) -> list[tuple[str, bytes]]:
    """All messages, round by round over the ranks: subject and data."""
    generator = np.random.default_rng(1)
    sent = []
    for seq in range(rank_messages):
        for target in targets():
            hashes = generator.integers(1, 2**63, BLOCKS_PER_MESSAGE, dtype=np.uint64)
            message = KvEvents(*target, 1, seq, [BlocksStored(pack_hashes(hashes))])
            sent.append((subjects.kv(NAMESPACE, *target), messages.encode(message)))
    return sent


async def publish(url: str, rank_messages: int) -> None:
    """The publisher process: serve empty snapshots, and on a line from standard input send everything."""
    sent = encoded(rank_messages)
    async with NatsBus(url, name="publisher") as bus:
        for target in targets():
            await bus.serve(subjects.snapshot(NAMESPACE, *target), _empty_snapshot)
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        await asyncio.to_thread(sys.stdin.readline)
        for number, (subject, data) in enumerate(sent):
            await bus.publish(subject, data)
            if number % 64 == 0:
                await bus.flush()
        await bus.flush()
        await asyncio.to_thread(sys.stdin.readline)


async def _empty_snapshot(data: bytes) -> Iterable[bytes]:
    asked = messages.decode(data)
    assert isinstance(asked, SnapshotRequest)
    return [messages.encode(SnapshotChunk(asked.worker_id, asked.rank, 1, -1, 0, 1, []))]


async def longest_hold_up(stopping: asyncio.Event) -> float:
    """Tick until told to stop; the longest time, seconds, by which a tick came late."""
    longest = 0.0
    while not stopping.is_set():
        due = time.perf_counter() + TICK_SECONDS
        await asyncio.sleep(TICK_SECONDS)
        longest = max(longest, time.perf_counter() - due)
    return longest


async def consume(url: str, publisher: subprocess.Popen[bytes], blocks: int) -> tuple[float, float]:
    """CPU seconds to apply all blocks, and the longest hold-up in seconds."""
    scheduler = Scheduler(create("warm"), 64)
    async with NatsBus(url, name="router") as bus:
        feed = EventFeed(bus, scheduler, namespace=NAMESPACE, metrics=Metrics(), clock=time.monotonic)
        await feed.open()
        for target in targets():
            scheduler.add_target(target, capacity_tokens=CAPACITY_TOKENS, model="m", exact=False)
            feed.follow(target)
        while not all((statistics := feed.statistics(target)) and statistics.live for target in targets()):
            await asyncio.sleep(0.01)
        gc.freeze()  # as a server does after its start
        stopping = asyncio.Event()
        ticking = asyncio.create_task(longest_hold_up(stopping))
        assert publisher.stdin is not None
        publisher.stdin.write(b"go\n")
        publisher.stdin.flush()
        started = time.process_time()
        while sum(state.device_blocks for state in scheduler.targets()) < blocks:
            await asyncio.sleep(0.02)
        spent = time.process_time() - started
        stopping.set()
        await feed.close()
        return spent, await ticking


def rows(rank_messages: int = 64) -> Iterator[Figure]:
    """The two figures."""

    async def run() -> tuple[float, float]:
        async with EmbeddedBroker() as broker:
            command = [sys.executable, "-m", "benchmarks.events", "--publish", broker.url, str(rank_messages)]
            with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as publisher:
                assert publisher.stdout is not None
                publisher.stdout.readline()
                result = await consume(broker.url, publisher, RANKS * rank_messages * BLOCKS_PER_MESSAGE)
                publisher.communicate(b"done\n")
                return result

    blocks = RANKS * rank_messages * BLOCKS_PER_MESSAGE
    spent, held_up = asyncio.run(run())
    yield at_least("KV events from NATS into the index", "blocks/s", blocks / spent, REACH_BLOCKS_PER_SECOND)
    yield at_most("… longest hold-up of the event loop", "ms", 1000 * held_up, REACH_HELD_UP_MS)


def main() -> int:
    """Measure, or be the publisher."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.events", description=__doc__.split("\n\n")[0])
    parser.add_argument("--publish", nargs=2, metavar=("URL", "MESSAGES"), help="be the publisher (internal)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here too")
    options = parser.parse_args()
    if options.publish:
        asyncio.run(publish(options.publish[0], int(options.publish[1])))
    else:
        load_kernels()
        warm_up()
        report([rows], options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
