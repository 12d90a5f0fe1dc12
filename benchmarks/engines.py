"""A slice of a trace through the router over SGLang servers that are running: policies compared on real engines.

    python -m benchmarks.engines TRACE --engine http://127.0.0.1:30000 --engine http://127.0.0.1:30001 \
        [--policy warm --policy round-robin] [--seconds 0:240] [--rate 1] [--drain 60] [--json FILE]

Starts NATS, an adapter beside each server, and for each policy a router; flushes the caches; sends the requests of the slice
at their times as token ids to the router's `/generate` and notes every token's time. Equal content ids of the trace are equal
tokens. What is not done --drain seconds after the last request was sent is given up, and counted.

The servers: started with KV events (docs/sglang.md). Weights do not matter for times (`--load-format dummy`).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import tempfile
import time
from contextlib import asynccontextmanager
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import aiohttp
import msgspec
import numpy as np
from rich.console import Console
from rich.progress import Progress, TaskID
from rich.table import Table

from launch.stack import Stack
from sim.traces.mooncake import read

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from numpy.typing import NDArray

    from sim.traces import Trace

PREFIX = b"data: {"


class Answer(NamedTuple):
    """One request, as its client saw it. Seconds from when it was sent."""

    request: int
    at_seconds: float
    """When it was sent, after the start."""
    worker: str
    prompt_tokens: int
    cached_tokens: int
    token_seconds: list[float]
    """When each chunk came."""
    token_counts: list[int]
    """How many tokens there were by then."""

    @property
    def ttft_seconds(self) -> float:
        """To the first token."""
        return self.token_seconds[0]

    @property
    def itl_seconds(self) -> float | None:
        """Mean time between tokens; None: there was only one."""
        tokens = self.token_counts[-1] - self.token_counts[0]
        return (self.token_seconds[-1] - self.token_seconds[0]) / tokens if tokens else None


class Load:
    """The requests of a trace's slice as bodies of `/generate`."""

    def __init__(self, trace: Trace, first_seconds: float, last_seconds: float, vocabulary: range) -> None:
        within = (trace.arrival_seconds >= first_seconds) & (trace.arrival_seconds < last_seconds)
        self.requests: list[int] = np.flatnonzero(within).tolist()
        self.at_seconds: list[float] = (trace.arrival_seconds[within] - first_seconds).tolist()
        self._trace = trace
        self._block = lru_cache(maxsize=None)(self._tokens)
        self._vocabulary = vocabulary

    def _tokens(self, content: int) -> NDArray[np.int64]:
        generator = np.random.Generator(np.random.PCG64(content))
        return generator.integers(self._vocabulary.start, self._vocabulary.stop, self._trace.block_tokens)

    def body(self, request: int) -> bytes:
        """A streamed request for exactly as many tokens as the trace has."""
        ids = self._trace.ids(request).tolist()
        prompt = np.concatenate([self._block(content) for content in ids])[: self._trace.input_tokens[request]]
        sampling = {"temperature": 0, "ignore_eos": True, "max_new_tokens": int(self._trace.output_tokens[request])}
        return msgspec.json.encode({"input_ids": prompt.tolist(), "sampling_params": sampling, "stream": True})


async def ask(session: aiohttp.ClientSession, url: str, load: Load, request: int, began: float) -> Answer:
    """Send one request and read its stream to the end.

    :raises aiohttp.ClientError: it failed.
    """
    body = load.body(request)
    sent = time.perf_counter()
    seconds, counts, last = [], [], b""
    async with session.post(f"{url}/generate", data=body, headers={"Content-Type": "application/json"}) as reply:
        reply.raise_for_status()
        async for line in reply.content:
            if line.startswith(PREFIX):
                seconds.append(time.perf_counter() - sent)
                last = line
                counts.append(msgspec.json.decode(line[6:])["meta_info"]["completion_tokens"])
        worker = reply.headers.get("X-Warmpath-Worker", "?")
    meta = msgspec.json.decode(last[6:])["meta_info"]
    return Answer(request, sent - began, worker, meta["prompt_tokens"], meta["cached_tokens"], seconds, counts)


async def replay(url: str, load: Load, rate: float, drain_seconds: float, bar: Progress, task: TaskID) -> list[Answer]:
    """All requests at their times; those answered in full."""
    answers: list[Answer] = []
    began = time.perf_counter()

    async def one(session: aiohttp.ClientSession, request: int, at_seconds: float) -> None:
        await asyncio.sleep(max(0.0, at_seconds / rate - (time.perf_counter() - began)))
        answers.append(await ask(session, url, load, request, began))
        bar.advance(task)

    connector = aiohttp.TCPConnector(limit=0)
    timeout = aiohttp.ClientTimeout(total=None)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout, read_bufsize=1 << 20) as session:
        tasks = [
            asyncio.create_task(one(session, request, at_seconds))
            for request, at_seconds in zip(load.requests, load.at_seconds, strict=True)
        ]
        done, late = await asyncio.wait(tasks, timeout=load.at_seconds[-1] / rate + drain_seconds)
        for straggler in late:
            straggler.cancel()
        await asyncio.gather(*late, return_exceptions=True)
        for finished in done:
            finished.result()
    return answers


