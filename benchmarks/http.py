"""The router as a carrier of bytes, against others before the same upstream: `python -m benchmarks.http [--quick] [--json FILE]`.

While a router is measured it alone has work; all stand before the same four ports of one upstream (`upstream.c`), and take turns,
round by round. Measured are the CPU time that all processes of a router spend per request under 32 connections, read from /proc,
and what a router adds to the median latency of a single client. Client (wrk), router and upstream share the machine: compare
figures of one run. Needs cc and wrk. Ours runs in text mode: `tokens` places by the prompt's tokens, `load` by load alone.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, NamedTuple

from benchmarks.figures import Figure, Skipped, report

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

HERE = Path(__file__).resolve().parent
TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
UPSTREAMS = 4
CONNECTIONS = 32
PROMPTS = 64
"""That requests.lua repeats."""
START_SECONDS = 90.0
ADDED_P50_US = 500.0
RIVALS = ("sglang-router", "smg", "vllm-router")
OURS = ("warmpath tokens", "warmpath load")
PROBE = b'{"model":"m","messages":[{"role":"user","content":"hi"}],"max_tokens":1,"stream":false}'


class Shape(NamedTuple):
    """What the clients ask for."""

    name: str
    words: int
    stream: bool


SHAPES = (
    Shape("short", 40, False),
    Shape("40 kB", 6200, False),
    Shape("short, 32 events", 40, True),
    Shape("40 kB, 32 events", 6200, True),
)


class Sample(NamedTuple):
    """One turn of one router."""

    cpu_us: float
    p50_us: float


@dataclass(frozen=True)
class Durations:
    """How long, and how often."""

    rounds: int
    saturated_seconds: int
    single_seconds: int


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def running(command: list[str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process, stopped at the end."""
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, cwd=HERE.parent)
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def commands(urls: list[str], model_path: Path) -> dict[str, Callable[[int], list[str]]]:
    """How each router is started on a port."""
    programs = Path(sys.executable).parent
    text_mode = [sys.executable, "-m", "router", "--use-sglang-tokenizer", "--no-kv-events", "--discovery", "memory"]
    text_mode += ["--http-host", "127.0.0.1", "--min-workers", str(len(urls)), "--log-level", "warning"]
    text_mode += [argument for url in urls for argument in ("--worker", url)]
    rival = ["--worker-urls", *urls, "--policy", "cache_aware", "--host", "127.0.0.1", "--log-level", "error"]
    programs_of = {
        "sglang-router": [sys.executable, "-m", "sglang_router.launch_router"],
        "smg": [str(programs / "smg"), "launch"],
        "vllm-router": [str(programs / "vllm-router")],
    }

    def started(program: list[str]) -> Callable[[int], list[str]]:
        return lambda port: [*program, *rival, "--port", str(port), "--prometheus-port", str(free_port())]

    return {
        "warmpath tokens": lambda port: [*text_mode, "--http-port", str(port), "--model-path", str(model_path)],
        "warmpath load": lambda port: [*text_mode, "--http-port", str(port)],
    } | {name: started(program) for name, program in programs_of.items()}


def wait_until_it_answers(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    """Until a request goes through.

    :raises RuntimeError: it does not in time, or the process ends.
    """
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v1/chat/completions", PROBE, {"Content-Type": "application/json"}
    )
    give_up = time.monotonic() + START_SECONDS
    while time.monotonic() < give_up and process.poll() is None:
        try:
            with urllib.request.urlopen(request, timeout=3) as response:
                if response.status == 200:
                    return
        except OSError:
            time.sleep(0.2)
    raise RuntimeError(f"it does not answer: {log.read_text(errors='replace')[-300:]}")


