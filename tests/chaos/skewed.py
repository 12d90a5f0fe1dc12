"""Runs a module with a wall clock that can be set: SIGUSR1 puts it an hour forward, SIGUSR2 an hour back.

python -m tests.chaos.skewed router --http-port 0 …
"""

from __future__ import annotations

import runpy
import signal
import sys
import time

HOUR_SECONDS = 3600.0

offset_seconds = float(0)
real_time, real_time_ns = time.time, time.time_ns


def shift(seconds: float) -> None:
    """Let the wall clock jump."""
    global offset_seconds
    offset_seconds += seconds


def main() -> None:
    """Replace the clock, then be the module."""
    time.time = lambda: real_time() + offset_seconds
    time.time_ns = lambda: real_time_ns() + int(offset_seconds * 1e9)
    signal.signal(signal.SIGUSR1, lambda *_: shift(HOUR_SECONDS))
    signal.signal(signal.SIGUSR2, lambda *_: shift(-HOUR_SECONDS))
    module = sys.argv[1]
    sys.argv = sys.argv[1:]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
