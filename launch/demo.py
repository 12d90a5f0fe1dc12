"""`make demo`: the same conversations three times over four fake workers and a real NATS server.

Once routed by KV events (`warm`), once by prediction (`--no-kv-events`), once in turn (`round-robin`); a table, and a last line
`demo ok: cached W% warm, P% predicted, R% round-robin`. The exit status is 0 only if warm reuses more cache than round-robin.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import aiohttp
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from .conversations import Summary, Workload, converse, summarise
from .process import ProcessFailed
from .stack import MODEL_NAME, Stack

WORKERS = 4


class Run(NamedTuple):
    """One way of routing."""

    name: str
    options: tuple[str, ...]


RUNS = (
    Run("warm", ("--policy", "warm")),
    Run("predicted", ("--policy", "warm", "--no-kv-events")),
    Run("round-robin", ("--policy", "round-robin")),
)
# Small caches, so that no worker can hold all conversations, and a slow prefill, so that a cache hit can be felt.
WORKER_OPTIONS = ("--max-total-tokens", "16384", "--prefill-tokens-per-second", "5000", "--decode-step-ms", "4")


async def flush(urls: list[str]) -> None:
    """Empty every worker's cache, so that each run starts cold."""
    async with aiohttp.ClientSession() as session:
        for url in urls:
            async with session.post(f"{url}/flush_cache") as reply:
                reply.raise_for_status()


async def demonstrate(folder: Path, load: Workload, console: Console) -> dict[str, Summary]:
    """All runs, one after another, over the same workers."""
    summaries: dict[str, Summary] = {}
    with Progress(console=console, transient=True) as progress:
        steps = progress.add_task("starting NATS, 4 fake workers and their adapters", total=len(RUNS) + 1)
        async with Stack(folder, workers=WORKERS, worker_options=WORKER_OPTIONS) as stack:
            progress.advance(steps)
            for run in RUNS:
                progress.update(steps, description=f"{load.conversations} conversations, {run.name}")
                await flush(stack.worker_urls)
                router = await stack.route(*run.options, "--min-workers", str(WORKERS), name=f"router-{run.name}")
                turns = await converse(router.announced["http"], MODEL_NAME, load)
                summaries[run.name] = summarise(turns, WORKERS)
                progress.advance(steps)
    return summaries


def table(summaries: dict[str, Summary]) -> Table:
    """The runs side by side."""
    result = Table(title="The same conversations, routed three ways")
    for column in ("routing", "requests", "cached tokens", "TTFT p50", "TTFT p99", "busiest / mean worker"):
        result.add_column(column, justify="left" if column == "routing" else "right")
    for name, run in summaries.items():
        result.add_row(
            name,
            str(run.requests),
            f"{run.cached_ratio:.1%}",
            f"{1000 * run.ttft_p50_seconds:.0f} ms",
            f"{1000 * run.ttft_p99_seconds:.0f} ms",
            f"{run.spread:.2f}",
        )
    return result


def verdict(summaries: dict[str, Summary]) -> tuple[str, int]:
    """The last line and the exit status."""
    warm, predicted, turn = (summaries[run.name].cached_ratio for run in RUNS)
    ok = warm > turn
    line = f"cached {warm:.0%} warm, {predicted:.0%} predicted, {turn:.0%} round-robin"
    return f"demo {'ok' if ok else 'FAILED: warm is no better'}: {line}", 0 if ok else 1


def main() -> int:
    """Run the demo; see the module's text."""
    parser = argparse.ArgumentParser(prog="python -m launch.demo", description=__doc__.split("\n\n")[0])
    defaults = Workload()
    parser.add_argument("--conversations", type=int, default=defaults.conversations)
    parser.add_argument("--turns", type=int, default=defaults.turns)
    parser.add_argument("--logs", type=Path, help="keep the parts' logs here (default: a temporary folder)")
    options = parser.parse_args()
    load = defaults._replace(conversations=options.conversations, turns=options.turns)
    console = Console()
    with tempfile.TemporaryDirectory(prefix="warmpath-demo-") as scratch:
        try:
            summaries = asyncio.run(demonstrate(options.logs or Path(scratch), load, console))
        except ProcessFailed as error:
            sys.stderr.write(f"demo FAILED: {error}\n")
            return 1
    console.print(table(summaries))
    line, status = verdict(summaries)
    sys.stdout.write(f"{line}\n")
    return status


if __name__ == "__main__":
    sys.exit(main())
