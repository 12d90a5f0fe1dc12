"""Tokens to hashes against Dynamo's `compute_block_hash_for_seq`, which takes and gives lists, and makes no sequence hashes."""

from __future__ import annotations

import random
import time
from typing import TYPE_CHECKING

from benchmarks import radix
from benchmarks.figures import Figure, against, interleaved
from events.blocks import as_tokens, load_kernels, sequence_hashes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


def hashes(tokens: int = 8192, rounds: int = 200) -> Iterator[Figure]:
    """Tokens per second, from arrays and from lists; the median of rounds in turns."""
    load_kernels()
    draw = random.Random(1)
    as_list = [draw.randrange(128_000) for _ in range(tokens)]
    array = as_tokens(as_list)
    for block_size in (16, 64):
        seconds = interleaved(
            rounds,
            rival=_seconds(lambda size=block_size: radix.block_hashes(as_list, size)),
            arrays=_seconds(lambda size=block_size: sequence_hashes(array, size)),
            lists=_seconds(lambda size=block_size: sequence_hashes(as_tokens(as_list), size).tolist()),
        )
        rate = {name: tokens / value for name, value in seconds.items()}
        name = f"hashes, {tokens:,} tokens in blocks of {block_size}"
        yield against(f"{name}, from an array", "tokens/s", rate["arrays"], rate["rival"], 25)
        yield against(f"{name}, from a list to a list", "tokens/s", rate["lists"], rate["rival"], 2)


def _seconds(function: Callable[[], object]) -> Callable[[], float]:
    def measure() -> float:
        began = time.perf_counter()
        function()
        return time.perf_counter() - began

    return measure
