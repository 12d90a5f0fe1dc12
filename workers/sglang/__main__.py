"""`python -m workers.sglang`: an SGLang server with its adapter, or the adapter beside one that runs; see `options`."""

from __future__ import annotations

import asyncio
import json
import logging
import signal
import sys
import tempfile
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import uvloop

from events import durable
from events.bus import BusUnavailable
from events.bus.nats import NatsBus
from events.command import USAGE_ERROR
from events.history import jetstream_history
from events.membership import RegistryError, discovery
from events.membership.server_info import default_worker_id
from events.origin import ForeignPackage, check_one_root

from . import config_file
from .adapter import Adapter, Pace
from .cancelling import cancelled
from .card import CardError, Chosen
from .launching.arguments import Launch, Wishes, complete, with_wishes
from .launching.command import OtherCommand, SglangCommand
from .launching.drain import Patience
from .launching.restarts import Restarts
from .launching.supervisor import Supervisor
from .options import CommandLine, parse

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Mapping, Sequence

    from events.membership import Registry, WorkerCard

    from .launching.command import EngineCommand

logger = logging.getLogger(__name__)


async def serve(line: CommandLine) -> int:
    """Run until SIGTERM or SIGINT, or until a launched engine has ended for good; the exit status.

    :raises BusUnavailable: no broker answers at start.
    :raises RegistryError: the registry does not take the card.
    :raises CardError: the server says something of itself that routers cannot use.
    :raises ValueError: the broker's URL is none, or the engine does not take its options.
    """
    options = line.options
    async with AsyncExitStack() as parts:
        launch = await _launch(line, parts) if options.attach is None else None
        url = options.attach if launch is None else f"http://{launch.host}:{launch.port}"
        chosen = _chosen(options, url, launch)
        registry = discovery.open_registry(options)
        bus = await parts.enter_async_context(NatsBus(options.nats, name=f"adapter of {chosen.worker_id}"))
        parts.push_async_callback(registry.close)
        if launch is None:
            await _until_signalled(_adapter(options, chosen, bus, registry))
            return 0
        attend = (lambda: _adapter(options, chosen, bus, registry)) if launch.leads else None
        supervisor = Supervisor(
            [*_command(options).words, *launch.words],
            url,
            attend,
            restarts=Restarts(**_given(policy=options.restart, most_in_a_row=options.max_restarts)),
            patience=_patience(options),
        )
        _on_signal(supervisor.stop)
        return await supervisor.run()


# ---- launching


async def _launch(line: CommandLine, parts: AsyncExitStack) -> Launch:
    """The engine's arguments, complete."""
    options, command = line.options, _command(line.options)
    given = [*_config_words(line, command, parts), *line.engine]
    wishes = Wishes(
        options.tool_call_parser,
        options.reasoning_parser,
        options.custom_jinja_template,
        options.embedding_worker,
        options.use_sglang_tokenizer,
        options.log_level,
        options.advertise_host,
        options.nats,
    )
    arguments = with_wishes(given, wishes)
    launch = complete(arguments, await command.understand(arguments), wishes)
    for said in launch.said:
        logger.warning("%s", said)
    if not launch.leads:
        logger.info("node %s of several: the first node's worker is registered", launch.given("node_rank"))
    return launch


def _command(options: argparse.Namespace) -> EngineCommand:
    return OtherCommand(options.engine_command) if options.engine_command else SglangCommand(options.python)


def _config_words(line: CommandLine, command: EngineCommand, parts: AsyncExitStack) -> list[str]:
    """The engine's part of the configuration file: for SGLang as a file of its own, for others as options."""
    if not line.engine_config:
        return []
    if isinstance(command, OtherCommand):
        pairs = ((f"--{key.replace('_', '-')}", value) for key, value in line.engine_config.items())
        return [word for option, value in pairs for word in config_file.as_words(option, value)]
    folder = parts.enter_context(tempfile.TemporaryDirectory(prefix="warmpath-"))
    path = Path(folder) / "sglang.yaml"
    config_file.dump(line.engine_config, path)
    return ["--config", str(path)]


def _patience(options: argparse.Namespace) -> Patience:
    names = ("grace_seconds", "drain_seconds", "stop_seconds")
    return Patience(**_given(**{name: getattr(options, name) for name in names}))


def _given(**values: Any) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


# ---- the adapter


def _chosen(options: argparse.Namespace, url: str, launch: Launch | None) -> Chosen:
    """What of the card the server does not decide.

    :raises OSError: the chat template cannot be read.
    """
    advertised = None if launch is None else launch.advertised
    worker_id = options.worker_id or default_worker_id(advertised or url)
    return Chosen(url, worker_id, options.block_size, options.model_name, _stated(options), advertised)


def _stated(options: argparse.Namespace) -> Mapping[str, object]:
    stated = _given(
        migration_limit=options.migration_limit,
        tool_call_parser=options.tool_call_parser,
        reasoning_parser=options.reasoning_parser,
        engine_routes=tuple(options.engine_routes) or None,
        engine_tokenizes=options.use_sglang_tokenizer or None,
        embedding=options.embedding_worker or None,
    )
    if options.custom_jinja_template is not None:
        source = options.custom_jinja_template.read_text(encoding="utf-8")
        stated |= {"chat_template": source, "named_template": None}
    return stated


def _adapter(options: argparse.Namespace, chosen: Chosen, bus: NatsBus, registry: Registry) -> Adapter:
    pace = Pace(load_poll_seconds=options.load_poll_seconds)
    history = jetstream_history(bus, options.namespace, durable.limits_of(options)) if options.durable_events else None
    return Adapter(
        chosen,
        bus,
        registry,
        namespace=options.namespace,
        pace=pace,
        history=history,
        parity_probe=options.parity_probe,
        announce=_announce,
    )


async def _until_signalled(adapter: Adapter) -> None:
    running, stopped = asyncio.create_task(adapter.run()), asyncio.Event()
    _on_signal(stopped.set)
    stopping = asyncio.create_task(stopped.wait())
    await asyncio.wait({running, stopping}, return_when=asyncio.FIRST_COMPLETED)
    await cancelled(stopping)
    if running.done():
        running.result()  # its error: it does not end by itself
    await cancelled(running)
    logger.info("stopped: %s", adapter.statistics())


def _on_signal(stop: Callable[[], object]) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop)


def _announce(card: WorkerCard) -> None:
    about = {"worker_id": card.worker_id, "epoch": card.epoch, "model": card.model, "kv_events": card.kv_events}
    print("ready", json.dumps(about | {"endpoint": card.endpoint}), flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; its exit status."""
    line = parse(arguments)
    logging.basicConfig(
        level=(line.options.log_level or "info").upper(),
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
        stream=sys.stderr,
    )
    try:
        check_one_root()
        return uvloop.run(serve(line))
    except (ForeignPackage, BusUnavailable, RegistryError, CardError, ValueError, OSError) as error:
        print(f"python -m workers.sglang: error: {error}", file=sys.stderr)
        return USAGE_ERROR


if __name__ == "__main__":
    sys.exit(main())
