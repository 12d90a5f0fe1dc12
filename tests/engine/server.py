"""A real SGLang server on the CPU, with dummy weights: what tests/engine compares the router's beliefs with."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
from typing import TYPE_CHECKING, Self

import aiohttp

from sim import tinymodel
from tests.engine.install import environment, interpreter

if TYPE_CHECKING:
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


class EngineServer:
    """`async with EngineServer(folder) as engine: engine.url`."""

    def __init__(self, folder: Path, *, page_size: int = 16, pool_tokens: int = 4096, core: int = 0) -> None:
        self.port, self.kv_port, self.replay_port = free_ports(3)
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
        ]

    async def __aenter__(self) -> Self:
        # Cores are given out by hand: SGLang's own binding asserts on machines with few of them.
        env = environment() | {"SGLANG_CPU_OMP_THREADS_BIND": str(self._core % (os.cpu_count() or 1))}
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
        return self

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
