"""Whole, shared out, or chosen for each request: the same requests on the same four GPUs, in virtual time.

    python -m benchmarks.paths [--json FILE] [--requests N] [--seed N]

Engines are the model's (`sim.engine`, an 8B model on H200s), placement is the router's own (`router.core.paths`), caches are
predicted. Conversations, whose turns add little to a cached prefix, meet fresh long prompts, which stall their tokens.
"""

from __future__ import annotations

import argparse
import heapq
import itertools
import json
import sys
import time
from pathlib import Path as File
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from events.blocks import sequence_hashes
from router.core import Pair, Part, Path, Paths, RoutingRequest, Scheduler, Target, warm_up
from router.core.paths import prefill_id
from router.core.policy import create
from sim.engine import DecodeEngine, Engine, EngineConfig, PrefillEngine, Request, TransferTiming
from sim.engine.timing import profile

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from sim.engine import Step

BLOCK = 64
W, P, D = Part.WHOLE, Part.PREFILL, Part.DECODE
FLEETS = {
    "4 whole": ((W, W, W, W), True),
    "2 prefill, 2 decode": ((P, P, D, D), True),
    "2 whole, 1 prefill, 1 decode; pairs first": ((W, W, P, D), False),
    "2 whole, 1 prefill, 1 decode; chosen": ((W, W, P, D), True),
}
RATES = (4.0, 8.0, 12.0)
"""Requests a second, of all four together."""


class Asked(NamedTuple):
    """One request of the workload."""

    at: float
    prompt: NDArray[np.uint32]
    output_tokens: int
    long: bool


def workload(rate: float, count: int, seed: int) -> Iterator[Asked]:
    """Poisson arrivals: two of three are turns of one of 40 conversations, the others fresh prompts of 6,000 to 14,000 tokens."""
    random = np.random.default_rng(seed)
    conversations = [random.integers(3, 30_000, 2_000, dtype=np.uint32) for _ in range(40)]
    now = 0.0
    for _ in range(count):
        now += random.exponential(1 / rate)
        if random.random() < 1 / 3:
            length = int(random.integers(6_000, 14_000))
            yield Asked(
                now, random.integers(3, 30_000, length, dtype=np.uint32), int(random.integers(50, 200)), long=True
            )
            continue
        chosen = int(random.integers(len(conversations)))
        turn = random.integers(3, 30_000, int(random.integers(50, 300)), dtype=np.uint32)
        conversations[chosen] = np.concatenate([conversations[chosen], turn])
        yield Asked(now, conversations[chosen], int(random.integers(100, 400)), long=False)


class Node:
    """One engine, and whether a step of it runs."""

    def __init__(self, target: Target, part: Part, config: EngineConfig) -> None:
        self.target, self.part = target, part
        self.engine = {W: Engine, P: PrefillEngine, D: DecodeEngine}[part](config)
        self.running = False


