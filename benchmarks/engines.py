r"""A slice of a trace through the router over SGLang servers that are running: policies compared on real engines.

    python -m benchmarks.engines TRACE --engine http://127.0.0.1:30000 --engine http://127.0.0.1:30001 \
        [--policy warm --policy round-robin] [--gateway 'NAME=COMMAND --port {port} --workers {engines}'] [--seconds 0:240] \
        [--rate 1] [--drain 60] [--json FILE]

Starts NATS, an adapter beside each server, and in the order given for each policy a router and for each rival gateway its
command; flushes the caches; sends the requests of the slice at their times as token ids to its `/generate` and notes every
token's time. Equal content ids of the trace are equal tokens. What is not done --drain seconds after the last request was sent
is given up, and counted; so is what fails. Which server took a request is known of our own router alone.

The servers: started with KV events (docs/sglang.md). Weights do not matter for times (`--load-format dummy`).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
import time
from collections import Counter
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

from benchmarks.gateway import Gateway
from events.command import Parser
from launch.process import ProcessFailed
from launch.stack import Stack
from sim.traces.mooncake import read

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from numpy.typing import NDArray

    from sim.traces import Trace

PREFIX = b"data: {"


class Policy(NamedTuple):
    """Our router, with one of its policies."""

    name: str


class Replay(NamedTuple):
    """What came of the requests of a load."""

    answers: list[Answer]
    """Those that were answered in full."""
    failures: list[str]
    """Why the others failed; what was given up is in neither."""


class Answer(NamedTuple):
    """One request, as its client saw it. Seconds from when it was sent."""

    request: int
    at_seconds: float
    """When it was sent, after the start."""
    worker: str | None
    """None: its gateway does not say."""
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

    :raises aiohttp.ClientError: it failed, maybe within its stream.
    """
    body = load.body(request)
    sent = time.perf_counter()
    seconds, counts, meta = [], [], {}
    async with session.post(f"{url}/generate", data=body, headers={"Content-Type": "application/json"}) as reply:
        reply.raise_for_status()
        async for line in reply.content:
            if line.startswith(PREFIX):
                seconds.append(time.perf_counter() - sent)
                meta = msgspec.json.decode(line[6:]).get("meta_info")
                if meta is None:
                    raise aiohttp.ClientPayloadError(line.decode().strip())
                counts.append(meta["completion_tokens"])
        worker = reply.headers.get("X-Warmpath-Worker")
    if not counts:
        raise aiohttp.ClientPayloadError("no token came")
    return Answer(request, sent - began, worker, meta["prompt_tokens"], meta["cached_tokens"], seconds, counts)


async def replay(url: str, load: Load, rate: float, drain_seconds: float, bar: Progress, task: TaskID) -> Replay:
    """All requests at their times."""
    answers: list[Answer] = []
    failures: list[str] = []
    began = time.perf_counter()

    async def one(session: aiohttp.ClientSession, request: int, at_seconds: float) -> None:
        await asyncio.sleep(max(0.0, at_seconds / rate - (time.perf_counter() - began)))
        try:
            answers.append(await ask(session, url, load, request, began))
        except aiohttp.ClientError as error:
            failures.append(f"request {request}: {error}")
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
    return Replay(answers, failures)


def summary(replayed: Replay, requests: int, workers: int) -> dict[str, Any]:
    """A run in figures: seconds, ratios, requests.

    :raises ProcessFailed: nothing was answered.
    """
    answers = replayed.answers
    if not answers:
        raise ProcessFailed(
            f"no request was answered in full; {len(replayed.failures)} failed: {replayed.failures[:1]}"
        )
    ttft = np.array([answer.ttft_seconds for answer in answers])
    itl = np.array([answer.itl_seconds for answer in answers if answer.itl_seconds is not None])
    gaps = np.concatenate([np.diff(answer.token_seconds) for answer in answers])
    return {
        "requests": requests,
        "unfinished": requests - len(answers) - len(replayed.failures),
        "failed": len(replayed.failures),
        "cached_token_ratio": sum(a.cached_tokens for a in answers) / sum(a.prompt_tokens for a in answers),
        "ttft_seconds": {"mean": ttft.mean(), **_percentiles(ttft)},
        "itl_seconds": {"mean": itl.mean(), **_percentiles(itl)},
        "gap_seconds": _percentiles(gaps),
        "busiest_to_mean": _busiest_to_mean([answer.worker for answer in answers], workers),
    }


def _busiest_to_mean(named: Sequence[str | None], workers: int) -> float | None:
    """The busiest server's requests by those of the mean one; None: not every answer names its server."""
    if None in named:
        return None
    return max(Counter(named).values()) * workers / len(named)


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


