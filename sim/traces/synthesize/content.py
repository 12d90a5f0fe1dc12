"""Ids from who owns which tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from sim.traces.reuse_kernels import prefix_nodes
from sim.traces.trace import offsets

if TYPE_CHECKING:
    from numpy.typing import NDArray

_OWNER_BITS = np.uint64(24)


def content(
    shared: NDArray[np.int64], shared_blocks: NDArray[np.int64], own: NDArray[np.int64], blocks: NDArray[np.int64]
) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """Ids, and where each request's begin: `blocks` of them a request, the first `shared_blocks` those of the text `shared`.

    The rest are those of the text `own`, which begins with that shared one. Texts are any numbers below 2^40; all columns have the
    shape (n,). Ids are numbered in order of appearance, as in Mooncake's traces. O(m).
    """
    first_block = offsets(blocks)
    place = np.arange(first_block[-1]) - np.repeat(first_block[:-1], blocks)
    is_shared = place < np.repeat(shared_blocks, blocks)
    text = np.where(is_shared, 2 * np.repeat(shared, blocks), 2 * np.repeat(own, blocks) + 1)
    ids = text.astype(np.uint64) << _OWNER_BITS | place.astype(np.uint64)
    return prefix_nodes(ids, first_block).astype(np.uint64), first_block
