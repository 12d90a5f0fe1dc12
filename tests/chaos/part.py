"""A process of the site: it can be killed, stopped, and started again where it was."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from typing import TYPE_CHECKING

from launch.process import Process, ProcessFailed

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path
    from typing import Any

ATTEMPTS = 10
RETRY_SECONDS = 1.0


class Part:
    """`arguments` gives the command line for each start, so that later ones can name the ports that the first was given."""

    def __init__(
        self, name: str, module: str, arguments: Callable[[dict[str, Any]], Sequence[str]], folder: Path
    ) -> None:
        self.name = name
        self.announced: dict[str, Any] = {}
        """By its first ready line: where it is, ever after."""
        self.running = False
        self.stopped = False
        self._module = module
        self._arguments = arguments
        self._log = folder / f"{name}.log"
        self._process: Process | None = None

    def __repr__(self) -> str:
        return f"<Part {self.name}>"

    async def start(self) -> None:
        """Start it, without waiting for it."""
        self._process = Process("tests.chaos.skewed", [self._module, *self._arguments(self.announced)], self._log)
        await self._process.start()
        self.running = True

    async def ready(self) -> None:
        """Until it says so."""
        assert self._process is not None
        await self._process.ready()
        self.announced = self.announced or self._process.announced

    async def start_again(self) -> None:
        """Start it where it was, and wait; again, if somebody has taken its port meanwhile.

        :raises ProcessFailed: it does not come up.
        """
        for attempt in range(ATTEMPTS):
            await self.start()
            try:
                await self.ready()
            except ProcessFailed:
                if attempt == ATTEMPTS - 1:
                    raise
                await self.kill()
                await asyncio.sleep(RETRY_SECONDS)
            else:
                return

    async def kill(self) -> None:
        """End it at once."""
        process, self._process = self._process, None
        self.running = self.stopped = False
        if process is not None:
            await process.stop(signal.SIGKILL)

    async def end(self) -> None:
        """End it as an operator would."""
        process, self._process = self._process, None
        self.running = self.stopped = False
        if process is not None:
            with contextlib.suppress(ProcessLookupError):  # it ended by itself
                process.send(signal.SIGCONT)
            await process.stop(signal.SIGTERM)

    def send(self, number: signal.Signals) -> None:
        """Send it a signal."""
        assert self._process is not None
        self._process.send(number)
        self.stopped = number == signal.SIGSTOP
