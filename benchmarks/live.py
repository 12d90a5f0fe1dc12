"""A slice of a real trace through the whole live stack: real NATS, adapters, fake workers, the router, OpenAI's client.

    python -m benchmarks.live TRACE [--requests 1200] [--compress 5] [--shrink 16] [--json FILE]

TRACE is a Mooncake trace (JSON lines: timestamp in ms, input_length, output_length, hash_ids of 512-token blocks). Lengths are
divided by --shrink (prefix structure is kept: a 512-token block becomes a block of 512 / shrink tokens) and arrival times by
--compress, so that two cores can serve it. One run under KV events, one under prediction, one under round-robin, each on empty
caches; beside them the cached ratio that one LRU cache as large as all workers' together would reach.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import tempfile
import time
from collections import OrderedDict
from pathlib import Path
from typing import NamedTuple

from openai import AsyncOpenAI
from rich.console import Console
from rich.progress import Progress, TaskID

from launch.conversations import Summary, Turn, summarise
from launch.demo import RUNS, flush, table
from launch.stack import MODEL_NAME, Stack

TRACE_BLOCK_TOKENS = 512
PAGE_TOKENS = 16
VOCABULARY = range(3, 2000)


class Arrival(NamedTuple):
    """One request of the trace, scaled."""

    at_seconds: float
    prompt: list[int]
    output_tokens: int


class Fleet(NamedTuple):
    """The fake workers."""

    workers: int = 4
    capacity_tokens: int = 65536
    prefill_tokens_per_second: int = 6000


def block_tokens(hash_id: int, count: int) -> list[int]:
    """The tokens that stand for one block of the trace: equal ids, equal tokens."""
    return random.Random(hash_id).choices(VOCABULARY, k=count)


def read(path: Path, requests: int, compress: float, shrink: int) -> list[Arrival]:
    """The first `requests` requests, shrunk and compressed."""
    size = TRACE_BLOCK_TOKENS // shrink
    arrivals = []
    with path.open() as lines:
        for _, line in zip(range(requests), lines, strict=False):
            row = json.loads(line)
            tokens = [token for block in row["hash_ids"] for token in block_tokens(block, size)]
            length = max(1, row["input_length"] // shrink)
            arrivals.append(
                Arrival(row["timestamp"] / 1000 / compress, tokens[:length], max(1, row["output_length"] // shrink))
            )
    return arrivals


def pooled_bound(arrivals: list[Arrival], capacity_tokens: int) -> float:
    """Cached ratio of one LRU cache of whole pages for everybody, prompts only, in arrival order."""
    cache: OrderedDict[tuple[int, ...] | int, None] = OrderedDict()
    cached = total = 0
    for arrival in arrivals:
        total += len(arrival.prompt)
        prefix, hit, keys = 0, True, []
        for end in range(PAGE_TOKENS, len(arrival.prompt) + 1, PAGE_TOKENS):
            prefix = hash((prefix, *arrival.prompt[end - PAGE_TOKENS : end]))
            keys.append(prefix)
            hit = hit and prefix in cache and end < len(arrival.prompt)
            cached += PAGE_TOKENS if hit else 0
        for key in reversed(keys):  # the root is used last: leaves go first
            cache[key] = None
            cache.move_to_end(key)
        while len(cache) > capacity_tokens // PAGE_TOKENS:
            cache.popitem(last=False)
    return cached / total


async def send(client: AsyncOpenAI, arrival: Arrival) -> Turn:
    """One streamed completion of token ids."""
    started = time.perf_counter()
    reply = await client.completions.with_raw_response.create(
        model=MODEL_NAME,
        prompt=arrival.prompt,
        max_tokens=arrival.output_tokens,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
    )
    ttft_seconds, usage = None, None
    async for chunk in reply.parse():
        ttft_seconds = ttft_seconds or time.perf_counter() - started
        usage = chunk.usage or usage
    assert usage is not None
    assert ttft_seconds is not None
    cached = (usage.prompt_tokens_details and usage.prompt_tokens_details.cached_tokens) or 0
    return Turn(reply.headers["x-warmpath-worker"], usage.prompt_tokens, cached, ttft_seconds)


async def replay(url: str, arrivals: list[Arrival], progress: Progress, task: TaskID) -> list[Turn]:
    """Send every request at its time; all answers."""
    turns: list[Turn] = []
    began = time.perf_counter()

    async def one(client: AsyncOpenAI, arrival: Arrival) -> None:
        await asyncio.sleep(max(0.0, arrival.at_seconds - (time.perf_counter() - began)))
        turns.append(await send(client, arrival))
        progress.advance(task)

    async with AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client, asyncio.TaskGroup() as group:
        for arrival in arrivals:
            group.create_task(one(client, arrival))
    return turns


async def measure(folder: Path, arrivals: list[Arrival], fleet: Fleet, console: Console) -> dict[str, Summary]:
    """All runs, one after another."""
    options = ("--max-total-tokens", str(fleet.capacity_tokens))
    options += ("--prefill-tokens-per-second", str(fleet.prefill_tokens_per_second), "--decode-step-ms", "5")
    summaries = {}
    with Progress(console=console, transient=True) as progress:
        async with Stack(folder, workers=fleet.workers, worker_options=options) as stack:
            for run in RUNS:
                task = progress.add_task(run.name, total=len(arrivals))
                await flush(stack.worker_urls)
                router = await stack.route(*run.options, "--min-workers", str(fleet.workers), name=f"router-{run.name}")
                turns = await replay(router.announced["http"], arrivals, progress, task)
                summaries[run.name] = summarise(turns, fleet.workers)
    return summaries


def main() -> int:
    """Measure; see the module's text."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.live", description=__doc__.split("\n\n")[0])
    parser.add_argument("trace", type=Path, metavar="TRACE")
    parser.add_argument("--requests", type=int, default=1200)
    parser.add_argument("--compress", type=float, default=5.0)
    parser.add_argument("--shrink", type=int, default=16)
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    if not options.trace.is_file():
        parser.error(f"{options.trace} is no file")
    fleet, console = Fleet(), Console()
    arrivals = read(options.trace, options.requests, options.compress, options.shrink)
    bound = pooled_bound(arrivals, fleet.workers * fleet.capacity_tokens)
    with tempfile.TemporaryDirectory(prefix="warmpath-live-") as folder:
        summaries = asyncio.run(measure(Path(folder), arrivals, fleet, console))
    console.print(table(summaries))
    console.print(f"pooled-cache bound: {bound:.1%} of prompt tokens")
    if options.json:
        figures = {name: summary._asdict() for name, summary in summaries.items()}
        options.json.write_text(json.dumps({"pooled_bound_ratio": bound, "runs": figures}, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
