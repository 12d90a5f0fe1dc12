"""A whole warmpath on one machine: NATS, fake workers with their adapters, one router.

async with Stack(folder, workers=4) as stack:
    router = await stack.route("--policy", "warm")
    …  # router.announced["http"]
"""

from __future__ import annotations

import asyncio
import shlex
import signal
import socket
import sys
from typing import TYPE_CHECKING

from events.bus.broker import EmbeddedBroker
from sim import tinymodel

from .assembly import Assembly
from .process import Process

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

MODEL_NAME = "warmpath-tiny"
NAMESPACE = "default"


def free_port() -> int:
    """A port that nobody listens at now."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


class Stack(Assembly):
    """Starts and stops the parts; `folder` holds logs and the registry."""

    def __init__(
        self,
        folder: Path,
        *,
        workers: int,
        block_size: int = 64,
        worker_options: Sequence[str] = (),
        adapters: bool = True,
    ) -> None:
        super().__init__()
        self.folder = folder
        self.block_size = block_size
        self.workers: list[Process] = []
        self.worker_urls: list[str] = []
        self.adapters: list[Process] = []
        self.router: Process | None = None
        self.broker = EmbeddedBroker()
        self.nats_url = ""
        self._count = workers
        self._worker_options = list(worker_options)
        self._with_adapters = adapters

    async def _start(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        await self._exits.enter_async_context(self.broker)
        self.nats_url = self.broker.url
        self.workers = [
            await self.spawn("sim.worker", self._worker_arguments(), f"worker{n}") for n in range(self._count)
        ]
        await asyncio.gather(*(worker.ready() for worker in self.workers))
        self.worker_urls = [f"http://127.0.0.1:{worker.announced['http']}" for worker in self.workers]
        if self._with_adapters:
            self.adapters = [await self.attach(url, f"adapter{n}") for n, url in enumerate(self.worker_urls)]
            await asyncio.gather(*(adapter.ready() for adapter in self.adapters))

    def _worker_arguments(self) -> list[str]:
        return [
            *("--model-path", str(tinymodel.PATH), "--served-model-name", MODEL_NAME),
            *("--port", "0", "--page-size", "16"),
            *self._worker_options,
        ]

    async def attach(self, url: str, name: str) -> Process:
        """An adapter beside the server at `url`, started."""
        arguments = ["--attach", url, "--block-size", str(self.block_size), *self.place()]
        return await self.spawn("workers.sglang", arguments, name)

    async def launch(self, *options: str, name: str) -> Process:
        """A fake worker and its adapter as one, as `python -m workers.sglang` launches SGLang; started."""
        engine = f"{shlex.quote(sys.executable)} -m sim.worker"
        arguments = ["--engine-command", engine, "--block-size", str(self.block_size), *self.place()]
        arguments += [
            "--model-path",
            str(tinymodel.PATH),
            "--served-model-name",
            MODEL_NAME,
            "--port",
            str(free_port()),
        ]
        return await self.spawn("workers.sglang", [*arguments, *options], name)

    async def route(self, *options: str, name: str = "router") -> Process:
        """A router with these options, serving; the one before it is stopped."""
        if self.router is not None:
            await self.router.stop()
        arguments = ["--http-port", "0", "--model-path", str(tinymodel.PATH), "--block-size", str(self.block_size)]
        self.router = await self.spawn("router", [*arguments, *self.place(), *options], name)
        return await self.router.ready()

    def place(self) -> list[str]:
        """The options by which adapters and routers of this stack find each other."""
        return [
            *("--nats", self.nats_url, "--namespace", NAMESPACE),
            *("--discovery", "file", "--discovery-path", str(self.folder / "registry")),
        ]

    async def spawn(self, module: str, arguments: Sequence[str], name: str) -> Process:
        """A part of the stack, started, stopped with it; its log is `<folder>/<name>.log`."""
        process = Process(module, arguments, self.folder / f"{name}.log")
        self._exits.push_async_callback(process.stop, signal.SIGTERM)
        return await process.start()
