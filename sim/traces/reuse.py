"""What caches of any size can keep of a trace."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from sim.traces.reuse_kernels import NEVER, prefix_nodes, reuse
from sim.traces.trace import offsets

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from sim.traces.trace import Trace


class Reuse(NamedTuple):
    """The blocks of all prompts, one after another, as one least-recently-used cache for the whole fleet sees them.

    Requests count in order of arrival, each one's blocks enter when it arrives, and outputs take no room: a bound for any fleet
    that holds as many tokens, not what a fleet reaches. Only the ids of prompts count, not those that name outputs.
    """

    first_block: NDArray[np.int64]
    """Shape (n + 1,): request i's blocks are at ``first_block[i]:first_block[i + 1]`` of the following."""
    tokens: NDArray[np.int64]
    """Shape (m,): prompt tokens in each block."""
    distance: NDArray[np.int64]
    """Shape (m,): other blocks used since a block's latest use: a cache of more blocks than that still has it. -1: none before."""
    latest_use: NDArray[np.int64]
    """Shape (m,): the request of that use, or -1."""
    block_tokens: int

    @classmethod
    def of(cls, trace: Trace) -> Reuse:
        """Measure a trace. O(m + n log n): 0.02 s for 290,000 ids."""
        counts = np.minimum(trace.block_counts, -(-trace.input_tokens // trace.block_tokens))
        blocks, first_block = _prompts(trace, counts)
        nodes = prefix_nodes(blocks, first_block)
        distance, latest_use = np.empty(len(nodes), np.int64), np.empty(len(nodes), np.int64)
        reuse(nodes, first_block, distance, latest_use)
        tokens = np.full(len(nodes), trace.block_tokens)
        last = first_block[1:][counts > 0] - 1
        tokens[last] = np.minimum(trace.input_tokens - (counts - 1) * trace.block_tokens, trace.block_tokens)[
            counts > 0
        ]
        return cls(first_block, tokens, distance, latest_use, trace.block_tokens)

    def hits(self, capacity_tokens: float = np.inf) -> NDArray[np.bool_]:
        """The blocks that a cache of so many tokens has when they are asked for, shape (m,)."""
        capacity_blocks = np.floor(capacity_tokens / self.block_tokens)
        found: NDArray[np.bool_] = (self.distance != NEVER) & (self.distance < capacity_blocks)
        return found

    def hit_blocks(self, capacity_tokens: float = np.inf) -> NDArray[np.int64]:
        """Leading blocks of each request that the cache has, shape (n,)."""
        return self._per_request(self.hits(capacity_tokens).astype(np.int64))

    def hit_tokens(self, capacity_tokens: float = np.inf) -> NDArray[np.int64]:
        """Leading prompt tokens of each request that the cache has, shape (n,). The last token of a prompt is always computed."""
        cached = self._per_request(np.where(self.hits(capacity_tokens), self.tokens, 0))
        return np.minimum(cached, np.maximum(self._per_request(self.tokens) - 1, 0))

    @property
    def unique_blocks(self) -> int:
        """Blocks that are not used before: different prefixes."""
        return int((self.distance == NEVER).sum())

    def _per_request(self, values: NDArray[np.int64]) -> NDArray[np.int64]:
        """Sums over each request's blocks. A prefix of hits is all hits: a parent is never further away than its children."""
        return np.diff(offsets(values)[self.first_block])


def _prompts(trace: Trace, counts: NDArray[np.int64]) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """The ids that name prompts."""
    if (counts == trace.block_counts).all():
        return trace.blocks, trace.first_block
    named = np.arange(len(trace.blocks)) - np.repeat(trace.first_block[:-1], trace.block_counts)
    return trace.blocks[named < np.repeat(counts, trace.block_counts)], offsets(counts)
