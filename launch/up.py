"""`make up`: four fake workers, their adapters, NATS and a router, left serving on http://127.0.0.1:8000 until Ctrl-C."""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
import tempfile
from pathlib import Path

from .process import ProcessFailed
from .stack import MODEL_NAME, Stack

CURL = """
warmpath is serving on {url} ({workers} fake workers). Try:

  curl -s {url}/v1/chat/completions -H 'Content-Type: application/json' \\
    -d '{{"model": "{model}", "messages": [{{"role": "user", "content": "Which worker holds my prefix?"}}], "max_tokens": 16}}'

  curl -s {url}/workers        what the router believes of each worker
  curl -s {url}/metrics        its metrics

Logs: {logs}. Ctrl-C stops everything.
"""


async def serve(folder: Path, port: int, workers: int) -> None:
    """Start the stack, say where it is, wait for SIGINT or SIGTERM."""
    stopping = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    async with Stack(folder, workers=workers) as stack:
        router = await stack.route("--http-port", str(port), "--min-workers", str(workers))
        text = CURL.format(url=router.announced["http"], model=MODEL_NAME, workers=workers, logs=folder)
        sys.stdout.write(text)
        sys.stdout.flush()
        await stopping.wait()


def main() -> int:
    """Run until stopped; exit status 1 if a part does not start."""
    parser = argparse.ArgumentParser(prog="python -m launch.up", description=__doc__)
    parser.add_argument("--port", type=int, default=8000, help="the router's HTTP port (default: 8000)")
    parser.add_argument("--workers", type=int, default=4, help="fake workers (default: 4)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="warmpath-up-") as folder:
        try:
            asyncio.run(serve(Path(folder), options.port, options.workers))
        except ProcessFailed as error:
            sys.stderr.write(f"{error}\n")
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
