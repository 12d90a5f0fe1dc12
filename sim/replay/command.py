"""`python -m sim replay`: serve a trace with one policy or several, and compare."""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from events.command import UsageError, natural, positive, seconds
from sim.report import options as report_options
from sim.traces.formats import READERS
from sim.traces.values import rate

if TYPE_CHECKING:
    from collections.abc import Callable

    from router.core.policy import Policy
    from sim.replay.settings import Kill, Settings
    from sim.traces import Trace

DEFAULT_POLICIES = ("warm", "linear", "round-robin")
EXAMPLES = """
examples:
  python -m sim replay trace.jsonl --workers 8 --html report.html
  python -m sim replay trace.jsonl --policy warm --policy linear:prefill_load_scale=16 --rate x2
  python -m sim replay trace.jsonl --no-kv-events --event-lag 0.1 --kill t=600,worker=3,restart=660
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options, in groups."""
    parser.epilog = EXAMPLES
    parser.add_argument("traces", nargs="+", type=Path, metavar="TRACE", help="trace files")
    parser.add_argument(
        "--policy",
        dest="policies",
        action="append",
        type=policy,
        metavar="NAME[:OPTION=VALUE,…]",
        help=f"may be given several times; default: {', '.join(DEFAULT_POLICIES)}",
    )
    parser.add_argument("--format", choices=("auto", *READERS), default="auto", help="of the traces (default: auto)")
    parser.add_argument(
        "--rate", type=rate, default=(1.0, True), metavar="R", help="requests per second; x2: twice as many"
    )
    parser.add_argument(
        "--smooth-arrivals", action="store_true", help="spread what arrives at once until the next arrival"
    )
    parser.add_argument("--seed", type=natural, default=0, help="of everything that is left to chance (default: 0)")
    fleet = parser.add_argument_group("fleet")
    fleet.add_argument("--workers", type=positive, default=8, metavar="N", help="(default: 8)")
    fleet.add_argument("--prefill", type=natural, default=0, metavar="P", help="workers that compute prompts, and")
    fleet.add_argument(
        "--decode", type=natural, default=0, metavar="D", help="workers that go on, in place of --workers"
    )
    fleet.add_argument(
        "--transfer-bandwidth", type=seconds, default=64.0, metavar="GB/S", help="between these two (default: 64)"
    )
    fleet.add_argument(
        "--kv-token-bytes", type=positive, default=131_072, help="KV of one token (default: 131072, Llama 8B)"
    )
    fleet.add_argument("--profile", default="h200-llama-8b", help="of an engine's times: a name or a JSON file")
    fleet.add_argument(
        "--capacity-tokens", type=positive, default=1 << 20, help="of an engine's KV memory (default: 1048576)"
    )
    fleet.add_argument("--page-size", type=positive, default=64, help="tokens in a page of its cache (default: 64)")
    fleet.add_argument("--chunked-prefill-size", type=positive, default=8192, help="(default: 8192)")
    fleet.add_argument("--max-running-requests", type=positive, default=None, help="(default: as SGLang)")
    fleet.add_argument(
        "--disable-overlap-schedule", action="store_true", help="plan a step only when the one before it is done"
    )
    fleet.add_argument("--sglang-version", default="0.5.23", help="whose scheduler it is (default: 0.5.23)")
    fleet.add_argument("--block-size", type=positive, default=64, help="tokens in a routing block (default: 64)")
    fleet.add_argument("--routers", type=positive, default=1, metavar="K", help="requests come to them in turn")
    fleet.add_argument(
        "--booking-lag",
        type=lag,
        metavar="S",
        help="after which a router hears what others booked (default: never, each knows only its own)",
    )
    events = parser.add_argument_group("events and faults")
    events.add_argument("--no-kv-events", action="store_true", help="workers publish none: their caches are predicted")
    events.add_argument("--event-lag", type=lag, default=0.0, metavar="S", help="seconds from engine to router")
    events.add_argument("--event-loss", type=float, default=0.0, metavar="SHARE", help="of events that are lost")
    events.add_argument("--load-report-interval", type=seconds, default=None, metavar="S", help="(default: as SGLang)")
    events.add_argument(
        "--kill", dest="kills", action="append", default=[], type=kill, metavar="t=S,worker=N[,restart=S]"
    )
    report_options.add_arguments(parser)


