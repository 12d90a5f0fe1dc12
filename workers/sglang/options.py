"""The adapter's command line: warmpath's options, and what is left of it for SGLang."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from events import durable
from events.blocks import DEFAULT_BLOCK_SIZE
from events.bus.nats import DEFAULT_URL
from events.command import Parser, natural, positive, seconds, server_url
from events.membership import discovery

from . import config_file
from .adapter import Pace
from .card import EVENTS_FLAG
from .launching.drain import Patience
from .launching.restarts import POLICIES, Restarts
from .parser_names import REASONING_PARSERS, TOOL_CALL_PARSERS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

DESCRIPTION = """\
Run an SGLang server, or attach to a running one: relay its cache events and load to warmpath's routers, and register it with them.
"""

EXAMPLE = f"""\
examples, on one machine:
  nats-server &

  launch: every option that is not listed here is SGLang's own, and SGLang's parser decides whether it is valid. What routing
  needs and you do not give is added and said: cache events and load on free ports, a page size, a decode log interval.
    python -m workers.sglang --model-path Qwen/Qwen3-8B --tp-size 2

  attach to a server that runs already:
    python -m sglang.launch_server --model-path Qwen/Qwen3-8B --port 30000 --page-size 64 \\
      --decode-log-interval 4 --load-publish-endpoint auto \\
      {EVENTS_FLAG} &
    python -m workers.sglang --attach http://127.0.0.1:30000

Everything else is read from the server: model, ranks, page size, capacity, event and load ports. A worker is registered once
each of its ranks has answered, withdrawn when the server is gone, and registered anew when it comes back. Without
--kv-events-config a server that is attached to is registered all the same, and routers predict its cache.

Once registered it prints a line `ready {{"worker_id": …}}` on standard output. SIGTERM withdraws the worker, gives routers the
time to see it, lets a launched engine finish what it has, then stops it; a second SIGTERM stops the engine at once.
Exit status: 0 after SIGTERM or SIGINT; 2 after an error, said on one line; the engine's own, where a launched one ended by itself.
"""


class OptionError(ValueError):
    """Options that cannot go together, or a value that cannot be used; the text names them and the reason."""


class CommandLine(NamedTuple):
    """What was asked for."""

    options: argparse.Namespace
    """Warmpath's options."""
    engine: list[str]
    """SGLang's, as they were given."""
    engine_config: Mapping[str, Any]
    """SGLang's, from the configuration file."""


