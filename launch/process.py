"""A child process that says when it is ready, and dies with us."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import sys
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

READY_TIMEOUT_SECONDS = 120.0  # a router that compiles its kernels for the first time takes a while
STOP_TIMEOUT_SECONDS = 10.0


class ProcessFailed(Exception):
    """A child ended, or did not become ready; the text holds the end of its log."""


class Process:
    """`python -m MODULE …`, logging to a file.

    A ready line is a line `ready {json}` on its standard output; what follows `ready` is `announced`.
    """

    def __init__(self, module: str, arguments: Sequence[str], log: Path) -> None:
        self.module = module
        self.arguments = list(arguments)
        self.log = log
        self.announced: dict[str, Any] = {}
        self._child: asyncio.subprocess.Process | None = None
        self._reader: asyncio.Task[None] | None = None
        self._ready = asyncio.Event()

    def __repr__(self) -> str:
        state = "not started" if self._child is None else f"pid {self.pid}"
        return f"<Process {self.module} {state}>"

    @property
    def pid(self) -> int:
        """Process id.

        :raises ProcessFailed: it was not started.
        """
        if self._child is None:
            raise ProcessFailed(f"{self.module} was not started")
        return self._child.pid

    async def start(self) -> Self:
        """Start it without waiting for readiness."""
        with self.log.open("ab") as errors:
            self._child = await asyncio.create_subprocess_exec(
                sys.executable, "-m", self.module, *self.arguments, stdout=asyncio.subprocess.PIPE, stderr=errors
            )
        self._reader = asyncio.create_task(self._read())
        return self

    async def ready(self, seconds: float = READY_TIMEOUT_SECONDS) -> Self:
        """Wait for its ready line.

        :raises ProcessFailed: it ended first, or took longer.
        """
        assert self._child is not None
        waiters = {asyncio.create_task(self._ready.wait()), asyncio.create_task(self._child.wait())}
        _, pending = await asyncio.wait(waiters, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        for waiter in pending:
            waiter.cancel()
        if not self._ready.is_set():
            raise ProcessFailed(f"{self.module} did not become ready; {self.log} ends with:\n{self.last_words()}")
        return self

    async def ended(self, seconds: float = READY_TIMEOUT_SECONDS) -> int:
        """Wait for its own end; its exit status.

        :raises TimeoutError: it took longer.
        """
        assert self._child is not None
        return await asyncio.wait_for(self._child.wait(), seconds)

    async def stop(self, number: signal.Signals = signal.SIGTERM) -> int | None:
        """Ask it to stop, then insist; its exit status, None if it never ran."""
        if self._child is None:
            return None
        if self._child.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._child.send_signal(number)
            try:
                await asyncio.wait_for(self._child.wait(), STOP_TIMEOUT_SECONDS)
            except TimeoutError:
                self._child.kill()
                await self._child.wait()
        if self._reader is not None:
            await self._reader
        return self._child.returncode

    def send(self, number: signal.Signals) -> None:
        """Send a signal, e.g. SIGKILL or SIGSTOP, without waiting."""
        assert self._child is not None
        self._child.send_signal(number)

    def last_words(self, lines: int = 15) -> str:
        """The end of its log."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    async def _read(self) -> None:
        assert self._child is not None
        assert self._child.stdout is not None
        async for line in self._child.stdout:
            if line.startswith(b"ready "):
                self.announced = json.loads(line[len(b"ready ") :])
                self._ready.set()
