"""`python -m sim PART …`: the simulator's command lines. Each is imported only when it is asked for."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from typing import TYPE_CHECKING

from events.command import USAGE_ERROR, Parser, UsageError
from sim.patience import COMPILING, patience

if TYPE_CHECKING:
    from collections.abc import Sequence

PARTS = {
    "replay": ("sim.replay.command", "serve a trace in virtual time, and compare policies"),
    "trace": ("sim.traces.command", "measure, cut, scale and synthesize traces"),
    "calibrate": ("sim.calibrate.command", "fit a timing profile to an engine"),
    "validate": ("sim.validate.command", "hold the simulator against a recording of a real fleet"),
}

INTERRUPTED = 128 + 2
"""The status of a command that SIGINT ended."""


def usage() -> str:
    """What the command says of itself."""
    lines = [f"  {part:10} {text}" for part, (_, text) in PARTS.items()]
    example = "example: python -m sim trace synthesize conversation -o trace.jsonl"
    return "\n".join(["usage: python -m sim PART [options]     python -m sim PART --help", "", *lines, "", example, ""])


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the part that the first argument names; one line on standard error and status 2 if it cannot be done."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or words[0] in ("-h", "--help"):
        sys.stdout.write(usage())
        return 0
    if words[0] not in PARTS:
        sys.stderr.write(f"python -m sim: error: no part {words[0]!r}; there are {', '.join(PARTS)}\n")
        return USAGE_ERROR
    return _run(words[0], words[1:])


def _run(part: str, words: list[str]) -> int:
    name, description = PARTS[part]
    with patience(COMPILING):
        command = importlib.import_module(name)
    parser = Parser(
        prog=f"python -m sim {part}",
        description=f"{description[0].upper()}{description[1:]}.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_arguments(parser)
    options = parser.parse_args(words)
    try:
        status = int(command.run(options))
        sys.stdout.flush()
    except UsageError as error:
        parser.error(str(error))
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:  # the reader of our output has seen enough, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        parser.error(f"{error.filename}: {error.strerror}" if error.filename else str(error))
    return status


if __name__ == "__main__":
    sys.exit(main())