def parser() -> Parser:
    """Warmpath's options. Its help needs no heavy import."""
    parser = Parser(
        prog="python -m workers.sglang",
        usage="%(prog)s [options below] [any option of SGLang]\n       %(prog)s --attach URL [options below]",
        description=DESCRIPTION,
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    _routing_options(parser)
    _model_options(parser.add_argument_group("what routers are told of the model"))
    _launch_options(parser.add_argument_group("launching"))
    return parser


def _routing_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--attach", type=server_url, metavar="URL", help="a running server, e.g. http://127.0.0.1:30000")
    add(
        *("--config",),
        type=Path,
        metavar="FILE",
        help="YAML: options of both kinds, by name; the command line goes before it",
    )
    add(
        "--nats", default=DEFAULT_URL, metavar="URL", help="the broker; a cluster's, with commas (default: %(default)s)"
    )
    add("--namespace", help="which routers see it: those of the same namespace (default: default)")
    add(
        *("--endpoint",),
        type=endpoint,
        metavar="NAMESPACE.COMPONENT.ENDPOINT",
        help="as Dynamo names workers: its namespace is taken; a worker's role comes from --disaggregation-mode",
    )
    discovery.add_options(parser, memory="nowhere outside this process")
    add(
        *("--block-size",),
        type=positive,
        default=DEFAULT_BLOCK_SIZE,
        metavar="TOKENS",
        help="routing block, the same for all routers and workers; any page size of the server will do (default: %(default)s)",
    )
    durable.add_options(parser)
    add(
        *("--no-parity-probe",),
        dest="parity_probe",
        action="store_false",
        help="register without proof that the engine's cache events are those of the prompts that it gets",
    )
    add("--worker-id", metavar="ID", help="name of the worker (default: host and port of the server)")
    add(
        *("--load-poll-seconds",),
        type=seconds,
        default=Pace().load_poll_seconds,
        metavar="S",
        help="how often to ask a server for its load that was started without --load-publish-endpoint (default: %(default)s)",
    )
    levels = ["debug", "info", "warning", "error"]
    add(
        "--log-level",
        choices=levels,
        help="what to log on standard error; a launched engine gets it too (default: info)",
    )


def _model_options(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--model-name", metavar="NAME", help="name that clients ask for (default: the server's --served-model-name)")
    add(
        *("--migration-limit",),
        type=natural,
        metavar="N",
        help="how often a request may go on elsewhere after its worker failed (default: as the router has it)",
    )
    add("--tool-call-parser", metavar="NAME", help="SGLang's: chats are passed through to the engine, which uses it")
    add("--dyn-tool-call-parser", metavar="NAME", help="the same; Dynamo's names are known, too")
    add("--reasoning-parser", metavar="NAME", help="SGLang's: chats are passed through to the engine, which uses it")
    add("--dyn-reasoning-parser", metavar="NAME", help="the same; Dynamo's names are known, too")
    add(
        *("--use-sglang-tokenizer",),
        action="store_true",
        help="routers pass bodies through, and the engine applies its own template and tokenizer",
    )
    add(
        *("--custom-jinja-template",),
        type=Path,
        metavar="FILE",
        help="chat template instead of the model's: routers apply it, and a launched engine gets it as --chat-template",
    )
    add("--embedding-worker", action="store_true", help="it serves embeddings; a launched engine gets --is-embedding")
    add(
        *("--engine-route",),
        dest="engine_routes",
        action="append",
        default=[],
        type=engine_route,
        metavar="NAME[=PATH]",
        help="a POST route of the engine that the router's /admin/engine/NAME passes on to it; repeatable",
    )


def _launch_options(group: argparse._ArgumentGroup) -> None:
    add, patience, restarts = group.add_argument, Patience(), Restarts()
    add("--python", metavar="FILE", help="the interpreter that SGLang is installed for (default: this one)")
    add(
        *("--engine-command",),
        metavar="COMMAND",
        help="what to start instead of `PYTHON -m sglang.launch_server`: anything that takes SGLang's options and serves its HTTP",
    )
    add(
        *("--advertise-host",),
        metavar="HOST",
        help="where routers reach this machine (default: SGLang's --host; if that is every address, the one towards the broker)",
    )
    add(
        *("--restart",),
        choices=POLICIES,
        help=f"what to do when the engine ends by itself (default: {restarts.policy}, and end with its exit status)",
    )
    add(
        *("--max-restarts",),
        type=positive,
        metavar="N",
        help=f"most restarts in a row, 1 s, 2 s, 4 s, … apart (default: {restarts.most_in_a_row})",
    )
    for option, default, what in (
        ("--grace-seconds", patience.grace_seconds, "after withdrawing the worker, for routers to see it"),
        ("--drain-seconds", patience.drain_seconds, "then, for its requests to end"),
        ("--stop-seconds", patience.stop_seconds, "then, for the engine to stop before it is killed"),
    ):
        add(option, type=seconds, metavar="S", help=f"{what} (default: {default:g})")


def endpoint(text: str) -> str:
    """The namespace in Dynamo's name of an endpoint.

    >>> endpoint("dyn://prod.backend.generate")
    'prod'

    :raises argparse.ArgumentTypeError: it does not have three parts.
    """
    parts = text.removeprefix("dyn://").split(".")
    if len(parts) != 3 or not all(parts):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAMESPACE.COMPONENT.ENDPOINT")
    return parts[0]


def engine_route(text: str) -> tuple[str, str]:
    """A route's name at the router, and its path at the engine; Dynamo's `:engine` and `:tm` mean nothing over HTTP.

    >>> engine_route("gc=/freeze_gc"), engine_route("start_profile:tm")
    (('gc', '/freeze_gc'), ('start_profile', '/start_profile'))

    :raises argparse.ArgumentTypeError: it has no name or no path.
    """
    name, separator, path = text.removesuffix(":engine").removesuffix(":tm").partition("=")
    name, path = name.strip("/"), path.strip("/") if separator else name.strip("/")
    if not name or not path or not (name + path).isprintable():
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME or NAME=PATH")
    return name, f"/{path}"


def parse(arguments: Sequence[str] | None = None) -> CommandLine:
    """The command line, its configuration file read in; exits with status 2 and one line when it is wrong."""
    made = parser()
    given = list(sys.argv[1:] if arguments is None else arguments)
    options, engine = made.parse_known_args(given)
    engine_config: Mapping[str, Any] = {}
    try:
        if options.config is not None:
            words, engine_config = config_file.read(options.config, _names(made))
            options, engine = made.parse_known_args([*words, *given])
        line = CommandLine(options, engine, engine_config)
        _settle(options)
        _check(line)
    except (OptionError, config_file.ConfigFileError) as error:
        made.error(str(error))
    return line


def _names(made: argparse.ArgumentParser) -> set[str]:
    return {name for action in made._actions for name in action.option_strings}  # noqa: SLF001  no public way


def _settle(options: argparse.Namespace) -> None:
    """Of two names for the same, one value; defaults that depend on another option."""
    options.tool_call_parser = _one(options, "tool_call_parser", TOOL_CALL_PARSERS)
    options.reasoning_parser = _one(options, "reasoning_parser", REASONING_PARSERS)
    if options.endpoint and options.namespace not in (None, options.endpoint):
        raise OptionError(f"--endpoint names namespace {options.endpoint}, --namespace {options.namespace}: give one")
    options.namespace = options.namespace or options.endpoint or "default"
    if not options.namespace:
        raise OptionError("--namespace must not be empty")
    if options.custom_jinja_template is not None:
        options.custom_jinja_template = options.custom_jinja_template.expanduser()
        if not options.custom_jinja_template.is_file():
            raise OptionError(f"--custom-jinja-template {options.custom_jinja_template}: no such file")


def _one(options: argparse.Namespace, name: str, known: Mapping[str, str]) -> str | None:
    """SGLang's name of a parser, however it was given."""
    own: str | None = getattr(options, name)
    other: str | None = getattr(options, f"dyn_{name}")
    flag = name.replace("_", "-")
    if own and other:
        raise OptionError(f"--{flag} and --dyn-{flag} both name the parser: give one")
    return own or (known.get(other, other) if other else None)


def _check(line: CommandLine) -> None:
    """Refuse what cannot go together."""
    options = line.options
    launches = bool(line.engine or line.engine_config or options.engine_command)
    if options.attach is None and not launches:
        raise OptionError("give --attach URL, or SGLang's own options (at least --model-path) to launch a server")
    if options.attach is not None:
        _check_attached(line)
    if options.custom_jinja_template is not None and options.use_sglang_tokenizer:
        raise OptionError(
            "--custom-jinja-template is for routers to apply, with --use-sglang-tokenizer they apply none: "
            "give SGLang's --chat-template instead"
        )
    generation = ("tool_call_parser", "reasoning_parser", "use_sglang_tokenizer", "custom_jinja_template")
    if options.embedding_worker and (wrong := next((name for name in generation if getattr(options, name)), None)):
        raise OptionError(f"--{wrong.replace('_', '-')} is for generations, and an --embedding-worker makes none")


def _check_attached(line: CommandLine) -> None:
    options = line.options
    if line.engine or line.engine_config:
        words = line.engine[0] if line.engine else f"{next(iter(line.engine_config))} in --config"
        raise OptionError(
            f"{words}: no option of warmpath's, and with --attach no server is launched that could take it"
        )
    launching = (
        "python",
        "engine_command",
        "advertise_host",
        "restart",
        "max_restarts",
        "drain_seconds",
        "stop_seconds",
    )
    for name in launching:
        if getattr(options, name) is not None:
            raise OptionError(f"--{name.replace('_', '-')} is for launching a server, and --attach finds one running")
