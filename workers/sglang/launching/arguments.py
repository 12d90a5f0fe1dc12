"""The engine's arguments: what cannot go together is refused, what routing needs and was not given is added."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit

import msgspec

from . import ports
from .command import Refused, scan

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from .command import Understood

DEFAULT_HOST, DEFAULT_PORT = "127.0.0.1", 30000
ANY_HOST = {"0.0.0.0", "::", "[::]", ""}  # noqa: S104 - hosts to recognise, nothing is bound to them
PAGE_SIZE = 64
DECODE_LOG_INTERVAL = 4

REFUSED = {
    "api_key": "routers and adapters do not send the engine a key; keep its port to them instead",
    "grpc_mode": "routers speak HTTP to engines",
    "smg_grpc_mode": "routers speak HTTP to engines",
    "ssl_certfile": "routers reach engines by plain HTTP",
    "encoder_only": "it would serve no requests of its own",
}
"""Options of SGLang's with which a worker could not be routed to, and why."""


class Wishes(NamedTuple):
    """What warmpath's own options ask of the engine."""

    tool_call_parser: str | None = None
    reasoning_parser: str | None = None
    chat_template: Path | None = None
    embedding: bool = False
    text_mode: bool = False
    log_level: str | None = None
    advertise_host: str | None = None
    broker: str = ""
    """The broker's URL, or several with commas between: this machine's address towards the first is what routers are told, if
    the engine listens at every one."""


@dataclass
class Launch:
    """Arguments on their way to an engine; `said` tells what was added and why."""

    words: list[str]
    understood: Understood
    wishes: Wishes
    said: list[str] = field(default_factory=list)

    def given(self, name: str, default: Any = None) -> Any:
        """An option's value; `default` where it was not given."""
        return self.understood.given.get(name, default)

    def number(self, name: str, default: int) -> int:
        """The same, as a whole number."""
        return int(self.given(name, default))

    def add(self, name: str, value: object = None, why: str = "") -> None:
        """Add an option, unless it was given, or the engine does not have it."""
        if name in self.understood.given or not self.understood.has(name):
            return
        option = f"--{name.replace('_', '-')}"
        words = [option] if value is None else [option, str(value)]
        self.words += words
        self.understood.given[name] = True if value is None else value
        if why:
            self.said.append(f"added {' '.join(words)}: {why}")

    # ---- what became of it

    @property
    def leads(self) -> bool:
        """Whether this machine's part of the engine serves HTTP; of several nodes only the first does."""
        return self.number("node_rank", 0) == 0

    @property
    def port(self) -> int:
        """Of its HTTP."""
        return self.number("port", DEFAULT_PORT)

    @property
    def host(self) -> str:
        """Where its HTTP is reached from this machine."""
        host = str(self.given("host", DEFAULT_HOST))
        return DEFAULT_HOST if host in ANY_HOST else host

    @property
    def advertised(self) -> str:
        """Its base URL for routers."""
        host = self.wishes.advertise_host or self.host
        if self.wishes.advertise_host is None and str(self.given("host", DEFAULT_HOST)) in ANY_HOST:
            broker = urlsplit(self.wishes.broker.partition(",")[0])
            host = ports.address_towards(broker.hostname or DEFAULT_HOST, broker.port or DEFAULT_PORT)
        return f"http://[{host}]:{self.port}" if ":" in host else f"http://{host}:{self.port}"


def with_wishes(arguments: Sequence[str], wishes: Wishes) -> list[str]:
    """The arguments, and what warmpath's options mean for the engine itself: for its parser to judge, too.

    :raises Refused: two chat templates are given.
    """
    other = scan(arguments).get("chat_template")
    if wishes.chat_template is not None and other not in (None, str(wishes.chat_template)):
        options = f"--custom-jinja-template {wishes.chat_template} and --chat-template {other}"
        raise Refused(f"{options}: they differ, give one")
    words = list(arguments)
    for option, value in (
        ("--tool-call-parser", wishes.tool_call_parser),
        ("--reasoning-parser", wishes.reasoning_parser),
        ("--chat-template", None if other else wishes.chat_template),
        ("--log-level", wishes.log_level),
    ):
        words += [option, str(value)] if value is not None else []
    return words + (["--is-embedding"] if wishes.embedding and "--is-embedding" not in words else [])