def summary(answers: Sequence[Answer], requests: int, workers: int) -> dict[str, Any]:
    """A run in figures: seconds, ratios, requests."""
    ttft = np.array([answer.ttft_seconds for answer in answers])
    itl = np.array([answer.itl_seconds for answer in answers if answer.itl_seconds is not None])
    gaps = np.concatenate([np.diff(answer.token_seconds) for answer in answers])
    busiest = max(sum(answer.worker == worker for answer in answers) for worker in {a.worker for a in answers})
    return {
        "requests": requests,
        "unfinished": requests - len(answers),
        "cached_token_ratio": sum(a.cached_tokens for a in answers) / sum(a.prompt_tokens for a in answers),
        "ttft_seconds": {"mean": ttft.mean(), **_percentiles(ttft)},
        "itl_seconds": {"mean": itl.mean(), **_percentiles(itl)},
        "gap_seconds": _percentiles(gaps),
        "busiest_to_mean": busiest * workers / len(answers),
    }


def _percentiles(values: NDArray[np.float64]) -> dict[str, float]:
    return {f"p{share}": float(np.percentile(values, share)) for share in (50, 90, 99)}


@asynccontextmanager
async def adapters(engines: Sequence[str], folder: Path, block_size: int) -> AsyncIterator[Stack]:
    """NATS, and an adapter beside each server."""
    async with Stack(folder, workers=0, block_size=block_size) as stack:
        beside = [await stack.attach(url, f"adapter{number}") for number, url in enumerate(engines)]
        await asyncio.gather(*(adapter.ready() for adapter in beside))
        yield stack


async def flush(engines: Sequence[str]) -> None:
    """Empty every server's cache, once it is idle.

    :raises aiohttp.ClientResponseError: one is still busy after a minute.
    """
    async with aiohttp.ClientSession(raise_for_status=True) as session:
        for url in engines:
            await (await session.post(f"{url}/flush_cache", params={"timeout": "60"})).read()


async def compare(options: argparse.Namespace, load: Load, console: Console) -> dict[str, Any]:
    """Every policy in turn, each on empty caches."""
    runs: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder, Progress(console=console) as bar:
        async with adapters(options.engine, Path(folder), options.block_size) as stack:
            for policy in options.policy or ["warm", "round-robin"]:
                await flush(options.engine)
                wanted = ["--min-workers", str(len(options.engine)), "--policy", policy]
                router = await stack.route(*wanted, *options.router_option)
                task = bar.add_task(policy, total=len(load.requests))
                answers = await replay(router.announced["http"], load, options.rate, options.drain, bar, task)
                runs[policy] = summary(answers, len(load.requests), len(options.engine))
    return runs


def table(runs: dict[str, Any]) -> Table:
    """The runs side by side."""
    rows = Table("policy", "unfinished", "cached", "TTFT mean s", "p50", "p99", "ITL mean ms", "p99", "busiest / mean")
    for policy, run in runs.items():
        ttft, itl = run["ttft_seconds"], run["itl_seconds"]
        rows.add_row(
            policy,
            f"{run['unfinished']} of {run['requests']}",
            f"{run['cached_token_ratio']:.1%}",
            *(f"{ttft[name]:.2f}" for name in ("mean", "p50", "p99")),
            *(f"{itl[name] * 1e3:.1f}" for name in ("mean", "p99")),
            f"{run['busiest_to_mean']:.2f}",
        )
    return rows


def _interval(text: str) -> tuple[float, float]:
    first, _, last = text.partition(":")
    return float(first), float(last)


def main() -> None:
    """See the module's text."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trace", type=Path, metavar="TRACE", help="Mooncake's format")
    parser.add_argument("--engine", action="append", required=True, metavar="URL", help="a running server; repeatable")
    parser.add_argument("--policy", action="append", help="repeatable; default: warm, round-robin")
    parser.add_argument("--seconds", type=_interval, default=(0.0, 240.0), metavar="FROM:TO", help="slice of the trace")
    parser.add_argument("--rate", type=float, default=1.0, help="arrivals so many times as fast (default: 1)")
    parser.add_argument("--drain", type=float, default=60.0, metavar="S", help="patience after the last request")
    parser.add_argument("--block-size", type=int, default=64, help="routing block (default: 64)")
    parser.add_argument(
        "--vocabulary", type=int, default=100_000, help="token ids lie in [1000, this); default: 100000"
    )
    parser.add_argument("--router-option", action="append", default=[], metavar="OPTION", help="passed on; repeatable")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    options = parser.parse_args()
    console = Console()
    load = Load(read(options.trace), *options.seconds, vocabulary=range(1000, options.vocabulary))
    runs = asyncio.run(compare(options, load, console))
    console.print(table(runs))
    if options.json:
        setting = {"trace": options.trace.stem, "seconds": options.seconds, "rate": options.rate}
        options.json.write_text(json.dumps({**setting, "engines": len(options.engine), "runs": runs}, indent=1) + "\n")


if __name__ == "__main__":
    main()
