"""What is started as the engine, and what it makes of its arguments before it is."""

from __future__ import annotations

import asyncio
import contextlib
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import msgspec

from .check import MARK

if TYPE_CHECKING:
    from collections.abc import Sequence

CHECK = Path(__file__).with_name("check.py").read_text(encoding="utf-8")
"""Given to the interpreter as text: run by path, it would put our folder before SGLang's own modules."""
CHECK_SECONDS = 300.0
"""SGLang's parser comes with SGLang: importing it takes seconds, minutes from a cold disk."""


class Refused(ValueError):
    """The engine's parser does not take the arguments, or there is no engine; the text says why."""


class Understood(NamedTuple):
    """Arguments as the engine's parser sees them."""

    given: dict[str, Any]
    """Options that were given, by SGLang's names (`tp_size`)."""
    known: frozenset[str] | None
    """Names of all options that there are; None: nobody knows."""
    binds_addresses: bool
    """Event sockets can be bound to one address; else only to all."""

    def has(self, name: str) -> bool:
        """Whether the engine has such an option, as far as is known."""
        return self.known is None or name in self.known


class EngineCommand(Protocol):
    """How an engine is started."""

    @property
    def words(self) -> list[str]:
        """The command, without the engine's options."""

    async def understand(self, arguments: Sequence[str]) -> Understood:
        """What the engine's own parser makes of its options.

        :raises Refused: it does not take them.
        """


class SglangCommand:
    """`PYTHON -m sglang.launch_server`."""

    def __init__(self, python: str | None = None) -> None:
        self._python = python or sys.executable

    def __repr__(self) -> str:
        return f"SglangCommand({self._python!r})"

    @property
    def words(self) -> list[str]:
        """See `EngineCommand`."""
        return [self._python, "-m", "sglang.launch_server"]

    async def understand(self, arguments: Sequence[str]) -> Understood:
        """Ask SGLang's parser, in its interpreter.

        :raises Refused: in the parser's words; or there is no SGLang.
        """
        status, out, err = await _run([self._python, "-c", CHECK, *arguments])
        line = next((line for line in reversed(out.splitlines()) if line.startswith(MARK)), None)
        if status != 0 or line is None:
            raise Refused(_reason(self._python, err))
        found = msgspec.json.decode(line.removeprefix(MARK))
        return Understood(found["given"], frozenset(found["known"]), found["binds_addresses"])


class OtherCommand:
    """Any command that takes SGLang's options: it refuses what it does not understand when it starts."""

    def __init__(self, command: str) -> None:
        """Split as a shell would.

        :raises Refused: it cannot be split, or is empty.
        """
        try:
            self._words = shlex.split(command)
        except ValueError as error:
            raise Refused(f"--engine-command: {error}") from error
        if not self._words:
            raise Refused("--engine-command: nothing to start")

    def __repr__(self) -> str:
        return f"OtherCommand({self._words})"

    @property
    def words(self) -> list[str]:
        """See `EngineCommand`."""
        return list(self._words)

    async def understand(self, arguments: Sequence[str]) -> Understood:
        """Read the options as they are written."""
        return Understood(scan(arguments), None, binds_addresses=False)


SHORT_NAMES = {
    "tp": "tp_size",
    "tensor_parallel_size": "tp_size",
    "dp": "dp_size",
    "data_parallel_size": "dp_size",
    "model": "model_path",
}


def scan(arguments: Sequence[str]) -> dict[str, Any]:
    """Options and their values, by SGLang's names; True for one without a value. O(n).

    >>> scan(["--model-path", "m", "--tp=2", "--enable-metrics"])
    {'model_path': 'm', 'tp_size': '2', 'enable_metrics': True}
    """
    found: dict[str, Any] = {}
    name = ""
    for word in arguments:
        if word.startswith("--"):
            option, separator, value = word[2:].partition("=")
            name = option.replace("-", "_")
            name = SHORT_NAMES.get(name, name)
            found[name] = value if separator else True
        elif name:
            found[name] = word if found[name] is True else f"{found[name]} {word}"
    return found


async def _run(words: Sequence[str]) -> tuple[int, str, str]:
    try:
        process = await asyncio.create_subprocess_exec(
            *words,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
    except OSError as error:
        raise Refused(f"--python {words[0]}: {error.strerror or error}") from error
    try:
        out, err = await asyncio.wait_for(process.communicate(), CHECK_SECONDS)
    except TimeoutError:
        raise Refused(f"SGLang's parser did not answer in {CHECK_SECONDS:g} s") from None
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
    assert process.returncode is not None
    return process.returncode, out.decode(errors="replace"), err.decode(errors="replace")


def _reason(python: str, err: str) -> str:
    """The last thing that was said, without what argparse puts before it."""
    last = next((line for line in reversed(err.splitlines()) if line.strip()), "it said nothing")
    if last.startswith("ModuleNotFoundError") and "sglang" in last:
        return f"{python} has no SGLang: install it there, or name the interpreter that has it with --python"
    return f"SGLang: {last.removeprefix('sglang: error: ')}"
