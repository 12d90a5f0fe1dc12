"""A rival gateway before the same engines: a command line with gaps, run as a process for as long as it is needed."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import re
import shlex
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, NamedTuple, Self

import aiohttp

from launch.process import STOP_TIMEOUT_SECONDS, ProcessFailed
from launch.stack import free_port

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from pathlib import Path

START_SECONDS = 90.0
PROBE = {"input_ids": [1000, 1001], "sampling_params": {"temperature": 0, "max_new_tokens": 1}}
GAPS = ("port", "engines")


class Gateway(NamedTuple):
    """How a gateway is called, and started."""

    name: str
    command: str
    """With `{port}`, where it shall serve, and `{engines}`, their URLs with spaces between."""

    @classmethod
    def parse(cls, text: str) -> Self:
        """From NAME=COMMAND.

        :raises argparse.ArgumentTypeError: it is not that, or does not say where the port and the engines go.
        """
        name, equals, command = text.partition("=")
        if not (equals and name and command):
            raise argparse.ArgumentTypeError(f"{text!r} is not NAME=COMMAND")
        if unknown := [gap for gap in re.findall(r"\{(\w*)\}", command) if gap not in GAPS]:
            raise argparse.ArgumentTypeError(f"{name}: {{{unknown[0]}}} is neither {{port}} nor {{engines}}")
        if missing := [gap for gap in GAPS if f"{{{gap}}}" not in command]:
            raise argparse.ArgumentTypeError(f"{name}: no {{{missing[0]}}} in its command")
        try:
            shlex.split(command)
        except ValueError as error:
            raise argparse.ArgumentTypeError(f"{name}: {error}") from None
        return cls(name, command)

    def words(self, port: int, engines: Sequence[str]) -> list[str]:
        """Its command for these."""
        return shlex.split(self.command.replace("{port}", str(port)).replace("{engines}", " ".join(engines)))

    @asynccontextmanager
    async def running(self, engines: Sequence[str], log: Path) -> AsyncIterator[str]:
        """Its URL, once a request went through it; stopped at the end.

        :raises ProcessFailed: it cannot be started, ends, or does not answer in time.
        """
        port = free_port()
        with log.open("wb") as out:
            try:
                process = await asyncio.create_subprocess_exec(*self.words(port, engines), stdout=out, stderr=out)
            except OSError as error:
                raise ProcessFailed(f"{self.name} cannot be started: {error}") from None
        url = f"http://127.0.0.1:{port}"
        try:
            if not await _answers(url, process):
                end = log.read_text(errors="replace")[-1000:]
                raise ProcessFailed(f"{self.name} does not answer; its log ends with:\n{end}")
            yield url
        finally:
            await _stop(process)


async def _answers(url: str, process: asyncio.subprocess.Process) -> bool:
    """Wait until a request is answered; whether one was before it ended or the time was up."""
    give_up = asyncio.get_running_loop().time() + START_SECONDS
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=10)) as session:
        while process.returncode is None and asyncio.get_running_loop().time() < give_up:
            with contextlib.suppress(aiohttp.ClientError, TimeoutError):
                async with session.post(f"{url}/generate", json=PROBE) as reply:
                    if reply.status == 200:
                        return True
            await asyncio.sleep(0.2)
    return False


async def _stop(process: asyncio.subprocess.Process) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.terminate()
    try:
        await asyncio.wait_for(process.wait(), STOP_TIMEOUT_SECONDS)
    except TimeoutError:
        process.kill()
        await process.wait()
