"""The whole decision: an 8k-token prompt in an array → hashes → match → score → pick → booked, beside Dynamo's SelectionService.

    python -m benchmarks.decision [--json FILE]

Both sides decide about the same prompts with the same requests in flight, in turns. All prompts share their first half. Every
second one is cached whole on one of the workers; the others are seen for the first time. What a request costs later (first token,
free) is not timed.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import os
import time
from collections import deque
from itertools import count
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from benchmarks.figures import Figure, Skipped, at_most, percentile, report
from events.blocks import load_kernels, sequence_hashes
from events.messages import BlocksStored, pack_hashes
from router.core import RoutingRequest, Scheduler, Target, warm_up
from router.core.policy import create

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

PROMPT_TOKENS = 8192
CACHED_PROMPTS = 64
IN_FLIGHT = 400
ROUNDS = 8
DECISIONS = 200
"""Per side and round."""
REACH_P50_US, REACH_P99_US = 40.0, 120.0
EVENT_BLOCKS = 64
REQUESTS_PER_SECOND = 100


class Prompts:
    """The same prompts for both sides: cached and new ones in turns."""

    def __init__(self) -> None:
        self._draw = np.random.default_rng(1)
        self._shared = self._tokens(PROMPT_TOKENS // 2)
        self.cached = [self._new() for _ in range(CACHED_PROMPTS)]

    def stream(self, length: int) -> list[NDArray[np.uint32]]:
        """That many prompts."""
        return [self.cached[number // 2 % CACHED_PROMPTS] if number % 2 else self._new() for number in range(length)]

    def _new(self) -> NDArray[np.uint32]:
        return np.concatenate([self._shared, self._tokens(PROMPT_TOKENS - len(self._shared))])

    def _tokens(self, length: int) -> NDArray[np.uint32]:
        return self._draw.integers(0, 128_000, length, np.uint32)


class Timed(NamedTuple):
    """What one side took, per decision."""

    walls: list[float]
    cpu_seconds: list[float]
    """A mean per round, over all threads of the process."""

    def p50_us(self) -> float:
        """Wall clock."""
        return median(self.walls) * 1e6

    def p99_us(self) -> float:
        """Wall clock."""
        return percentile(self.walls, 0.99) * 1e6

    def cpu_us(self) -> float:
        """CPU time, the median of rounds."""
        return median(self.cpu_seconds) * 1e6


class Ours:
    """A scheduler with so many targets and requests in flight. By its clock 100 requests a second come, as a Poisson process, and
    as many end.
    """

    def __init__(self, prompts: Prompts, policy: str, block_size: int, targets: int) -> None:
        self.timed = Timed([], [])
        self._block_size = block_size
        self._scheduler = Scheduler(create(policy), block_size)
        self._in_flight: deque[str] = deque()
        self._numbers = count()
        self._now = 0.0
        self._draw = np.random.default_rng(2)
        fleet = [Target(f"w{number}") for number in range(targets)]
        for target in fleet:
            self._scheduler.add_target(target, capacity_tokens=1 << 22, model="m")
        for number, prompt in enumerate(prompts.cached):
            stored = BlocksStored(pack_hashes(sequence_hashes(prompt, block_size)))
            self._scheduler.apply(fleet[number % targets], stored)

    def decide(self, prompts: list[NDArray[np.uint32]]) -> None:
        """One decision for each prompt, timed; the oldest request is freed in between."""
        walls, cpu_seconds = list[float](), 0.0
        for prompt in prompts:
            request_id, now = f"r{next(self._numbers)}", self._later()
            cpu, start = time.process_time(), time.perf_counter()
            hashes = sequence_hashes(prompt, self._block_size)
            self._scheduler.place(RoutingRequest(request_id, hashes, len(prompt), model="m"), now)
            walls.append(time.perf_counter() - start)
            cpu_seconds += time.process_time() - cpu
            self._in_flight.append(request_id)
            if len(self._in_flight) > IN_FLIGHT:
                self._end(self._in_flight.popleft())
        self.timed.walls.extend(walls)
        self.timed.cpu_seconds.append(cpu_seconds / len(prompts))

    def _end(self, request_id: str) -> None:
        self._scheduler.first_token(request_id, None, self._later())
        self._scheduler.free(request_id, self._later())

    def _later(self) -> float:
        """The time of the next event: a request comes, one gets its first token, one ends."""
        self._now += self._draw.exponential(1 / (3 * REQUESTS_PER_SECOND))
        return self._now


class Rival:
    """Dynamo's SelectionService, in process, fed through ZMQ as its engines do."""

    def __init__(self, service: Any, publishers: list[Any]) -> None:
        self.timed = Timed([], [])
        self._service = service
        self._publishers = publishers
        self._in_flight: deque[str] = deque()
        self._numbers = count()

    @classmethod
    async def start(cls, prompts: Prompts, block_size: int, targets: int) -> Rival:
        """A service that has seen the cached prompts' events.

        :raises ImportError: it is not installed.
        """
        os.environ.setdefault("DYN_LOG", "error")  # it logs a line per request otherwise
        import zmq
        from dynamo.llm import SelectionService

        service, publishers = SelectionService(indexer_threads=1), []
        for worker in range(targets):
            publisher: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.PUB)
            publisher.set_hwm(0)
            port = publisher.bind_to_random_port("tcp://127.0.0.1")
            publishers.append(publisher)
            card = {"worker_id": worker + 1, "model_name": "m", "block_size": block_size, "total_kv_blocks": 65536}
            card |= {"endpoint": f"http://127.0.0.1:{30000 + worker}", "max_num_batched_tokens": 65536}
            await service.upsert_worker(card | {"kv_events_endpoint": f"tcp://127.0.0.1:{port}"})
        await asyncio.sleep(1.0)  # its subscribers connect; nothing tells when they have
        rival = cls(service, publishers)
        rival._publish(prompts, block_size)
        await rival._see(prompts.cached[-1], block_size)
        return rival

    def _publish(self, prompts: Prompts, block_size: int) -> None:
        import msgspec

        sequence = [0] * len(self._publishers)
        for number, prompt in enumerate(prompts.cached):
            worker, parent = number % len(self._publishers), None
            hashes = (sequence_hashes(prompt, block_size) >> np.uint64(2)).tolist()  # they must fit an int64
            for start in range(0, len(hashes), EVENT_BLOCKS):
                part = hashes[start : start + EVENT_BLOCKS]
                tokens = prompt[start * block_size : (start + len(part)) * block_size].tolist()
                batch = [time.time(), [["BlockStored", part, parent, tokens, block_size, None, "GPU"]], 0]
                parts = [b"kv-events", sequence[worker].to_bytes(8, "big"), msgspec.msgpack.encode(batch)]
                self._publishers[worker].send_multipart(parts)
                sequence[worker] += 1
                parent = part[-1]

    async def _see(self, prompt: NDArray[np.uint32], block_size: int) -> None:
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            reply = await self._service.overlap_scores(self._body("probe", prompt.tolist()))
            if max(worker["device_blocks"] for worker in reply["workers"]) == len(prompt) // block_size:
                return
            await asyncio.sleep(0.02)
        raise TimeoutError("SelectionService did not see the events")

    async def decide(self, prompts: list[NDArray[np.uint32]]) -> None:
        """One decision for each prompt, timed; the oldest request is freed in between. Prompts are lists here, as it wants them."""
        walls, cpu_seconds = list[float](), 0.0
        for tokens in [prompt.tolist() for prompt in prompts]:
            request_id = f"r{next(self._numbers)}"
            body = self._body(request_id, tokens)
            cpu, start = time.process_time(), time.perf_counter()
            await self._service.select_and_reserve(body)
            walls.append(time.perf_counter() - start)
            cpu_seconds += time.process_time() - cpu
            self._in_flight.append(request_id)
            if len(self._in_flight) > IN_FLIGHT:
                gone = self._in_flight.popleft()
                await self._service.prefill_complete(gone)
                await self._service.free_reservation(gone)
        self.timed.walls.extend(walls)
        self.timed.cpu_seconds.append(cpu_seconds / len(prompts))

    @staticmethod
    def _body(request_id: str, tokens: list[int]) -> dict[str, object]:
        return {"selection_id": request_id, "model_name": "m", "token_ids": tokens}

    def stop(self) -> None:
        """Free its ports and threads."""
        self._service.shutdown()
        for publisher in self._publishers:
            publisher.close(linger=0)


