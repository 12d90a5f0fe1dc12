"""`python -m workers.sglang`: the adapter as a process of its own beside an SGLang server."""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import signal
import sys
from typing import TYPE_CHECKING

import uvloop

from events.blocks import DEFAULT_BLOCK_SIZE
from events.bus import BusUnavailable
from events.bus.nats import DEFAULT_URL, NatsBus
from events.command import USAGE_ERROR, Parser, positive, seconds, server_url
from events.membership import RegistryError, discovery
from events.membership.server_info import default_worker_id
from events.origin import ForeignPackage, check_one_root

from .adapter import Adapter, Pace
from .card import EVENTS_FLAG, CardError, Chosen

if TYPE_CHECKING:
    from collections.abc import Sequence

    from events.membership import WorkerCard

logger = logging.getLogger(__name__)

EXAMPLE = f"""\
example, on one machine:
  nats-server &
  python -m sglang.launch_server --model-path Qwen/Qwen3-8B --port 30000 --page-size 64 \\
    --decode-log-interval 4 --load-publish-endpoint auto \\
    {EVENTS_FLAG} &
  python -m workers.sglang --attach http://127.0.0.1:30000

The adapter reads everything else from the server: model, ranks, page size, capacity, event and load ports ("*" in an event
endpoint stands for the host of --attach). It waits for a server that is not up yet, withdraws one that is gone, and starts
over when it comes back. Without --kv-events-config the server is registered all the same, and routers predict its cache.

Once registered it prints a line `ready {{"worker_id": …}}` on standard output. SIGTERM withdraws the worker, then stops.
Exit status: 0 after SIGTERM or SIGINT; 2 after an error, said on one line.
"""


def parser() -> Parser:
    """The command line."""
    parser = Parser(
        prog="python -m workers.sglang",
        description="Relay a running SGLang server's cache events and load to warmpath's routers, and register it with them.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--attach", required=True, type=server_url, metavar="URL", help="the server, e.g. http://127.0.0.1:30000")
    add("--nats", default=DEFAULT_URL, metavar="URL", help="the broker (default: %(default)s)")
    add(
        "--namespace",
        default="default",
        help="which routers see it: those of the same namespace (default: %(default)s)",
    )
    discovery.add_options(parser, memory="nowhere outside this process")
    add(
        *("--block-size",),
        type=positive,
        default=DEFAULT_BLOCK_SIZE,
        metavar="TOKENS",
        help="routing block, the same for all routers and workers; any page size of the server will do (default: %(default)s)",
    )
    add("--worker-id", metavar="ID", help="name of the worker (default: host and port of --attach)")
    add("--model-name", metavar="NAME", help="name that clients ask for (default: the server's --served-model-name)")
    add(
        *("--load-poll-seconds",),
        type=seconds,
        default=Pace().load_poll_seconds,
        metavar="S",
        help="how often to ask a server for its load that was started without --load-publish-endpoint (default: %(default)s)",
    )
    levels = ["debug", "info", "warning", "error"]
    add("--log-level", choices=levels, default="info", help="what to log on standard error (default: %(default)s)")
    return parser


async def serve(options: argparse.Namespace) -> None:
    """Run the adapter until SIGTERM or SIGINT.

    :raises BusUnavailable: no broker answers at start.
    :raises RegistryError: the registry does not take the card.
    :raises CardError: the server says something of itself that routers cannot use.
    :raises ValueError: the broker's URL is none.
    """
    chosen = Chosen(
        options.attach, options.worker_id or default_worker_id(options.attach), options.block_size, options.model_name
    )
    pace = Pace(load_poll_seconds=options.load_poll_seconds)
    registry = discovery.open_registry(options)
    async with NatsBus(options.nats, name=f"adapter of {chosen.worker_id}") as bus:
        adapter = Adapter(chosen, bus, registry, namespace=options.namespace, pace=pace, announce=_announce)
        try:
            await _until_signalled(adapter)
        finally:
            await registry.close()


async def _until_signalled(adapter: Adapter) -> None:
    running = asyncio.create_task(adapter.run())
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, running.cancel)
    try:
        await running
    except asyncio.CancelledError:
        logger.info("stopped: %s", adapter.statistics())


def _announce(card: WorkerCard) -> None:
    about = {"worker_id": card.worker_id, "epoch": card.epoch, "model": card.model, "kv_events": card.kv_events}
    print("ready", json.dumps(about), flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; its exit status."""
    options = parser().parse_args(arguments)
    logging.basicConfig(
        level=options.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr
    )
    try:
        check_one_root()
        uvloop.run(serve(options))
    except (ForeignPackage, BusUnavailable, RegistryError, CardError, ValueError, OSError) as error:
        print(f"python -m workers.sglang: error: {error}", file=sys.stderr)
        return USAGE_ERROR
    return 0


if __name__ == "__main__":
    sys.exit(main())
