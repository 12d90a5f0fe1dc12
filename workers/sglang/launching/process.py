"""The engine as a child process, with all children of its own."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import logging
import os
import signal
import sys
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType

logger = logging.getLogger(__name__)

PR_SET_PDEATHSIG = 1
KILLED_SECONDS = 10.0
_LIBC = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None


class EngineProcess:
    """`async with EngineProcess(words) as engine`: started on entry, not there any more after.

    It leads a group of its own, so that Ctrl-C at a terminal reaches only its supervisor, which ends it in order. It gets SIGTERM
    if its supervisor dies. What it prints goes to standard error.
    """

    def __init__(self, words: Sequence[str]) -> None:
        self._words = list(words)
        self._child: asyncio.subprocess.Process | None = None

    def __repr__(self) -> str:
        return f"<EngineProcess {self._child.pid if self._child else 'not started'}: {self._words[0]}>"

    @property
    def pid(self) -> int:
        """Process id; of its group, too."""
        assert self._child is not None
        return self._child.pid

    async def __aenter__(self) -> Self:
        """Start it.

        :raises OSError: there is no such command.
        """
        self._child = await asyncio.create_subprocess_exec(
            *self._words,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=sys.stderr.fileno(),
            start_new_session=True,
            preexec_fn=_follow_parent,
        )
        logger.info("engine started, process %d: %s", self.pid, " ".join(self._words))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave nothing of it behind."""
        assert self._child is not None
        self._signal(signal.SIGKILL)
        await self._child.wait()

    async def wait(self) -> int:
        """Until it ends; its exit status as a shell has it: 128 and the signal's number if one killed it."""
        assert self._child is not None
        status = await self._child.wait()
        return status if status >= 0 else 128 - status

    async def stop(self, within_seconds: float) -> None:
        """Ask it to stop; kill it if it has not by then."""
        assert self._child is not None
        with contextlib.suppress(ProcessLookupError):
            self._child.send_signal(signal.SIGTERM)  # to it alone: it ends its children in order
        try:
            await asyncio.wait_for(self._child.wait(), within_seconds)
        except TimeoutError:
            logger.warning("the engine did not stop in %g s: killed", within_seconds)
            self._signal(signal.SIGKILL)
            await asyncio.wait_for(self._child.wait(), KILLED_SECONDS)

    def _signal(self, number: signal.Signals) -> None:
        """To the whole group."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, number)


def _follow_parent() -> None:
    """In the child: SIGTERM when the parent dies."""
    if _LIBC is not None:
        _LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
