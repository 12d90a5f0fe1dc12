"""The options that ask for a history at the broker, the same for routers and adapters."""

from __future__ import annotations

from typing import TYPE_CHECKING

from events.bus.log import Limits
from events.command import positive, seconds

if TYPE_CHECKING:
    import argparse


def add_options(group: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """`--durable-events` and its limits."""
    default = Limits()
    group.add_argument(
        "--durable-events",
        action="store_true",
        help="keep events and checkpoints in the broker's JetStream, so that a router that starts learns them there and asks no "
        "worker; routers and adapters alike, and nats-server --jetstream",
    )
    group.add_argument(
        "--durable-bytes",
        type=positive,
        default=default.max_bytes,
        metavar="N",
        help="most that each of the two streams keeps; the oldest goes first (default: 1 GiB)",
    )
    group.add_argument(
        "--durable-age",
        dest="durable_age_seconds",
        type=seconds,
        default=default.max_age_seconds,
        metavar="SECONDS",
        help="longest that anything is kept (default: %(default)g)",
    )
    group.add_argument(
        "--durable-replicas",
        type=positive,
        default=default.replicas,
        metavar="N",
        help="servers of a NATS cluster that keep a copy, 1, 3 or 5 (default: %(default)s)",
    )


def limits_of(options: argparse.Namespace) -> Limits:
    """The limits that a command line asks for."""
    return Limits(options.durable_bytes, options.durable_age_seconds, options.durable_replicas)
