"""The router's options: one dataclass, and the command line that fills it."""

from __future__ import annotations

import argparse
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from events import durable
from events.bus.log import Limits
from events.command import Parser, natural, port, positive, seconds, server_url
from events.membership.discovery import DEFAULT_TTL_SECONDS, add_options
from events.membership.etcd.access import DEFAULT_URL
from events.membership.location import DEFAULT_DISCOVERY_PATH

if TYPE_CHECKING:
    from collections.abc import Sequence

DESCRIPTION = """\
Serve OpenAI's API in front of SGLang workers, sending each request to the worker that already holds most of its prompt in KV
cache, unless that worker is too busy.
"""

EXAMPLES = """\
examples:
  workers with adapters (python -m workers.sglang) that publish KV events over NATS:
    python -m router --model-path /models/llama --nats nats://10.0.0.1:4222 --discovery etcd --etcd http://10.0.0.1:2379

  no broker of your own: start one inside the router, and point the adapters at it:
    python -m router --model-path /models/llama --nats embedded

  bodies passed through to the engines' own routes, placed by load alone, on four processes:
    python -m router --use-sglang-tokenizer --no-kv-events --worker http://10.0.0.1:30000 --processes 4

  no adapters, no events: caches are predicted from what was sent where:
    python -m router --model-path /models/llama --no-kv-events --worker http://10.0.0.1:30000 --worker http://10.0.0.2:30000
"""

EMBEDDED = "embedded"
NATS_PORT = 4222


class ConfigError(Exception):
    """An option's value cannot be used; the text names the option and the reason."""


class ProcessDied(Exception):
    """One of several router processes ended though nobody asked it to."""


@dataclass(frozen=True)
class RouterConfig:
    """Everything a router is started with."""

    model_path: Path | None
    """None: only in text mode."""
    http_host: str = "0.0.0.0"  # noqa: S104 - a server's usual default
    http_port: int = 8000
    processes: int = 1
    process_port: int = 0
    """Process i is reached alone at this port + i; 0: at a free one."""
    process_index: int | None = None
    """Which one of several this is; None: the only one, or the one that starts them."""
    text_mode: bool = False
    policy: str = "warm"
    policy_options: dict[str, float] = field(default_factory=dict)
    decode_policy: str = "decode-load"
    """For the decode side of pairs."""
    block_size: int = 64
    conditional_disagg: bool = True
    kv_events: bool = True
    parity_check: bool = True
    nats: str = f"nats://127.0.0.1:{NATS_PORT}"
    nats_port: int = NATS_PORT
    nats_store_dir: Path | None = None
    durable_events: bool = False
    durable_bytes: int = Limits().max_bytes
    durable_age_seconds: float = Limits().max_age_seconds
    durable_replicas: int = Limits().replicas
    namespace: str = "default"
    discovery: str = "file"
    discovery_path: Path = DEFAULT_DISCOVERY_PATH
    discovery_ttl_seconds: float = DEFAULT_TTL_SECONDS
    etcd: str = DEFAULT_URL
    kubernetes_namespace: str | None = None
    etcd_user: str | None = None
    etcd_password_file: Path | None = None
    etcd_ca: Path | None = None
    etcd_cert: Path | None = None
    etcd_key: Path | None = None
    registry_timeout_seconds: float = 30.0
    workers: tuple[str, ...] = ()
    min_workers: int = 0
    seed: int | None = None
    """None: another one at every start."""
    share_bookings: bool | None = None
    """None: as `kv_events`."""
    migration_limit: int = 3
    max_body_bytes: int = 32 * 1024 * 1024
    token_cache_bytes: int = 256 * 1024 * 1024
    max_index_blocks: int = 2**26
    connect_timeout_seconds: float = 5.0
    first_token_timeout_seconds: float = 300.0
    idle_timeout_seconds: float = 60.0
    transfer_timeout_seconds: float = 30.0
    stall_timeout_seconds: float = 20.0
    ejection_seconds: float = 1.0
    longest_ejection_seconds: float = 60.0
    admin_token: str | None = None
    """None: no administration."""
    engine_admin_key: str | None = None
    log_level: str = "info"

    def __post_init__(self) -> None:
        """Refuse what cannot work.

        :raises ConfigError: naming the option and the reason.
        """
        if self.model_path is None and not self.text_mode:
            raise ConfigError("--model-path is required, except with --use-sglang-tokenizer")
        if not self.namespace:
            raise ConfigError("--namespace must not be empty")
        if self.durable_events and self.nats == EMBEDDED and self.nats_store_dir is None:
            raise ConfigError("--durable-events with --nats embedded needs --nats-store-dir, where streams are kept")
        if self.discovery == "memory" and not self.workers:
            raise ConfigError("--discovery memory knows no workers but those of --worker, and there is none")

    @property
    def shares_bookings(self) -> bool:
        """Whether this router and others over the same workers count each other's bookings."""
        return self.kv_events if self.share_bookings is None else self.share_bookings

    @property
    def uses_bus(self) -> bool:
        """Whether it needs NATS."""
        return self.kv_events or self.shares_bookings