def run(options: argparse.Namespace) -> int:
    """Replay each trace with each policy, and report what came of it."""
    import sim.replay as package  # compiled code takes a while to load: not for --help
    from sim.report.progress import Progress
    from sim.report.report import Report

    settings = _settings(options)
    policies = options.policies or [policy(name) for name in DEFAULT_POLICIES]
    for path in options.traces:
        trace = _trace(path, options)
        with Progress() as progress:
            outcomes = [package.replay(trace, make, settings, label, progress.bar(label)) for label, make in policies]
        report = Report.of(trace, outcomes, report_options.slo(options))
        report_options.write(report, options, trace.name if len(options.traces) > 1 else None)
    return 0


# ---- values of options


def policy(text: str) -> tuple[str, Callable[[], Policy]]:
    """A policy and its options, as `linear:prefill_load_scale=16`: the text itself, and what makes one.

    :raises argparse.ArgumentTypeError: there is no such policy, or it does not take these options.
    """
    from router.core.policy import create

    name, _, rest = text.partition(":")
    options: dict[str, Any] = {}
    for part in filter(None, rest.split(",")):
        option, separator, value = part.partition("=")
        if not separator:
            raise argparse.ArgumentTypeError(f"{text!r}: {part!r} is not OPTION=VALUE")
        options[option.replace("-", "_")] = _value(value)
    make = partial(create, name, **options)
    try:
        make()
    except (ValueError, TypeError) as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return text, make


def lag(text: str) -> float:
    """Seconds, 0 or more.

    :raises argparse.ArgumentTypeError: they are neither.
    """
    return 0.0 if text in ("0", "0.0") else seconds(text)


def kill(text: str) -> Kill:
    """`t=SECONDS,worker=NUMBER[,restart=SECONDS]`.

    :raises argparse.ArgumentTypeError: it is not that.
    """
    from sim.replay.settings import Kill

    try:
        fields = dict(part.split("=", 1) for part in text.split(","))
        restart = fields.pop("restart", None)
        made = Kill(float(fields.pop("t")), int(fields.pop("worker")), None if restart is None else float(restart))
    except (ValueError, KeyError):
        fields = {"": ""}
    if fields:
        raise argparse.ArgumentTypeError(f"{text!r} is not t=SECONDS,worker=NUMBER[,restart=SECONDS]")
    return made


def _value(text: str) -> object:
    """A number where it is one."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return {"true": True, "false": False}.get(text.lower(), text)


def _settings(options: argparse.Namespace) -> Settings:
    from sim.engine import EngineConfig
    from sim.engine.timing import profile
    from sim.replay.settings import Settings

    try:
        engine = EngineConfig(
            capacity_tokens=options.capacity_tokens,
            page_size=options.page_size,
            chunked_prefill_tokens=options.chunked_prefill_size,
            max_running_requests=options.max_running_requests,
            context_length=options.capacity_tokens,
            overlap_schedule=not options.disable_overlap_schedule,
            version=options.sglang_version,
            timing=profile.load(options.profile).timing,
        )
        return Settings(
            workers=options.workers,
            prefill=options.prefill,
            decode=options.decode,
            transfer_bytes_per_second=options.transfer_bandwidth * 1e9,
            kv_token_bytes=options.kv_token_bytes,
            engine=engine,
            block_size=options.block_size,
            kv_events=not options.no_kv_events,
            event_lag_seconds=options.event_lag,
            event_loss=options.event_loss,
            load_report_interval_seconds=options.load_report_interval or 0.0,
            routers=options.routers,
            booking_lag_seconds=options.booking_lag,
            kills=tuple(options.kills),
            seed=options.seed,
        )
    except ValueError as error:
        raise UsageError(str(error)) from error


def _trace(path: Path, options: argparse.Namespace) -> Trace:
    from sim.traces import formats, scale

    trace = formats.load(path, options.format)
    if options.smooth_arrivals:
        trace = scale.smooth_arrivals(trace, options.seed)
    number, is_factor = options.rate
    return scale.rate(trace, number) if is_factor else scale.to_rate(trace, number)
