"""`python -m sim.worker`."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import uvloop

from events.command import Parser, seconds
from sim import tinymodel
from sim.engine import StepTiming, TransferTiming
from sim.engine.timing import profile
from sim.worker import FakeWorker, WorkerConfig, sglang_options

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sim.engine import TimingModel

EXAMPLE = """\
example: a worker with a small cache, ten times as fast as an 8B model on an H200, and a request to it

  python -m sim.worker --port 30000 --max-total-tokens 20000 --speed 10
  curl -s http://127.0.0.1:30000/v1/chat/completions -H 'Content-Type: application/json' \\
       -d '{"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 8}'

Once it serves it prints one line: ready {"http": PORT, "kv_events": PORT, "replay": PORT, "load": PORT, "bootstrap": PORT}
Faults on demand: POST /_fault {"kind": "error|hang|cut|die|drop_events", "after_tokens": 0, "count": 1}
"""


def port_or_auto(text: str) -> int | None:
    """A port; `auto` is None."""
    return None if text == "auto" else int(text)


def positive_number(text: str) -> float:
    """A positive, finite number.

    :raises argparse.ArgumentTypeError: it is none.
    """
    try:
        return seconds(text)
    except argparse.ArgumentTypeError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number") from None


def parser() -> Parser:
    """The command line."""
    made = Parser(
        prog="python -m sim.worker",
        description="A fake SGLang worker: real protocols, a real prefix cache, modelled time, no GPU.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = made.add_argument
    add("--host", default="127.0.0.1", help="address to serve on (127.0.0.1)")
    add("--port", type=int, default=0, help="HTTP port; 0: any free one (0)")
    add("--model-path", type=Path, default=tinymodel.PATH, metavar="DIR", help="tokenizer and config (the tiny model)")
    add("--served-model-name", metavar="NAME", help="what /v1/models says (the path)")
    add("--page-size", type=int, default=16, metavar="N", help="tokens per KV page (16)")
    add("--max-total-tokens", type=int, default=65_536, metavar="N", help="KV pool of each rank (65536)")
    add("--chunked-prefill-size", type=int, default=8192, metavar="N", help="most tokens of one prefill (8192)")
    add("--max-running-requests", type=int, metavar="N", help="most requests decoding at once (half the pool, 2048)")
    add("--schedule-policy", choices=("fcfs", "lpm"), default="fcfs", help="order of the queue (fcfs)")
    add("--enable-mixed-chunk", action="store_true", help="running requests decode along with a prefill")
    add("--disable-overlap-schedule", action="store_true", help="plan a step only when the one before it is done")
    add("--context-length", type=int, metavar="N", help="prompt and output together (the model's)")
    add(
        "--dp-size",
        "--dp",
        "--data-parallel-size",
        type=int,
        default=1,
        metavar="N",
        help="ranks, each with a cache of its own (1)",
    )
    add("--kv-events-port", type=port_or_auto, metavar="PORT", help="of rank 0, the next follow; 0: off (auto)")
    add("--replay-port", type=port_or_auto, metavar="PORT", help="likewise, replay of missed events (auto)")
    add("--load-port", type=port_or_auto, metavar="PORT", help="likewise, load reports (auto)")
    add("--topic", default="", help="ZMQ topic of the events (empty)")
    add("--decode-log-interval", type=int, default=40, metavar="N", help="decode steps between two event batches (40)")
    add("--version", default="0.5.23", help="SGLang version to speak like, from 0.5.6 on (0.5.23)")
    add("--event-format", choices=("auto", "array", "map"), default="auto", help="form of the events (the version's)")
    add("--incremental-streaming-output", action="store_true", help="/generate streams what is new, not all so far")
    add("--enable-cache-report", action="store_true", help="cached tokens in OpenAI's usage")
    add("--skip-tokenizer-init", action="store_true", help="token ids only, no text")
    add("--is-embedding", action="store_true", help="make embeddings, and generate nothing")
    add("--enable-lora", action="store_true", help="LoRA adapters can be loaded")
    add("--lora-paths", nargs="+", default=(), metavar="NAME=PATH", help="adapters loaded from the start (none)")
    add("--expert-distribution-recorder-mode", metavar="MODE", help="without it, a question for the record kills it")
    add("--tool-call-parser", metavar="NAME", help="say that tool calls are parsed so (nothing parses them)")
    add("--reasoning-parser", metavar="NAME", help="say that reasoning is parsed so (nothing parses it)")
    add("--enable-hierarchical-cache", action="store_true", help="a second tier of the cache in host memory (HiCache)")
    add("--hicache-ratio", type=positive_number, default=2.0, metavar="X", help="its size, in those of the KV pool (2)")
    add("--hicache-write-policy", choices=("write_through",), default="write_through", help="the only one modelled")
    add(
        "--disaggregation-mode",
        choices=("null", "prefill", "decode"),
        default="null",
        help="do a part of each request only, with a worker of the other kind (null: all of it)",
    )
    add("--disaggregation-bootstrap-port", type=port_or_auto, metavar="PORT", help="where KV is asked for (auto)")
    add("--disaggregation-decode-enable-radix-cache", action="store_true", help="a decode worker keeps prefixes, too")
    add(
        "--bootstrap-timeout",
        dest="bootstrap_timeout_seconds",
        type=positive_number,
        default=WorkerConfig.bootstrap_timeout_seconds,
        metavar="S",
        help="SGLANG_DISAGGREGATION_BOOTSTRAP_TIMEOUT (300)",
    )
    add(
        "--waiting-timeout",
        dest="waiting_timeout_seconds",
        type=positive_number,
        default=WorkerConfig.waiting_timeout_seconds,
        metavar="S",
        help="SGLANG_DISAGGREGATION_WAITING_TIMEOUT (300)",
    )
    add("--eos-after-tokens", type=int, metavar="N", help="outputs end by themselves after N tokens (never)")
    add("--seed", type=int, default=0, help="another seed, other outputs (0)")
    add("--speed", type=float, default=1.0, metavar="X", help="2: twice as fast (1)")
    add("--profile", default=profile.DEFAULT, metavar="NAME|FILE", help=f"step times ({profile.DEFAULT})")
    add("--prefill-tokens-per-second", type=positive_number, metavar="N", help="prefill rate (the profile's)")
    add("--decode-step-ms", type=positive_number, metavar="MS", help="a decode step of an empty batch (the profile's)")
    add("--log-level", default="warning", choices=("debug", "info", "warning", "error"), help="(warning)")
    sglang_options.add_options(made)
    return made


def timing_of(name: str, speed: float, prefill_rate: float | None, decode_step_ms: float | None) -> TimingModel:
    """A profile's timing model, with what the command line says instead.

    :raises ValueError: there is no such profile, the speed is not positive, or the model has no such numbers.
    """
    timing = profile.load(name).at_speed(speed).timing
    if prefill_rate is None and decode_step_ms is None:
        return timing
    if not isinstance(timing, StepTiming):
        options = "--prefill-tokens-per-second and --decode-step-ms"
        raise ValueError(f"{options} need a step profile, {name} is none")  # noqa: TRY004 - an option's value is wrong
    prefill = timing.prefill_token_seconds if prefill_rate is None else 1 / prefill_rate
    decode = timing.decode_base_seconds if decode_step_ms is None else decode_step_ms / 1000
    return replace(timing, prefill_token_seconds=prefill, decode_base_seconds=decode)


def configure(options: argparse.Namespace) -> WorkerConfig:
    """Options as a config.

    :raises ValueError: see `WorkerConfig` and `timing_of`.
    """
    values = sglang_options.translate(vars(options))
    del values["hicache_write_policy"]
    del values["log_level"]
    speed = values["speed"]
    timing = timing_of(*(values.pop(n) for n in ("profile", "speed", "prefill_tokens_per_second", "decode_step_ms")))
    values["lora_paths"] = tuple(values["lora_paths"])
    return WorkerConfig(timing=timing, transfer=TransferTiming(speed=speed), **values)


async def serve(config: WorkerConfig) -> None:
    """Serve until SIGINT or SIGTERM."""
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with FakeWorker(config, die=lambda: os._exit(1)) as worker:
        sys.stdout.write(f"ready {msgspec.json.encode(worker.ports._asdict()).decode()}\n")
        sys.stdout.flush()
        await stop.wait()
        await worker.drain()


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse, serve, exit."""
    made = parser()
    options = made.parse_args(arguments)
    logging.basicConfig(level=options.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    try:
        config = configure(options)
        uvloop.run(serve(config))
    except OSError as error:
        made.error(error.strerror or str(error))
    except ValueError as error:
        made.error(str(error))


if __name__ == "__main__":
    main()
