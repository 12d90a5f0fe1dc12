"""Index and hashes against Dynamo's, in one run.

example: python -m benchmarks.core --trace conversation.jsonl --json core.json
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks import core_hashes, core_index, core_trace, radix
from benchmarks.figures import Figure, Skipped, report

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    Row = Callable[[], Iterable[Figure | Skipped]]


def rows(*, trace: Path | None, quick: bool) -> dict[str, Row]:
    """Every row by name; a module of further rows adds to these."""
    blocks, queries = (1 << 16, 300) if quick else (1 << 20, 2000)
    more_times = dict.fromkeys(core_index.TIMES, core_index.MORE_WORKERS_TIMES)
    return {
        "memory": partial(core_index.memory, blocks),
        "match": partial(core_index.match, blocks, 64, queries, core_index.TIMES),
        "match-256": partial(core_index.match, blocks, 256, queries, more_times),
        "match-1024": partial(core_index.match, blocks, 1024, queries, more_times),
        "store": partial(core_index.store_and_remove, blocks),
        "growth": partial(core_index.growth, blocks, queries),
        "hashes": core_hashes.hashes,
        "trace": partial(core_trace.trace, trace, 300 if quick else 3000),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--row", action="append", metavar="NAME", help="run only this row; can be given several times")
    parser.add_argument("--trace", type=Path, help="a conversation trace: JSON lines with hash_ids per 512 tokens")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there as well")
    parser.add_argument(
        "--quick", action="store_true", help="a sixteenth of the blocks and fewer queries: a check, not a figure"
    )
    parser.add_argument("--unpinned", action="store_true", help="do not pin to one core; the rival is slower then")
    options = parser.parse_args()
    known = rows(trace=options.trace, quick=options.quick)
    if not radix.available():
        parser.exit(2, f"benchmarks.core: {radix.MISSING}\n")
    unknown = set(options.row or ()) - known.keys()
    if unknown:
        parser.error(f"--row: there is no {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    if not options.unpinned:
        core_index.pinned_to_one_core()
    report([known[name] for name in options.row or known], options.json)


if __name__ == "__main__":
    main()