def cpu_seconds(pid: int) -> float:
    """CPU time of a process and of those that it started, so far."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        children = [
            int(child) for file in Path(f"/proc/{pid}/task").glob("*/children") for child in file.read_text().split()
        ]
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / TICKS_PER_SECOND + sum(cpu_seconds(child) for child in children)


def wrk(port: int, connections: int, shape: Shape, seconds: int) -> dict[str, float]:
    """What the clients saw.

    :raises RuntimeError: requests failed.
    """
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--timeout", "10s", "-s", str(HERE / "requests.lua")]
    command += [f"http://127.0.0.1:{port}", "--", str(shape.words), "true" if shape.stream else "false"]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    result: dict[str, float] = json.loads(said.splitlines()[-1])
    if result["errors"] or not result["requests"]:
        raise RuntimeError(f"{result['errors']} of {result['requests']} requests failed")
    return result


def turn(port: int, pid: int, shape: Shape, durations: Durations) -> Sample:
    """Warm up, saturate, then a single client.

    Every prompt comes before the clock starts: what one costs that was never seen is measured by `benchmarks.tokens`.
    """
    warm = 0.0
    while warm < 2 * PROMPTS:
        warm += wrk(port, 8, shape, 1)["requests"]
    before = cpu_seconds(pid)
    saturated = wrk(port, CONNECTIONS, shape, durations.saturated_seconds)
    used = cpu_seconds(pid) - before
    return Sample(used / saturated["requests"] * 1e6, wrk(port, 1, shape, durations.single_seconds)["p50_us"])


class Bench:
    """The upstream and all routers, started; a row a shape."""

    def __init__(self, parts: ExitStack, model_path: Path, durations: Durations) -> None:
        self._durations = durations
        folder = Path(parts.enter_context(tempfile.TemporaryDirectory()))
        ports = [free_port() for _ in range(UPSTREAMS)]
        subprocess.run(["cc", "-O2", "-o", str(folder / "upstream"), str(HERE / "upstream.c")], check=True)
        upstream = parts.enter_context(running([str(folder / "upstream"), *map(str, ports)], folder / "upstream.log"))
        self._routers = {"direct": (ports[0], upstream.pid)}
        self.skipped: dict[str, str] = {}
        for name, command in commands([f"http://127.0.0.1:{port}" for port in ports], model_path).items():
            try:
                self._routers[name] = self._start(parts, command(free_port()), folder / f"{name}.log")
            except (RuntimeError, OSError) as error:
                self.skipped[name] = " ".join(str(error).split())

    def _start(self, parts: ExitStack, command: list[str], log: Path) -> tuple[int, int]:
        port = int(command[command.index("--port" if "--port" in command else "--http-port") + 1])
        process = parts.enter_context(running(command, log))
        wait_until_it_answers(port, process, log)
        return port, process.pid

    def row(self, shape: Shape) -> Iterator[Figure | Skipped]:
        """All routers on one shape, in turns; ours against the best and against each rival."""
        samples: dict[str, list[Sample]] = {name: [] for name in self._routers}
        for _ in range(self._durations.rounds):
            for name, (port, pid) in list(self._routers.items()):
                try:
                    samples[name].append(turn(port, pid, shape, self._durations))
                except (RuntimeError, subprocess.CalledProcessError) as error:
                    yield Skipped(f"{name}, {shape.name}", str(error))
                    samples.pop(name)
                    self._routers.pop(name)
        medians = {
            name: Sample(median(s.cpu_us for s in taken), median(s.p50_us for s in taken))
            for name, taken in samples.items()
            if taken
        }
        for ours in OURS:
            if ours in medians:
                yield from _against_rivals(ours, shape, medians)


def _against_rivals(ours: str, shape: Shape, medians: dict[str, Sample]) -> Iterator[Figure]:
    mine, direct = medians[ours], medians["direct"].p50_us
    for rival in RIVALS:
        if rival in medians:
            theirs = medians[rival].cpu_us
            name = f"CPU per request, {shape.name}: {ours} / {rival}"
            yield Figure(name, "us", mine.cpu_us, theirs, "below the rival", mine.cpu_us < theirs)
    added = mine.p50_us - direct
    best = min((medians[rival].p50_us - direct for rival in RIVALS if rival in medians), default=None)
    bound = f"<= {ADDED_P50_US:g} us" if shape.stream else ""
    name = f"added p50 at one client, {shape.name}: {ours} / best rival"
    yield Figure(name, "us", added, best, bound, added <= ADDED_P50_US if shape.stream else None)


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.http", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one short round: does it run? the figures mean little")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here too")
    parser.add_argument("--model-path", type=Path, metavar="DIR", help="tokenizer for ours (default: the simulator's)")
    options = parser.parse_args()
    if missing := [tool for tool in ("cc", "wrk") if shutil.which(tool) is None]:
        parser.error(f"{' and '.join(missing)} not found: install a C compiler and wrk (apt-get install gcc wrk)")
    if options.model_path is None:
        from sim import tinymodel

        options.model_path = tinymodel.PATH
    durations = Durations(1, 1, 1) if options.quick else Durations(3, 4, 2)
    with ExitStack() as parts:
        bench = Bench(parts, options.model_path, durations)
        skipped = [Skipped(name, reason) for name, reason in bench.skipped.items()]
        rows = [lambda shape=shape: bench.row(shape) for shape in SHAPES]
        report([*rows, lambda: skipped], options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
