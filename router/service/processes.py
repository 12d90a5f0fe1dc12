"""One port served by several processes, each a whole router with its own index; a parent starts, watches and stops them.

The system shares new connections out among them (SO_REUSEPORT). If one dies, the parent stops the others and fails: whoever started
it restarts all of them, and nobody mistakes a part of the router for the whole.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import socket
import sys
from asyncio.subprocess import PIPE
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

from router.config import EMBEDDED, ConfigError, ProcessDied
from router.frontend.server import ANY_HOST

if TYPE_CHECKING:
    from asyncio.subprocess import Process
    from collections.abc import Iterator, Sequence

    from router.config import RouterConfig

logger = logging.getLogger(__name__)

STOP_SECONDS = 15.0
"""How long the processes may take to stop: a little longer than they give their own requests."""


class RouterProcesses:
    """The processes of one router. `arguments` is the command line that it was started with."""

    def __init__(self, config: RouterConfig, arguments: Sequence[str]) -> None:
        self.config = config
        self._arguments = list(arguments)
        self._processes: list[Process] = []

    def __repr__(self) -> str:
        return f"RouterProcesses({[process.pid for process in self._processes]})"

    async def run(self, stopping: asyncio.Event) -> None:
        """Serve until `stopping` is set; says `ready {json}` on standard output once, when all processes are.

        :raises ConfigError: the port cannot be used, or a process says that it cannot be started as asked.
        :raises ProcessDied: one ended by itself; the others are stopped.
        """
        async with AsyncExitStack() as parts:
            port = parts.enter_context(self._reserved_port())
            extra = ["--http-port", str(port), *await self._broker(parts)]
            parts.push_async_callback(self._stop)
            for index in range(self.config.processes):
                self._processes.append(await self._start(index, extra))
            watches = [asyncio.create_task(self._watch(process), name="watch") for process in self._processes]
            for watch in watches:
                parts.callback(watch.cancel)
            stopped = asyncio.create_task(stopping.wait())
            parts.callback(stopped.cancel)
            ready = asyncio.create_task(self._ready(port))
            parts.callback(ready.cancel)
            await asyncio.wait([stopped, *watches], return_when=asyncio.FIRST_COMPLETED)
            if not stopping.is_set():
                next(watch for watch in watches if watch.done()).result()

    @contextlib.contextmanager
    def _reserved_port(self) -> Iterator[int]:
        """The port that all share; held, but not listened at, so that it stays ours while they start."""
        host = self.config.http_host
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        with socket.socket(family) as held:
            held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            try:
                held.bind((host, self.config.http_port))
            except OSError as error:
                raise ConfigError(f"--http-port {self.config.http_port}: {error.strerror or error}") from error
            yield held.getsockname()[1]

    async def _broker(self, parts: AsyncExitStack) -> list[str]:
        """Start the embedded broker, if one is asked for: one for all."""
        if not self.config.uses_bus or self.config.nats != EMBEDDED:
            return []
        from events.bus.broker import EmbeddedBroker  # the only use here: a parent without it starts faster

        broker = await parts.enter_async_context(
            EmbeddedBroker(self.config.nats_port, store_dir=self.config.nats_store_dir)
        )
        logger.info("embedded NATS server: start adapters with --nats %s", broker.url)
        return ["--nats", broker.url]

    async def _start(self, index: int, extra: list[str]) -> Process:
        """Later options win over earlier ones; the pipe at its standard input tells it when its parent is gone."""
        own = ["--process-index", str(index)]
        if self.config.seed is not None:
            own += ["--seed", str(self.config.seed + index)]  # ties are broken apart
        command = [sys.executable, "-m", "router", *self._arguments, *extra, *own]
        return await asyncio.create_subprocess_exec(*command, stdin=PIPE, stdout=PIPE)

    async def _ready(self, port: int) -> None:
        """Say so once all have."""
        urls = [await _ready_url(process) for process in self._processes]
        host = ANY_HOST.get(self.config.http_host, self.config.http_host)
        url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
        logger.info("%d processes serve on %s", len(urls), url)
        sys.stdout.write(f"ready {json.dumps({'http': url, 'processes': urls})}\n")
        sys.stdout.flush()

    async def _watch(self, process: Process) -> None:
        status = await process.wait()
        if status == 2:
            raise ConfigError("a process could not be started as asked; it has said why")
        raise ProcessDied(f"process {process.pid} of the router ended with status {status}")

    async def _stop(self) -> None:
        """Ask all to stop, and see that they do."""
        running = [process for process in self._processes if process.returncode is None]
        for process in running:
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
        try:
            async with asyncio.timeout(STOP_SECONDS):
                await asyncio.gather(*(process.wait() for process in running))
        except TimeoutError:
            for process in running:
                if process.returncode is None:
                    logger.warning("process %d did not stop in %g s: killed", process.pid, STOP_SECONDS)
                    process.kill()
            await asyncio.gather(*(process.wait() for process in running))


async def _ready_url(process: Process) -> str:
    """Where the process alone is reached, once it says that it is ready."""
    assert process.stdout is not None
    async for line in process.stdout:
        if line.startswith(b"ready "):
            return str(json.loads(line.removeprefix(b"ready "))["http"])
    return await asyncio.Future()  # it ended: its watch says so
