"""`warmpath PART …` starts a part of warmpath: the same as `python -m MODULE …`."""

from __future__ import annotations

import runpy
import sys

from events.command import USAGE_ERROR
from events.origin import ForeignPackage, check_one_root

PARTS = {
    "route": ("router", "the router: OpenAI's API in front of SGLang workers"),
    "worker": ("workers.sglang", "an SGLang server with its adapter, or the adapter beside one that runs"),
    "fake-worker": ("sim.worker", "a model of an SGLang server, without a GPU"),
    "sim": ("sim", "the simulator: traces, and policies compared in virtual time"),
}


def usage() -> str:
    """What the command says of itself."""
    lines = [f"  {part:12} {text} (python -m {module})" for part, (module, text) in PARTS.items()]
    return "\n".join(["usage: warmpath PART [options]     warmpath PART --help", "", *lines, ""])


def main() -> int:
    """Start the part that the first argument names; status 2 and one line if there is none of that name."""
    if len(sys.argv) < 2 or sys.argv[1] in ("-h", "--help"):
        sys.stdout.write(usage())
        return 0
    part = sys.argv[1]
    if part not in PARTS:
        sys.stderr.write(f"warmpath: error: no part {part!r}; there are {', '.join(PARTS)}\n")
        return USAGE_ERROR
    try:
        check_one_root()
    except ForeignPackage as error:
        sys.stderr.write(f"warmpath: error: {error}\n")
        return USAGE_ERROR
    del sys.argv[1]
    runpy.run_module(PARTS[part][0], run_name="__main__", alter_sys=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