def _policy_option(text: str) -> tuple[str, float]:
    name, separator, value = text.partition("=")
    if not separator:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=NUMBER")
    try:
        return name.replace("-", "_"), float(value)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{value!r} in {text!r} is not a number") from None


def parser() -> Parser:
    """The command line. Its help needs no heavy import."""
    p = Parser(
        prog="python -m router",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _serving_options(p.add_argument_group("serving"))
    _routing_options(p.add_argument_group("routing"))
    _fleet_options(p.add_argument_group("workers and events"))
    _failure_options(p.add_argument_group("failures"))
    return p


def _serving_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--model-path",
        type=Path,
        metavar="DIR",
        help="tokenizer and chat template; may be left out with --use-sglang-tokenizer: requests are then placed by load alone",
    )
    group.add_argument(
        "--use-sglang-tokenizer",
        dest="text_mode",
        action="store_true",
        help="text mode: pass bodies to the workers' own OpenAI routes, and their answers back, as they are",
    )
    group.add_argument("--http-host", default=RouterConfig.http_host, metavar="HOST", help="default: all interfaces")
    group.add_argument(
        "--http-port",
        type=port,
        default=RouterConfig.http_port,
        metavar="PORT",
        help="default: 8000; 0 takes a free one",
    )
    group.add_argument(
        "--processes",
        type=positive,
        default=RouterConfig.processes,
        metavar="N",
        help="serve the port with N processes, each with its own index (default: 1)",
    )
    group.add_argument(
        "--process-port",
        type=port,
        default=RouterConfig.process_port,
        metavar="PORT",
        help="with several processes, each is also reached alone: at PORT, PORT + 1, … (default: free ones)",
    )
    group.add_argument("--process-index", type=natural, default=None, help=argparse.SUPPRESS)
    group.add_argument(
        "--token-cache-bytes",
        type=natural,
        default=RouterConfig.token_cache_bytes,
        metavar="N",
        help="of text kept with its tokens: a prompt that extends an earlier one costs its new part only (default: 256 MiB)",
    )
    group.add_argument(
        "--max-body-bytes", type=positive, default=RouterConfig.max_body_bytes, metavar="N", help="default: 32 MiB"
    )
    group.add_argument(
        "--admin-token",
        default=os.environ.get("WARMPATH_ADMIN_TOKEN") or None,
        metavar="TOKEN",
        help="allow /admin/… to who gives it as a bearer token (default: WARMPATH_ADMIN_TOKEN, which no process list shows; off)",
    )
    group.add_argument(
        "--engine-admin-key",
        default=os.environ.get("WARMPATH_ENGINE_ADMIN_KEY") or None,
        metavar="KEY",
        help="what engines started with --admin-api-key ask for (default: WARMPATH_ENGINE_ADMIN_KEY)",
    )
    group.add_argument(
        "--log-level",
        default=RouterConfig.log_level,
        choices=["debug", "info", "warning", "error"],
        help="default: info",
    )


def _routing_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--policy",
        default=RouterConfig.policy,
        metavar="NAME",
        help="warm (default), linear, least-loaded, power-of-two, round-robin, random, or one of your own; see docs/policies.md",
    )
    group.add_argument(
        "--decode-policy",
        default=RouterConfig.decode_policy,
        metavar="NAME",
        help="of the decode side, where prefill and decode workers share requests out (default: decode-load)",
    )
    group.add_argument(
        "--policy-option",
        dest="policy_options",
        type=_policy_option,
        action="append",
        default=[],
        metavar="NAME=NUMBER",
        help="a knob of the policy, e.g. prefill_load_scale=4 for linear; repeatable",
    )
    group.add_argument(
        "--block-size",
        type=positive,
        default=RouterConfig.block_size,
        metavar="TOKENS",
        help="routing block; the same as the adapters' (default: 64)",
    )
    group.add_argument(
        "--max-index-blocks",
        type=positive,
        default=RouterConfig.max_index_blocks,
        metavar="N",
        help="bound of the index, about 30 bytes each; beyond it the least recently used go (default: 2**26)",
    )
    group.add_argument(
        "--conditional-disagg",
        "--router-conditional-disagg",
        dest="conditional_disagg",
        action=argparse.BooleanOptionalAction,
        default=RouterConfig.conditional_disagg,
        help="in a fleet that has workers that do all of a request beside prefill and decode workers: choose between them for each "
        "request, by predicted seconds (default); --no-…: a pair whenever there is one",
    )
    group.add_argument(
        "--seed",
        type=int,
        default=RouterConfig.seed,
        help="of ties and random policies (default: another one at every start, so that several routers break ties apart)",
    )