class Run:
    """A fleet and its requests, until the last one's end."""

    def __init__(self, parts: tuple[Part, ...], *, conditional: bool) -> None:
        timing = profile.load(profile.DEFAULT).timing
        config = EngineConfig(
            capacity_tokens=400_000, page_size=64, context_length=32_768, record_changes=False, timing=timing
        )
        self.scheduler = Scheduler(create("warm"), BLOCK, seed=1)
        self.paths = Paths(self.scheduler, conditional=conditional)
        self.nodes = {Target(f"w{i}"): Node(Target(f"w{i}"), part, config) for i, part in enumerate(parts)}
        for target, node in self.nodes.items():
            self.scheduler.add_target(
                *(target,),
                capacity_tokens=400_000,
                model="m",
                page_size=64,
                exact=False,
                part=node.part,
                caches=node.part is not D,
            )
        self.transfer = TransferTiming()
        self.queue: list[tuple[float, int, str, object]] = []
        self.numbers = itertools.count()
        self.asked: dict[str, Asked] = {}
        self.pairs: dict[str, Pair] = {}
        self.predicted: dict[str, float | None] = {}
        self.first: dict[str, float] = {}
        self.last: dict[str, float] = {}
        self.gaps: list[float] = []
        self.now = 0.0

    def at(self, when: float, kind: str, what: object) -> None:
        """Have something happen then."""
        heapq.heappush(self.queue, (when, next(self.numbers), kind, what))

    def play(self, requests: Iterator[Asked]) -> None:
        """Send them, and go on until nothing happens any more."""
        for index, asked in enumerate(requests):
            self.at(asked.at, "arrive", (f"r{index}", asked))
        while self.queue:
            self.now, _, kind, what = heapq.heappop(self.queue)
            getattr(self, f"_{kind}")(what)

    def _arrive(self, what: tuple[str, Asked]) -> None:
        rid, asked = what
        self.asked[rid] = asked
        routing = RoutingRequest(rid, sequence_hashes(asked.prompt, BLOCK), len(asked.prompt), model="m")
        placed = self.paths.place(routing, self.now)
        request = Request(rid, asked.prompt, asked.output_tokens, ignore_eos=True)
        if isinstance(placed, Pair):
            self.pairs[rid] = placed
            sides = [placed.prefill, placed.decode]
        else:
            sides = [placed]
        self.predicted[rid] = sides[0].predicted_ttft_seconds
        for side in sides:
            self.nodes[side.target].engine.submit(request, self.now)
            self._kick(self.nodes[side.target])

    def _kick(self, node: Node) -> None:
        if node.running or not node.engine.runnable:
            return
        node.running = True
        step = node.engine.step(self.now)
        if isinstance(node.engine, DecodeEngine):
            for rid, _ in node.engine.take_allocated():
                prefill = self.nodes[self.pairs[rid].prefill.target]
                prefill.engine.met(rid)  # type: ignore[union-attr]
                self._kick(prefill)
        self.at(self.now + step.duration_seconds, "end", (node, step))

    def _end(self, what: tuple[Node, Step]) -> None:
        node, step = what
        node.running = False
        for output in step.outputs:
            if node.part is P:
                self.scheduler.first_token(prefill_id(output.rid), output.cached_tokens, self.now)
                self.scheduler.free(prefill_id(output.rid), self.now)
            else:
                self._token(node, output.rid, output.cached_tokens, done=output.finish is not None)
        if isinstance(node.engine, PrefillEngine):
            for prefilled in node.engine.take_prefilled():
                self.at(self.now + self.transfer.seconds(prefilled.tokens), "sent", (prefilled.rid, prefilled.token))
        self._kick(node)

    def _sent(self, what: tuple[str, int]) -> None:
        rid, token = what
        prefill, decode = (self.nodes[side.target] for side in self.pairs[rid])
        decode.engine.received(rid, token)  # type: ignore[union-attr]
        prefill.engine.sent(rid)  # type: ignore[union-attr]
        self._kick(prefill)
        self._kick(decode)

    def _token(self, node: Node, rid: str, cached_tokens: int, *, done: bool) -> None:
        if rid not in self.first:
            self.first[rid] = self.now
            if node.part is W:
                self.scheduler.first_token(rid, cached_tokens, self.now)
            path = Path.WHOLE if node.part is W else Path.PAIR
            self.paths.first_token(path, self.predicted[rid], self.now - self.asked[rid].at, self.now)
        else:
            self.gaps.append(self.now - self.last[rid])
        self.last[rid] = self.now
        if done:
            self.scheduler.free(rid, self.now)


def measure(name: str, rate: float, count: int, seed: int) -> dict[str, object]:
    """One fleet at one rate."""
    parts, conditional = FLEETS[name]
    run, started = Run(parts, conditional=conditional), time.process_time()
    run.play(workload(rate, count, seed))
    assert len(run.first) == count
    ttft = {rid: run.first[rid] - asked.at for rid, asked in run.asked.items()}
    turns = [seconds for rid, seconds in ttft.items() if not run.asked[rid].long]
    statistics = run.paths.statistics(run.now)
    return {
        "fleet": name,
        "requests_per_second": rate,
        "ttft_p50_seconds": float(np.median(list(ttft.values()))),
        "ttft_p99_seconds": float(np.quantile(list(ttft.values()), 0.99)),
        "turn_ttft_p50_seconds": float(np.median(turns)),
        "itl_mean_seconds": float(np.mean(run.gaps)),
        "itl_p99_seconds": float(np.quantile(run.gaps, 0.99)),
        "itl_p999_seconds": float(np.quantile(run.gaps, 0.999)),
        "whole": statistics.whole,
        "pair": statistics.pair,
        "cpu_seconds": time.process_time() - started,
    }


def main(arguments: list[str] | None = None) -> int:
    """Measure all, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=File, metavar="FILE", help="write the figures there, too")
    parser.add_argument("--requests", type=int, default=600, metavar="N", help="of each run (600)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the workload (0)")
    options = parser.parse_args(arguments)
    warm_up()
    rows = [measure(name, rate, options.requests, options.seed) for rate in RATES for name in FLEETS]
    columns = ("ttft_p50", "ttft_p99", "turn_ttft_p50", "itl_mean", "itl_p99", "itl_p999")
    print(f"{'milliseconds':42} req/s " + " ".join(f"{name:>13}" for name in columns) + "   whole/pair")
    for row in rows:
        figures = " ".join(f"{1000 * float(str(row[name + '_seconds'])):13.1f}" for name in columns)
        print(f"{row['fleet']:42} {row['requests_per_second']:5} {figures} {row['whole']:8}/{row['pair']}")
    if options.json:
        options.json.write_text(
            json.dumps({"options": {"requests": options.requests, "seed": options.seed}, "rows": rows}, indent=1)
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