@asynccontextmanager
async def serving(contender: Policy | Gateway, stack: Stack, options: argparse.Namespace) -> AsyncIterator[str]:
    """The URL of a router or a rival before the servers; stopped at the end."""
    if isinstance(contender, Gateway):
        async with contender.running(options.engine, stack.folder / f"{contender.name}.log") as url:
            yield url
    else:
        wanted = ["--min-workers", str(len(options.engine)), "--policy", contender.name]
        router = await stack.route(*wanted, *options.router_option)
        try:
            yield router.announced["http"]
        finally:
            await router.stop()


async def compare(options: argparse.Namespace, load: Load, console: Console) -> dict[str, Any]:
    """Everyone in turn, each on empty caches."""
    runs: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder, Progress(console=console) as bar:
        async with adapters(options.engine, Path(folder), options.block_size) as stack:
            for contender in options.contenders:
                async with serving(contender, stack, options) as url:
                    await flush(options.engine)
                    task = bar.add_task(contender.name, total=len(load.requests))
                    replayed = await replay(url, load, options.rate, options.drain, bar, task)
                runs[contender.name] = summary(replayed, len(load.requests), len(options.engine))
                if replayed.failures:
                    console.print(
                        f"{contender.name}: {len(replayed.failures)} failed, the first: {replayed.failures[0]}"
                    )
    return runs


def table(runs: dict[str, Any]) -> Table:
    """The runs side by side."""
    rows = Table(
        "policy", "failed", "unfinished", "cached", "TTFT mean s", "p50", "p99", "ITL mean ms", "p99", "busiest / mean"
    )
    for policy, run in runs.items():
        ttft, itl = run["ttft_seconds"], run["itl_seconds"]
        rows.add_row(
            policy,
            f"{run['failed']}",
            f"{run['unfinished']} of {run['requests']}",
            f"{run['cached_token_ratio']:.1%}",
            *(f"{ttft[name]:.2f}" for name in ("mean", "p50", "p99")),
            *(f"{itl[name] * 1e3:.1f}" for name in ("mean", "p99")),
            "?" if run["busiest_to_mean"] is None else f"{run['busiest_to_mean']:.2f}",
        )
    return rows


def _interval(text: str) -> tuple[float, float]:
    first, _, last = text.partition(":")
    return float(first), float(last)


def parser() -> Parser:
    """The command line."""
    made = Parser(
        prog="python -m benchmarks.engines", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("trace", type=Path, metavar="TRACE", help="Mooncake's format")
    made.add_argument("--engine", action="append", required=True, metavar="URL", help="a running server; repeatable")
    made.add_argument(
        "--policy",
        action="append",
        dest="contenders",
        type=Policy,
        metavar="NAME",
        help="repeatable; default: warm, round-robin",
    )
    made.add_argument(
        "--gateway",
        action="append",
        dest="contenders",
        type=Gateway.parse,
        metavar="NAME=COMMAND",
        help="a rival's command, with {port} and {engines} (URLs with spaces between) in it; repeatable",
    )
    made.add_argument("--seconds", type=_interval, default=(0.0, 240.0), metavar="FROM:TO", help="slice of the trace")
    made.add_argument("--rate", type=float, default=1.0, help="arrivals so many times as fast (default: 1)")
    made.add_argument("--drain", type=float, default=60.0, metavar="S", help="patience after the last request")
    made.add_argument("--block-size", type=int, default=64, help="routing block (default: 64)")
    made.add_argument("--vocabulary", type=int, default=100_000, help="token ids lie in [1000, this); default: 100000")
    made.add_argument("--router-option", action="append", default=[], metavar="OPTION", help="passed on; repeatable")
    made.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    return made


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """What was asked for; two that are called the same are an error, status 2."""
    made = parser()
    options = made.parse_args(arguments)
    options.contenders = options.contenders or [Policy("warm"), Policy("round-robin")]
    names = Counter(contender.name for contender in options.contenders)
    if twice := [name for name, count in names.items() if count > 1]:
        made.error(f"{twice[0]} is named twice: figures are kept by name")
    return options


def main() -> int:
    """See the module's text."""
    options = parse()
    console = Console()
    first, last = options.seconds
    load = Load(read(options.trace), first, last, range(1000, options.vocabulary))
    try:
        runs = asyncio.run(compare(options, load, console))
    except ProcessFailed as error:
        console.print(str(error), markup=False)
        return 1
    console.print(table(runs))
    if options.json:
        setting = {"trace": options.trace.stem, "seconds": options.seconds, "rate": options.rate}
        options.json.write_text(json.dumps({**setting, "engines": len(options.engine), "runs": runs}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
