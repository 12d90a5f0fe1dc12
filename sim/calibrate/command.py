"""`python -m sim calibrate`."""

from __future__ import annotations

import asyncio
import logging
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from events.command import UsageError, natural, positive, server_url
from sim.calibrate import logs
from sim.calibrate.client import Client, session
from sim.calibrate.live import Measurement, Plan, fit_live
from sim.calibrate.probes import read_probes
from sim.engine.timing.profile import Profile
from sim.recordings.steps import read_steps

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

    from sim.engine.timing import StepTiming

logger = logging.getLogger(__name__)

EXAMPLE = """\
examples:
  python -m sim calibrate steps.jsonl.gz --requests requests.jsonl.gz -o mine.json     from an engine's step log
  python -m sim calibrate --url http://127.0.0.1:30000 -o mine.json                    from a live SGLang server at rest
  python -m sim.worker --profile mine.json                                             use it

The formats of step logs and of --requests are in docs/simulator.md.
"""
WARM_UP_SECONDS = 0.5
"""Steps that end so long before the first probe are the engine's warm-up."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command line."""
    parser.epilog = EXAMPLE
    plan = Plan()
    add = parser.add_argument
    add("steps", nargs="*", type=Path, metavar="STEPS", help="step logs")
    add("--requests", type=Path, metavar="FILE", help="single requests to the engine that wrote the one step log")
    add("--url", type=server_url, help="or: a live server at rest, to which prompts of random ids are sent")
    add("-o", "--output", type=Path, required=True, metavar="FILE", help="the profile to write")
    add("--origin", default="", metavar="TEXT", help="what was measured, for the profile")
    add("--linear-from", type=natural, default=384, metavar="N", help="prefills of fewer tokens: the floor only (384)")
    add("--graph-tokens", type=natural, default=8192, metavar="N", help="largest captured prefill; 0: none (8192)")
    add("--chunked-prefill-size", type=positive, default=8192, metavar="N", help="the live server's (8192)")
    for name, values, text in (
        ("--new", plan.new_tokens, "prompt tokens"),
        ("--cached", plan.cached_tokens, "cached tokens before them"),
        ("--batch", plan.batches, "sequences that decode together"),
        ("--context", plan.contexts, "tokens of each"),
    ):
        add(name, type=numbers, default=list(values), metavar="N,…", help=f"{text} ({','.join(map(str, values))})")
    add(
        "--repeats",
        type=positive,
        default=plan.repeats,
        metavar="N",
        help=f"of each measurement; the quickest counts ({plan.repeats})",
    )
    add("--decode-tokens", type=positive, default=plan.decode_tokens, metavar="N", help=f"({plan.decode_tokens})")
    add("--max-total-tokens", type=positive, default=plan.most_tokens, metavar="N", help=f"({plan.most_tokens})")


def numbers(text: str) -> list[int]:
    """Whole numbers, separated by commas.

    :raises argparse.ArgumentTypeError: one is none.
    """
    return [natural(part) for part in text.split(",")]


def run(options: argparse.Namespace) -> int:
    """Do what the command line says.

    :raises UsageError: it cannot be done; the message is one line.
    """
    logging.basicConfig(format="%(levelname).1s %(message)s", stream=sys.stderr)
    if bool(options.steps) == bool(options.url):
        raise UsageError("either step logs or --url, please")
    timing, fit, origin = _from_server(options) if options.url else _from_logs(options)
    Profile(options.output.stem, timing, options.origin or origin, fit=fit).save(options.output)
    sys.stdout.write(f"{describe(timing, fit)}written: {options.output}\n")
    return 0


def describe(timing: StepTiming, fit: dict[str, Any]) -> str:
    """A profile's numbers and how well they fit, in lines."""
    lines = [f"{name:28}{value:.6g}" for name, value in asdict(timing).items() if name != "speed"]
    for name, part in fit.items():
        errors = f"mean error {part['mape_percent']} %, p95 {part['p95_percent']} %, bias {part['bias_percent']:+} %"
        lines.append(f"{name}: {part['rows']} rows, {errors}")
    return "\n".join(lines) + "\n"


def _from_logs(options: argparse.Namespace) -> tuple[StepTiming, dict[str, Any], str]:
    probes = []
    if options.requests:
        if len(options.steps) > 1:
            raise UsageError("--requests goes with one step log")
        probes = read_probes(options.requests)
    else:
        logger.warning("no --requests: the time of a request outside of steps is taken for 0")
    steps = [step for path in options.steps for step in read_steps(path)]
    if probes:
        begin = probes[0].sent_at - WARM_UP_SECONDS
        steps = [step for step in steps if step.launched_at is None or step.launched_at > begin]
    timing, fit = logs.fit_steps(steps, probes, linear_from=options.linear_from, graph_tokens=options.graph_tokens)
    return timing, fit, f"Fitted to {len(steps)} logged steps by python -m sim calibrate."


def _from_server(options: argparse.Namespace) -> tuple[StepTiming, dict[str, Any], str]:
    plan = Plan(
        new_tokens=options.new,
        cached_tokens=options.cached,
        batches=options.batch,
        contexts=options.context,
        decode_tokens=options.decode_tokens,
        repeats=options.repeats,
        chunk_tokens=options.chunked_prefill_size,
        graph_tokens=options.graph_tokens,
        linear_from=options.linear_from,
        most_tokens=options.max_total_tokens,
    )
    timing, fit = asyncio.run(calibrate(options.url, plan, _say))
    return timing, fit, f"Measured on {options.url} by python -m sim calibrate."


async def calibrate(url: str, plan: Plan, progress: Callable[[str], None]) -> tuple[StepTiming, dict[str, Any]]:
    """Measure a live server and fit.

    :raises UsageError: the server does not answer as it should, or too little was measured.
    """
    async with session() as connection:
        measurement = Measurement(Client(url, connection), plan, progress)
        return fit_live(await measurement.probes(), await measurement.series(), plan)


def _say(line: str) -> None:
    sys.stderr.write(line + "\n")
