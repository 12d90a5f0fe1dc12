"""The site that is maltreated: NATS, etcd, engines with adapters, and routers, each a process, with links in between.

Every adapter and every router has links of its own to NATS and to etcd, and every engine one over which it is asked: each can be
cut off alone.
"""

from __future__ import annotations

import asyncio
import os
import signal
from typing import TYPE_CHECKING

import aiohttp

from events.bus.broker import EmbeddedBroker
from events.membership.etcd.access import EtcdAccess
from events.membership.etcd.registry import EtcdRegistry
from launch.assembly import Assembly
from launch.etcd import EtcdServer
from launch.link import Link
from launch.stack import MODEL_NAME
from sim import tinymodel
from tests.chaos.natslink import NatsLink
from tests.chaos.part import Part

if TYPE_CHECKING:
    from pathlib import Path
    from typing import Any

NAMESPACE = "chaos"
BLOCK_SIZE = 64
TTL_SECONDS = 2.0
PAGE_SIZES = (16, 64, 1)
RANKS = (1, 2, 1)
"""Of the engines, in turn."""
ENGINE_OPTIONS = (
    *("--max-total-tokens", "16384", "--context-length", "4096", "--decode-step-ms", "2"),
    *("--prefill-tokens-per-second", "400000", "--log-level", "info"),
)
ROUTER_OPTIONS = (
    *("--stall-timeout", "1.5", "--ejection", "0.2", "--longest-ejection", "2", "--connect-timeout", "2"),
    *("--first-token-timeout", "10", "--idle-timeout", "10", "--http-host", "127.0.0.1"),
)


class Site(Assembly):
    """Everything, started and stopped together; `folder` holds logs and data. `durable`: with `--durable-events`."""

    def __init__(self, folder: Path, *, engines: int = 3, routers: int = 2, durable: bool = False) -> None:
        super().__init__()
        self.folder = folder
        self.broker = EmbeddedBroker(store_dir=folder / "streams" if durable else None)
        self._durable = ("--durable-events",) if durable else ()
        self.etcd = EtcdServer(folder / "etcd")
        self.engines: list[Part] = []
        self.adapters: list[Part] = []
        self.routers: list[Part] = []
        self.nats_links: dict[str, NatsLink] = {}
        self.etcd_links: dict[str, Link] = {}
        self.http_links: dict[str, Link] = {}
        """By the part that is cut off with it."""
        self._counts = (engines, routers)
        self.http: aiohttp.ClientSession

    async def _start(self) -> None:
        enter = self._exits.enter_async_context
        self.http = await enter(aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(40)))
        await enter(self.broker)
        await enter(self.etcd)
        engines, routers = self._counts
        for index in range(engines):
            self.engines.append(self._part(f"engine{index}", "sim.worker", self._engine_arguments(index)))
        await self._launch(self.engines)
        for engine in self.engines:
            self.http_links[engine.name] = await enter(Link(engine.announced["http"]))
        for index in range(engines):
            self.adapters.append(self._part(f"adapter{index}", "workers.sglang", self._adapter_arguments(index)))
        for index in range(routers):
            self.routers.append(self._part(f"router{index}", "router", self._router_arguments(index)))
        assert self.broker.port is not None
        for part in (*self.adapters, *self.routers):
            self.nats_links[part.name] = await enter(NatsLink(self.broker.port))
            self.etcd_links[part.name] = await enter(Link(self.etcd.port))
        await self._launch([*self.adapters, *self.routers])

    def _part(self, name: str, module: str, arguments: Any) -> Part:
        part = Part(name, module, arguments, self.folder)
        self._exits.push_async_callback(part.end)
        return part

    async def _launch(self, parts: list[Part]) -> None:
        for part in parts:
            await part.start()
        await asyncio.gather(*(part.ready() for part in parts))

    # ---- command lines

    def _engine_arguments(self, index: int) -> Any:
        def arguments(known: dict[str, Any]) -> list[str]:
            ports = ("http", "port"), ("kv_events", "kv-events-port"), ("replay", "replay-port"), ("load", "load-port")
            return [
                *("--model-path", str(tinymodel.PATH), "--served-model-name", MODEL_NAME),
                *("--page-size", str(PAGE_SIZES[index % 3]), "--dp-size", str(RANKS[index % 3])),
                *(word for name, option in ports if name in known for word in (f"--{option}", str(known[name]))),
                *ENGINE_OPTIONS,
            ]

        return arguments

    def _adapter_arguments(self, index: int) -> Any:
        def arguments(_: dict[str, Any]) -> list[str]:
            url = f"http://127.0.0.1:{self.http_links[f'engine{index}'].port}"
            asked = ["--attach", url, "--worker-id", self.worker_id(index), "--block-size", str(BLOCK_SIZE)]
            return [*asked, *self._place(f"adapter{index}")]

        return arguments

    def _router_arguments(self, index: int) -> Any:
        def arguments(known: dict[str, Any]) -> list[str]:
            port = known["http"].rsplit(":", 1)[1] if known else "0"
            first = () if known else ("--min-workers", str(self._counts[0]))
            return [
                *("--model-path", str(tinymodel.PATH), "--block-size", str(BLOCK_SIZE), "--http-port", port),
                *first,
                *ROUTER_OPTIONS,
                *self._place(f"router{index}"),
            ]

        return arguments

    def _place(self, name: str) -> list[str]:
        etcd = f"http://127.0.0.1:{self.etcd_links[name].port}"
        return [
            *("--nats", f"nats://127.0.0.1:{self.nats_links[name].port}", "--namespace", NAMESPACE),
            *("--discovery", "etcd", "--etcd", etcd, "--discovery-ttl", str(TTL_SECONDS)),
            *self._durable,
        ]

    # ---- where things are

    def engine_url(self, index: int) -> str:
        """Base URL of an engine, past its link."""
        return f"http://127.0.0.1:{self.engines[index].announced['http']}"

    def worker_id(self, index: int) -> str:
        """Its name among routers."""
        return f"worker{index}"

    def router_url(self, index: int) -> str:
        """Base URL of a router."""
        return str(self.routers[index].announced["http"])

    def ranks(self, index: int) -> int:
        """Ranks of an engine."""
        return RANKS[index % 3]

    def registry(self) -> EtcdRegistry:
        """The registry, as a router sees it."""
        return EtcdRegistry(EtcdAccess(urls=(self.etcd.url,)), NAMESPACE, TTL_SECONDS)

    async def kill_broker(self) -> None:
        """End the NATS server at once."""
        assert self.broker.pid is not None
        os.kill(self.broker.pid, signal.SIGKILL)
        while self.broker.running:
            await asyncio.sleep(0.01)

    def signal_broker(self, number: signal.Signals) -> None:
        """Send the NATS server a signal."""
        assert self.broker.pid is not None
        os.kill(self.broker.pid, number)