def _fleet_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--kv-events",
        "--router-kv-events",
        dest="kv_events",
        action="store_true",
        default=True,
        help="follow the workers' cache events (default)",
    )
    group.add_argument(
        "--no-kv-events",
        "--no-router-kv-events",
        dest="kv_events",
        action="store_false",
        help="predict caches from what was sent where; needs no NATS",
    )
    group.add_argument(
        "--share-bookings",
        action=argparse.BooleanOptionalAction,
        default=RouterConfig.share_bookings,
        help="routers of one namespace count each other's requests in flight, over NATS (default: with --kv-events)",
    )
    group.add_argument(
        "--no-parity-check",
        dest="parity_check",
        action="store_false",
        help="use workers whose hashes, tokens or probe do not fit nevertheless; it is said and counted all the same",
    )
    group.add_argument(
        "--nats",
        default=RouterConfig.nats,
        metavar="URL",
        help=f"where events come from; a cluster's servers with commas (default: {RouterConfig.nats}); 'embedded' starts one "
        "inside the router",
    )
    group.add_argument(
        "--nats-port",
        type=port,
        default=NATS_PORT,
        metavar="PORT",
        help="of the embedded server (default: 4222; 0: free)",
    )
    group.add_argument(
        "--nats-store-dir",
        type=Path,
        metavar="DIR",
        help="where the embedded server keeps streams; needed for --durable-events with it",
    )
    durable.add_options(group)
    group.add_argument(
        "--namespace", default=RouterConfig.namespace, help="only workers of this one (default: default)"
    )
    add_options(group, memory="none but --worker")
    group.add_argument(
        "--registry-timeout",
        dest="registry_timeout_seconds",
        type=seconds,
        default=RouterConfig.registry_timeout_seconds,
        metavar="SECONDS",
        help="the port opens once the registry has said who is there, or after so long without its answer (default: %(default)g)",
    )
    group.add_argument(
        "--worker",
        dest="workers",
        type=server_url,
        action="append",
        default=[],
        metavar="URL",
        help="an SGLang server without an adapter, predicted; repeatable",
    )
    group.add_argument(
        "--min-workers",
        type=natural,
        default=0,
        metavar="N",
        help="say ready only when N workers are there (default: 0)",
    )


def _failure_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--migration-limit",
        type=natural,
        default=RouterConfig.migration_limit,
        metavar="N",
        help="how often a request goes on elsewhere after its worker failed (default: 3)",
    )
    for option, default, what in (
        ("--connect-timeout", RouterConfig.connect_timeout_seconds, "to connect to a worker"),
        ("--first-token-timeout", RouterConfig.first_token_timeout_seconds, "until a worker's first token"),
        ("--idle-timeout", RouterConfig.idle_timeout_seconds, "between two pieces of a worker's stream"),
        (
            "--transfer-timeout",
            RouterConfig.transfer_timeout_seconds,
            "from the end of a prefill worker's part to the decode worker's first token",
        ),
        (
            "--stall-timeout",
            RouterConfig.stall_timeout_seconds,
            "in which some request on a worker must show something, beyond its prefills' time; else it gets no new ones",
        ),
        ("--ejection", RouterConfig.ejection_seconds, "that a worker gets no requests after a failure; doubles"),
        ("--longest-ejection", RouterConfig.longest_ejection_seconds, "up to this"),
    ):
        group.add_argument(
            option,
            dest=f"{option[2:].replace('-', '_')}_seconds",
            type=seconds,
            default=default,
            metavar="SECONDS",
            help=f"{what} (default: {default:g})",
        )


def parse(arguments: Sequence[str] | None = None) -> RouterConfig:
    """The command line's configuration; exits with status 2 and one line when an option is wrong."""
    p = parser()
    options = vars(p.parse_args(arguments))
    options["policy_options"] = dict(options["policy_options"])
    options["workers"] = tuple(options["workers"])
    return RouterConfig(**options)
