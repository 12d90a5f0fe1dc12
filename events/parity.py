"""What adapters and routers must agree on, in samples small enough for a worker's card."""

from __future__ import annotations

import numpy as np

from events.blocks import salt_seed, sequence_hashes

TEXT = "Grüße, 世界! 🚀 def f(x): return x**2  # 3.14"
"""Tokenized by the engine and by the router: letters of several scripts, digits, code and runs of spaces."""


def hash_vector(block_size: int) -> tuple[int, ...]:
    """Hashes of known tokens: two blocks in the plain namespace, one under a salt and an adapter's name. O(block_size).

    >>> hash_vector(64)[:2]
    (17732852320395450624, 1050256074108617503)
    """
    tokens = np.arange(1, 2 * block_size + 1, dtype=np.uint32)
    plain = sequence_hashes(tokens, block_size)
    salted = sequence_hashes(tokens[:block_size], block_size, salt_seed("salt", "adapter"))
    return tuple(map(int, (*plain, *salted)))