async def _measured(policy: str, block_size: int, targets: int, *, with_rival: bool) -> tuple[Timed, Timed | None]:
    prompts = Prompts()
    ours = Ours(prompts, policy, block_size, targets)
    rival = await Rival.start(prompts, block_size, targets) if with_rival else None
    for turn in range(ROUNDS + 1):
        stream = prompts.stream(DECISIONS if turn else IN_FLIGHT + DECISIONS)
        gc.collect()
        ours.decide(stream)
        if rival is not None:
            await rival.decide(stream)
        if not turn:  # until then requests were only coming in
            _forget(ours.timed)
            _forget(rival.timed if rival else None)
    if rival is not None:
        rival.stop()
    return ours.timed, rival.timed if rival else None


def _forget(timed: Timed | None) -> None:
    if timed is not None:
        timed.walls.clear()
        timed.cpu_seconds.clear()


def decision(policy: str = "warm", targets: int = 64) -> Iterator[Figure | Skipped]:
    """The row "whole decision", at block sizes 64 and 16."""
    load_kernels()
    warm_up()
    for block_size in (64, 16):
        name = f"decision, {PROMPT_TOKENS} tokens, block {block_size}, {targets} workers, {policy}"
        try:
            ours, rival = asyncio.run(_measured(policy, block_size, targets, with_rival=True))
        except ImportError as error:
            yield Skipped(f"{name}: the rival", str(error))
            ours, rival = asyncio.run(_measured(policy, block_size, targets, with_rival=False))
        yield at_most(f"{name}, p50", "us", ours.p50_us(), REACH_P50_US, rival and rival.p50_us())
        yield at_most(f"{name}, p99", "us", ours.p99_us(), REACH_P99_US, rival and rival.p99_us())
        yield Figure(f"{name}, CPU", "us", ours.cpu_us(), rival and rival.cpu_us())


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="The whole decision beside Dynamo's SelectionService.")
    parser.add_argument("--policy", default="warm", help="the policy to decide by (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=64, help="how many targets (default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures there")
    options = parser.parse_args()
    report([lambda: decision(options.policy, options.workers)], options.json)


if __name__ == "__main__":
    main()
