"""A real SGLang server on the CPU, with dummy weights: what tests/engine compares the router's beliefs with."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
from typing import TYPE_CHECKING, Any, Self

import aiohttp

from sim import tinymodel
from tests.engine.install import environment, interpreter

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path
    from types import TracebackType

READY_TIMEOUT_SECONDS = 300.0
MODEL_NAME = "tiny"


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on now."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


def free_run(count: int) -> int:
    """The first of so many ports in a row that nobody listens on now."""
    while True:
        first = free_ports(1)[0]
        with contextlib.ExitStack() as held, contextlib.suppress(OSError, OverflowError):
            for port in range(first, first + count):
                held.enter_context(socket.create_server(("127.0.0.1", port)))
            return first


TRANSFER = {"WARMPATH_ENGINE_TRANSFER": "1"}
HOST_TIER = {"WARMPATH_ENGINE_HOST_TIER": "1"}


def prefill_server(folder: Path, *options: str, core: int = 0, **settings: Any) -> EngineServer:
    """A server that prefills, and sends KV over NIXL."""
    port = free_ports(1)[0]
    part = ("--disaggregation-mode", "prefill", "--disaggregation-bootstrap-port", str(port))
    backend = ("--disaggregation-transfer-backend", "nixl")
    return EngineServer(folder, *part, *backend, *options, core=core, variables=TRANSFER, **settings)


def decode_server(folder: Path, *options: str, core: int = 0, **settings: Any) -> EngineServer:
    """A server that receives KV over NIXL, and decodes."""
    backend = ("--disaggregation-transfer-backend", "nixl")
    part = ("--disaggregation-mode", "decode")
    return EngineServer(folder, *part, *backend, *options, core=core, variables=TRANSFER, **settings)


class EngineServer:
    """`async with EngineServer(folder) as engine: engine.url`.

    `options` go to SGLang as they are; `ranks` is how many of them it has (with `--dp-size`), `variables` the stubs it needs.
    """

    def __init__(
        self,
        folder: Path,
        *options: str,
        page_size: int = 16,
        pool_tokens: int = 4096,
        core: int = 0,
        ranks: int = 1,
        variables: Mapping[str, str] | None = None,
    ) -> None:
        self.port = free_ports(1)[0]
        self.kv_port = free_run(3 * ranks)
        self.replay_port = self.kv_port + ranks
        self._options = list(options)
        self._ranks = ranks
        self._variables = dict(variables or {})
        self.url = f"http://127.0.0.1:{self.port}"
        self.page_size = page_size
        self.pool_tokens = pool_tokens
        self.log = folder / f"sglang-{self.port}.log"
        self._core = core
        self._child: asyncio.subprocess.Process | None = None

    def _command(self) -> list[str]:
        events = {
            "publisher": "zmq",
            "endpoint": f"tcp://*:{self.kv_port}",
            "replay_endpoint": f"tcp://*:{self.replay_port}",
        }
        return [
            *(str(interpreter()), "-W", "ignore::UserWarning", "-m", "sglang.launch_server"),
            *("--model-path", str(tinymodel.PATH), "--served-model-name", MODEL_NAME, "--load-format", "dummy"),
            *("--device", "cpu", "--attention-backend", "torch_native", "--sampling-backend", "pytorch"),
            *("--cuda-graph-backend-decode", "disabled", "--cuda-graph-backend-prefill", "disabled"),
            *("--disable-overlap-schedule", "--sleep-on-idle", "--mem-fraction-static", "0.1", "--skip-server-warmup"),
            *("--host", "127.0.0.1", "--port", str(self.port), "--context-length", "4096"),
            *("--page-size", str(self.page_size), "--max-total-tokens", str(self.pool_tokens)),
            *("--chunked-prefill-size", "512", "--decode-log-interval", "1"),
            *("--load-publish-endpoint", "auto", "--kv-events-config", json.dumps(events)),
            *self._options,
        ]

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def start(self) -> None:
        """Start it, at its ports, and wait until it serves."""
        # Cores are given out by hand: SGLang's own binding asserts on machines with few of them.
        cores = os.cpu_count() or 1
        binding = "|".join(str((self._core + rank) % cores) for rank in range(self._ranks))
        env = environment() | {"SGLANG_CPU_OMP_THREADS_BIND": binding} | self._variables
        with self.log.open("wb") as log:
            self._child = await asyncio.create_subprocess_exec(
                *self._command(),
                stdout=log,
                stderr=log,
                stdin=asyncio.subprocess.DEVNULL,
                env=env,
                start_new_session=True,
            )
        try:
            await asyncio.wait_for(self._ready(), READY_TIMEOUT_SECONDS)
        except BaseException:
            await self.stop()
            raise

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def _ready(self) -> None:
        assert self._child is not None
        async with aiohttp.ClientSession() as session:
            while True:
                if self._child.returncode is not None:
                    end = "\n".join(self.log.read_text(errors="replace").splitlines()[-20:])
                    raise RuntimeError(f"SGLang ended while starting:\n{end}")
                with contextlib.suppress(aiohttp.ClientError):
                    async with session.get(f"{self.url}/ready") as reply:
                        if reply.status == 200:
                            return
                await asyncio.sleep(0.2)

    def kill(self) -> None:
        """End it as a crash would."""
        assert self._child is not None
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._child.pid, signal.SIGKILL)

    async def stop(self) -> None:
        """End the whole process group; idempotent."""
        if self._child is None:
            return
        group, self._child = self._child, None
        for number, seconds in ((signal.SIGTERM, 10), (signal.SIGKILL, 10)):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(group.pid, number)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(group.wait(), seconds)
                break
        with contextlib.suppress(ProcessLookupError):
            os.killpg(group.pid, signal.SIGKILL)
