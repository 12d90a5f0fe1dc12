"""`python -m sim trace stats|cut|scale|synthesize`."""

from __future__ import annotations

import logging
import math
import sys
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
from rich.console import Console

from events.command import UsageError, natural, positive
from sim.traces import cut, formats, scale
from sim.traces.statistics import DEFAULT_CAPACITY_TOKENS, TraceStatistics
from sim.traces.synthesize import KINDS
from sim.traces.synthesize.fit import fit
from sim.traces.table import table
from sim.traces.values import STANDARD_OUTPUT, factor, rate, time, writable

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from sim.traces.trace import Trace

EXAMPLE = """\
examples:
  python -m sim trace synthesize conversation --requests 2000 --rate 4 -o chats.jsonl
  python -m sim trace stats chats.jsonl
  python -m sim trace cut chats.jsonl --from 60 --to 360 -o part.jsonl
  python -m sim trace scale part.jsonl --rate x2 -o fast.jsonl
  python -m sim trace synthesize --fit chats.jsonl --requests 100000 -o many.jsonl

Formats: {formats}.
They are told from the first line, except mooncake-delta: say --format.
"""
DEFAULT_REQUESTS, DEFAULT_RATE = 1000, 4.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command line."""
    parser.epilog = EXAMPLE.format(formats=", ".join(formats.READERS))
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    _add_stats(actions.add_parser("stats", help="rates, lengths, sharing, what caches can keep"))
    _add_cut(actions.add_parser("cut", help="a part, by time, requests or sessions"))
    _add_scale(actions.add_parser("scale", help="other rates and lengths; smoothed bursts"))
    _add_synthesize(actions.add_parser("synthesize", help="a made-up workload, or one like a given trace"))


def run(options: argparse.Namespace) -> int:
    """Do what the command line says.

    :raises UsageError: it cannot be done; the message is one line.
    """
    logging.basicConfig(format="%(levelname).1s %(message)s", stream=sys.stderr)
    action = {"stats": _stats, "cut": _cut, "scale": _scale, "synthesize": _synthesize}[options.action]
    action(options)
    return 0


# ---- arguments


def _add_stats(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("traces", type=Path, nargs="+", metavar="TRACE", help="trace files")
    _add_format(parser)
    parser.add_argument(
        "--capacity-tokens",
        type=positive,
        default=DEFAULT_CAPACITY_TOKENS,
        metavar="N",
        help=f"of the caches of the whole fleet, as one LRU cache ({DEFAULT_CAPACITY_TOKENS})",
    )
    parser.add_argument(
        "--json", type=writable, nargs="?", const=STANDARD_OUTPUT, metavar="FILE", help="as JSON (to standard output)"
    )


def _add_cut(parser: argparse.ArgumentParser) -> None:
    _add_input_and_output(parser)
    parser.add_argument("--from", type=time, dest="start", metavar="SECONDS", help="from this arrival on (0)")
    parser.add_argument("--to", type=time, dest="end", metavar="SECONDS", help="before this arrival (the end)")
    parser.add_argument("--requests", type=positive, metavar="N", help="so many requests")
    parser.add_argument("--skip", type=natural, default=0, metavar="N", help="after so many (0)")
    parser.add_argument("--sessions", type=positive, metavar="N", help="so many whole sessions")
    parser.add_argument("--seed", type=natural, metavar="N", help="any sessions, not the first ones")


def _add_scale(parser: argparse.ArgumentParser) -> None:
    _add_input_and_output(parser)
    parser.add_argument("--rate", type=rate, metavar="R", help="requests per second; x2: twice as many")
    parser.add_argument("--input-tokens", type=factor, metavar="xF", help="prompts F times as long, sharing alike")
    parser.add_argument("--output-tokens", type=factor, metavar="xF", help="outputs F times as long")
    parser.add_argument(
        "--smooth-arrivals", action="store_true", help="spread what arrives at once until the next arrival"
    )
    parser.add_argument(
        "--open-loop", action="store_true", help="turns are sent at their time, not after the turn before"
    )
    parser.add_argument("--seed", type=natural, default=0, metavar="N", help="of the smoothing (0)")


def _add_synthesize(parser: argparse.ArgumentParser) -> None:
    kinds = "; ".join(f"{name}: {kind.summary}" for name, kind in KINDS.items())
    parser.add_argument("kind", choices=KINDS, nargs="?", help=kinds)
    parser.add_argument("--fit", type=Path, metavar="TRACE", help="like this trace in arrivals, lengths and sharing")
    _add_format(parser)
    _add_output(parser)
    parser.add_argument("--requests", type=positive, metavar="N", help=f"({DEFAULT_REQUESTS}; as many as TRACE)")
    parser.add_argument("--rate", type=rate, metavar="R", help=f"requests per second ({DEFAULT_RATE:g}; that of TRACE)")
    parser.add_argument("--seed", type=natural, default=0, metavar="N", help="another seed, another trace (0)")
    parser.add_argument(
        "--smooth-arrivals", action="store_true", help="spread what arrives at once until the next arrival"
    )
    for name, users in _parameters().items():
        defaults = ", ".join(f"{kind}: {default:g}" for kind, default in users.items())
        parser.add_argument(f"--{name.replace('_', '-')}", type=float, metavar="X", help=f"({defaults})")


def _parameters() -> dict[str, dict[str, float]]:
    """The parameters of all kinds, and who has them with which default."""
    found: dict[str, dict[str, float]] = {}
    for name, kind in KINDS.items():
        for item in fields(kind):
            found.setdefault(item.name, {})[name] = item.default  # type: ignore[assignment] # they all have one
    return found


def _add_input_and_output(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("trace", type=Path, metavar="TRACE", help="a trace file")
    _add_format(parser)
    _add_output(parser)


def _add_format(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--format", choices=("auto", *formats.READERS), default="auto", help="of the trace read (auto)")


def _add_output(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-o", "--output", type=writable, required=True, metavar="FILE", help="where to write the trace")
    parser.add_argument("--output-format", choices=formats.WRITERS, default="warmpath", help="(warmpath)")


# ---- actions


def _stats(options: argparse.Namespace) -> None:
    found = [TraceStatistics.of(formats.load(path, options.format), options.capacity_tokens) for path in options.traces]
    if options.json is None:
        Console(highlight=False).print(table(found))
        return
    text = msgspec.json.format(msgspec.json.encode({"traces": [_plain(one) for one in found]})).decode() + "\n"
    if options.json == STANDARD_OUTPUT:
        sys.stdout.write(text)
    else:
        options.json.write_text(text)


def _plain(value: Any) -> Any:
    """Named tuples as dictionaries."""
    fields_of = getattr(value, "_asdict", None)
    return {name: _plain(one) for name, one in fields_of().items()} if fields_of else value


def _cut(options: argparse.Namespace) -> None:
    if options.start is None and options.end is None and options.requests is None and options.sessions is None:
        raise UsageError("say what to cut: --from, --to, --requests or --sessions")
    trace = formats.load(options.trace, options.format)
    if options.start is not None or options.end is not None:
        trace = cut.by_time(trace, options.start or 0.0, math.inf if options.end is None else options.end)
    if options.sessions is not None:
        trace = cut.by_sessions(trace, options.sessions, options.seed)
    if options.requests is not None or options.skip:
        trace = cut.by_requests(trace, options.requests or len(trace), options.skip)
    _write(trace, options)


def _scale(options: argparse.Namespace) -> None:
    trace = formats.load(options.trace, options.format)
    if options.open_loop:
        trace = trace.without_sessions()
    if options.smooth_arrivals:
        trace = scale.smooth_arrivals(trace, options.seed)
    if options.rate is not None:
        trace = _at_rate(trace, *options.rate)
    if options.input_tokens is not None:
        trace = scale.input_tokens(trace, options.input_tokens)
    if options.output_tokens is not None:
        trace = scale.output_tokens(trace, options.output_tokens)
    _write(trace, options)


def _at_rate(trace: Trace, number: float, is_factor: bool) -> Trace:
    return scale.rate(trace, number) if is_factor else scale.to_rate(trace, number)


def _synthesize(options: argparse.Namespace) -> None:
    if (options.kind is None) == (options.fit is None):
        raise UsageError(f"say either a kind ({', '.join(KINDS)}) or --fit TRACE")
    trace = _made_up(options) if options.fit is None else _fitted(options)
    _write(scale.smooth_arrivals(trace, options.seed) if options.smooth_arrivals else trace, options)


def _made_up(options: argparse.Namespace) -> Trace:
    number, is_factor = options.rate or (DEFAULT_RATE, False)
    workload = KINDS[options.kind](**_given(options))
    per_second = number * DEFAULT_RATE if is_factor else number
    return workload.generate(options.requests or DEFAULT_REQUESTS, per_second, options.seed)


def _given(options: argparse.Namespace) -> dict[str, Any]:
    """The kind's parameters that are on the command line; a count is a whole number."""
    given: dict[str, Any] = {}
    for name, users in _parameters().items():
        value, option = getattr(options, name), f"--{name.replace('_', '-')}"
        if value is None:
            continue
        if options.kind not in users:
            raise UsageError(f"{option}: {options.kind} has no such parameter")
        is_count = isinstance(users[options.kind], int)
        if is_count and not value.is_integer():
            raise UsageError(f"{option}: must be a whole number, not {value:g}")
        given[name] = int(value) if is_count else value
    return given


def _fitted(options: argparse.Namespace) -> Trace:
    model = formats.load(options.fit, options.format)
    made = fit(model, options.requests or len(model), options.seed)
    trace = made.trace if options.rate is None else _at_rate(made.trace, *options.rate)
    console = Console(highlight=False)
    console.print(table([TraceStatistics.of(one) for one in (model, trace)]))
    if made.unshared_blocks:
        console.print(f"{made.unshared_blocks:,} blocks found no earlier request to share them with")
    return trace


def _write(trace: Trace, options: argparse.Namespace) -> None:
    formats.save(trace, options.output, options.output_format)
    Console(highlight=False).print(f"{options.output}: {_summary(trace)}", soft_wrap=True)


def _summary(trace: Trace) -> str:
    rows: Sequence[str] = (
        f"{len(trace):,} requests in {trace.span_seconds:,.0f} s",
        f"{trace.input_tokens.mean():,.0f} tokens in and {trace.output_tokens.mean():,.0f} out on average",
        f"{len(trace.blocks):,} ids of {trace.block_tokens} tokens",
    )
    return ", ".join(rows)