def complete(arguments: Sequence[str], understood: Understood, wishes: Wishes) -> Launch:
    """The arguments with what warmpath's options and routing add.

    :raises Refused: some cannot go together; the text names them and the reason.
    """
    launch = Launch(list(arguments), understood, wishes)
    _refuse(launch, wishes)
    if wishes.text_mode or launch.given("tool_call_parser") or launch.given("reasoning_parser"):
        launch.add("enable_cache_report", why="where bodies pass through, this is how routers hear of cached tokens")
    ranks = launch.number("dp_size", 1)
    first = ports.free_run(
        3 * ranks + 2
    )  # one run for all that is added, so that workers that start together do not meet
    _add_addresses(launch, first + 3 * ranks)
    if not launch.given("is_embedding"):
        _add_events(launch, first, ranks)
        launch.add("page_size", PAGE_SIZE, "SGLang's default depends on the attention backend")
        launch.add(
            *("decode_log_interval", DECODE_LOG_INTERVAL),
            "cache events of running decodes come every 4 steps instead of every 40",
        )
    return launch


def _refuse(launch: Launch, wishes: Wishes) -> None:
    for name, reason in REFUSED.items():
        if launch.given(name):
            raise Refused(f"--{name.replace('_', '-')}: {reason}")
    if launch.given("skip_tokenizer_init"):
        wanted = [name for name in ("text_mode", "tool_call_parser", "reasoning_parser") if getattr(wishes, name)]
        if wanted:
            option = {"text_mode": "use-sglang-tokenizer"}.get(wanted[0], wanted[0].replace("_", "-"))
            raise Refused(f"--skip-tokenizer-init leaves the engine without text, and --{option} has it work on text")
    if wishes.embedding and launch.given("disaggregation_mode", "null") != "null":
        raise Refused("--embedding-worker and --disaggregation-mode: there is no decode to move elsewhere")


def _add_addresses(launch: Launch, first: int) -> None:
    """Ports of its own, from `first` on, for an engine that would take SGLang's default ones from another."""
    if "port" not in launch.understood.given and not ports.all_free(DEFAULT_PORT):
        launch.add("port", first, f"SGLang's default, {DEFAULT_PORT}, is taken")
    if launch.given("disaggregation_mode") == "prefill":
        launch.add("disaggregation_bootstrap_port", first + 1, "a port of its own, for several on one machine")


class _EventsConfig(msgspec.Struct):
    publisher: str | None = None
    endpoint: str = ""
    replay_endpoint: str | None = None


def _add_events(launch: Launch, first: int, ranks: int) -> None:
    """Cache events and load, on ports from `first` on: one a rank for each of events, their replay, and load."""
    given = launch.given("kv_events_config")
    if given is None:
        host = DEFAULT_HOST if launch.understood.binds_addresses else "*"
        config: dict[str, object] = {"publisher": "zmq", "endpoint": f"tcp://{host}:{first}"}
        config["replay_endpoint"] = f"tcp://{host}:{first + ranks}"
        if launch.understood.binds_addresses:
            config["bind"] = True
        launch.add("kv_events_config", json.dumps(config), "routers follow the cache by its events")
    elif not _publishes(str(given), launch):
        return
    launch.add("load_publish_endpoint", f"tcp://*:{first + 2 * ranks}", "routers hear of the load as it changes")


def _publishes(config: str, launch: Launch) -> bool:
    """Whether the events that were configured can be followed; what is amiss is said."""
    try:
        stated = msgspec.json.decode(config, type=_EventsConfig)
    except msgspec.DecodeError as error:
        raise Refused(f"--kv-events-config: {error}") from error
    if stated.publisher in (None, "null") or not stated.endpoint.startswith("tcp://"):
        launch.said.append("--kv-events-config publishes nothing over TCP: routers will predict this worker's cache")
        return False
    if stated.replay_endpoint is None:
        launch.said.append("--kv-events-config has no replay_endpoint: a lost event empties what is known of the cache")
    return True
