"""`python -m router`: see `router.config` for the options."""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
from typing import TYPE_CHECKING

from events.command import USAGE_ERROR
from events.origin import ForeignPackage, check_one_root
from router.config import ConfigError, ProcessDied, parse

if TYPE_CHECKING:
    from router.config import RouterConfig

PROCESS_DIED = 1


async def serve(config: RouterConfig) -> None:
    """Run a router until SIGINT or SIGTERM; one of several processes also ends with its parent."""
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stopping.set)
    # After the options were parsed: --help and a wrong option need none of what follows.
    if config.processes > 1 and config.process_index is None:
        from router.service.processes import RouterProcesses

        await RouterProcesses(config, sys.argv[1:]).run(stopping)
        return
    from router.service.app import RouterService

    if config.process_index is not None:
        _end_with_parent(stopping)
    await RouterService(config).run(stopping)


def _process_tag(config: RouterConfig) -> str:
    """Tells the log lines of several processes apart."""
    return "" if config.process_index is None else f"[{config.process_index}] "


def _end_with_parent(stopping: asyncio.Event) -> None:
    """The parent holds the other end of standard input, and writes nothing: readable means that it is gone."""
    loop = asyncio.get_running_loop()

    def ended() -> None:
        loop.remove_reader(sys.stdin)
        stopping.set()

    loop.add_reader(sys.stdin, ended)


def main() -> int:
    """The router's command line; status 2 and one line on standard error when it cannot be started as asked."""
    import uvloop

    try:
        config = parse()
        check_one_root()
        logging.basicConfig(
            level=config.log_level.upper(),
            format=f"%(asctime)s %(levelname).1s {_process_tag(config)}%(name)s  %(message)s",
            stream=sys.stderr,
        )
        uvloop.run(serve(config))
    except (ConfigError, ForeignPackage) as error:
        sys.stderr.write(f"python -m router: error: {error}\n")
        return USAGE_ERROR
    except ProcessDied as error:
        sys.stderr.write(f"python -m router: {error}; the others were stopped\n")
        return PROCESS_DIED
    return 0


if __name__ == "__main__":
    sys.exit(main())
