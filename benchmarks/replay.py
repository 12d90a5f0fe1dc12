"""A recorded trace through our simulator and through Dynamo's, in turns: do they agree, and what do they cost?

    python -m benchmarks.replay conversation.jsonl [--rival PYTHON] [--json FILE]

Both sides: Dynamo's polynomial timing, blocks of 64 tokens, 16,384 of them a worker, 8 workers. Each run is a process of its own.
The rival's policy `kv_router` breaks ties by chance, so it runs several times, and its range is what counts.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from statistics import mean, median
from typing import TYPE_CHECKING

from benchmarks.figures import Figure, Skipped, against, at_most, report

if TYPE_CHECKING:
    from collections.abc import Iterator

Answer = dict[str, float]
HERE = Path(__file__).parent
ROUNDS = 3
BACKENDS = ("sglang", "vllm")
POLICIES = {"round-robin": "round_robin", "linear": "kv_router"}
CLOSE = 0.05
"""Times that differ by no more than this agree."""
CLOSE_POINTS = 0.5
TIMES = 10
MOST_MEMORY_MB = 300
MOST_SECONDS = 180.0


def ours(*arguments: str) -> Answer:
    """One run of ours."""
    return _answer([sys.executable, "-m", "benchmarks.replay_ours", *arguments])


def rival(python: str, *arguments: str) -> Answer:
    """One run of Dynamo's.

    :raises ImportError: it is not installed there.
    """
    return _answer([python, str(HERE / "replay_rival.py"), *arguments])


def _answer(command: list[str]) -> Answer:
    done = subprocess.run(command, check=False, capture_output=True, text=True, cwd=HERE.parent)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no output"])[-1]
        raise ImportError(last) if "ModuleNotFoundError" in done.stderr else RuntimeError(done.stderr)
    answer: Answer = json.loads(done.stdout)
    return answer


def agreement(policy: str, backend: str, mine: list[Answer], theirs: list[Answer]) -> Iterator[Figure]:
    """Hit ratio, TTFT and token gap: ours against the range of the rival's runs."""
    name = f"{policy}, {backend} backend"
    for key, unit, text in (("hit", "%", "hit"), ("ttft_ms", "ms", "mean TTFT"), ("itl_ms", "ms", "mean ITL")):
        scale = 100 if key == "hit" else 1
        own, runs = median(run[key] for run in mine) * scale, [run[key] * scale for run in theirs]
        slack = CLOSE_POINTS if key == "hit" else CLOSE * mean(runs)
        reach = f"± {CLOSE_POINTS} points" if key == "hit" else f"± {CLOSE:.0%}"
        met = min(runs) - slack <= own <= max(runs) + slack
        yield Figure(f"{name}: {text}", unit, own, median(runs), reach, met)


def conversation(trace: str, python: str, rounds: int) -> Iterator[Figure | Skipped]:
    """The rows about a trace."""
    for policy, mode in POLICIES.items():
        mine, theirs = list[Answer](), {backend: list[Answer]() for backend in BACKENDS}
        for _ in range(rounds):
            mine.append(ours(trace, "--policy", policy))
            try:
                for backend, runs in theirs.items():
                    runs.append(rival(python, trace, "--mode", mode, "--backend", backend))
            except ImportError as error:
                yield Skipped(f"{policy}: the rival", str(error))
                break
        for backend, runs in theirs.items():
            if runs:
                yield from agreement(policy, backend, mine, runs)
                cpu = [median(run["cpu_seconds"] for run in side) for side in (mine, runs)]
                yield against(f"{policy}, {backend} backend: CPU", "s", *cpu, TIMES)
        theirs_mb = [run["memory_mb"] for runs in theirs.values() for run in runs]
        own_mb = max(run["memory_mb"] for run in mine)
        yield at_most(f"{policy}: memory", "MB", own_mb, MOST_MEMORY_MB, median(theirs_mb) if theirs_mb else None)


def million() -> Iterator[Figure]:
    """A million short prompts over 256 workers."""
    answer = ours("--policy", "warm", "--workers", "256")
    name = f"{answer['requests']:,.0f} requests, 256 workers, warm"
    yield at_most(f"{name}: CPU", "s", answer["cpu_seconds"], MOST_SECONDS)
    yield Figure(f"{name}: memory", "MB", answer["memory_mb"])


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trace", help="JSON lines in Mooncake's format")
    parser.add_argument("--rival", default=sys.executable, metavar="PYTHON", help="with ai-dynamo-runtime installed")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="of each policy, both sides (default: %(default)s)")
    parser.add_argument("--no-million", action="store_true", help="leave the million requests out")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures there")
    options = parser.parse_args()
    trace = str(Path(options.trace).resolve())
    rows = [lambda: conversation(trace, options.rival, options.rounds)]
    report(rows if options.no_million else [*rows, million], options.json)


if __name__ == "__main__":
    main()
