"""What caches of any size can keep of a trace."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from sim.traces.reuse_kernels import NEVER, known_tokens, prefix_nodes, reuse
from sim.traces.trace import offsets

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from sim.traces.trace import Trace


class Reuse(NamedTuple):
    """The blocks of all prompts, one after another, as one least-recently-used cache for the whole fleet sees them.

    Requests count in order of arrival, and all that their ids name, outputs too, enters when they arrive; what no id names takes no
    room. A bound for any fleet that holds as many tokens, not what a fleet reaches.
    """

    first_block: NDArray[np.int64]
    """Shape (n + 1,): request i's blocks are at ``first_block[i]:first_block[i + 1]`` of the following."""
    tokens: NDArray[np.int64]
    """Shape (m,): prompt tokens in each block."""
    known: NDArray[np.int64]
    """Shape (m,): those of them that were named before, if the block was."""
    distance: NDArray[np.int64]
    """Shape (m,): other blocks used since a block's latest use: a cache of more blocks than that still has it. -1: none before."""
    latest_use: NDArray[np.int64]
    """Shape (m,): the request of that use, or -1."""
    unique_blocks: int
    """Different prefixes, those of outputs included."""
    block_tokens: int

    @classmethod
    def of(cls, trace: Trace) -> Reuse:
        """Measure a trace. O(m + n log n): 0.02 s for 290,000 ids."""
        nodes = prefix_nodes(trace.blocks, trace.first_block)
        distance, latest_use, known = (np.empty(len(nodes), np.int64) for _ in range(3))
        reuse(nodes, trace.first_block, distance, latest_use)
        place = np.arange(len(nodes)) - np.repeat(trace.first_block[:-1], trace.block_counts)
        begin, prompt = place * trace.block_tokens, np.repeat(trace.input_tokens, trace.block_counts)
        text = prompt + np.repeat(trace.output_tokens, trace.block_counts)
        known_tokens(nodes, np.minimum(text - begin, trace.block_tokens), known)
        tokens = np.minimum(prompt - begin, trace.block_tokens)
        is_prompt = tokens > 0
        counts = np.diff(offsets(is_prompt)[trace.first_block])
        return cls(
            first_block=offsets(counts),
            tokens=tokens[is_prompt],
            known=np.minimum(known, tokens)[is_prompt],
            distance=distance[is_prompt],
            latest_use=latest_use[is_prompt],
            unique_blocks=int(nodes.max(initial=-1)) + 1,
            block_tokens=trace.block_tokens,
        )

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
        cached = self._per_request(np.where(self.hits(capacity_tokens), self.known, 0))
        return np.minimum(cached, np.maximum(self._per_request(self.tokens) - 1, 0))

    def _per_request(self, values: NDArray[np.int64]) -> NDArray[np.int64]:
        """Sums over each request's blocks. A prefix of hits is all hits: a parent is never further away than its children."""
        return np.diff(offsets(values)[self.first_block])
