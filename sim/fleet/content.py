"""What requests consist of, and the hashes of their routing blocks: both come from a trace's content ids."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numba import int64, njit, types, uint64, void

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from sim.traces import Trace

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_IDS = types.Array(uint64, 1, "C", readonly=True)
_COUNTS = types.Array(int64, 1, "C", readonly=True)


@dataclass(frozen=True, eq=False)
class Content:
    """The ids that name a trace's tokens, see `sim.traces.Trace`."""

    blocks: NDArray[np.uint64]
    first_block: NDArray[np.int64]
    block_tokens: int
    total_tokens: NDArray[np.int64]
    """Of prompt and output, int64 (n,)."""
    named_tokens: NDArray[np.int64] = field(repr=False)
    """How many leading tokens of each request ids name, int64 (n,); what follows is like no other request's."""

    @classmethod
    def of(cls, trace: Trace) -> Content:
        """A trace's content. The last id of a prompt names as many tokens as are left of the prompt. O(n)."""
        counts = np.diff(trace.first_block)
        total = trace.input_tokens + trace.output_tokens
        for_prompt = -(-trace.input_tokens // trace.block_tokens)
        most = np.where(counts > for_prompt, total, trace.input_tokens)
        named = np.minimum(counts * trace.block_tokens, most)
        return cls(trace.blocks, trace.first_block, trace.block_tokens, total, named)

    def __len__(self) -> int:
        return len(self.total_tokens)

    def hashes(self, block_size: int) -> Hashes:
        """Sequence hashes of all full blocks of prompt and output. O(tokens / block_size + ids)."""
        first = np.concatenate([[0], np.cumsum(self.total_tokens // block_size)])
        hashes = np.empty(int(first[-1]), np.uint64)
        _hash_all(self.blocks, self.first_block, self.named_tokens, self.block_tokens, block_size, first, hashes)
        return Hashes(hashes, first)


@dataclass(frozen=True, eq=False)
class Hashes:
    """Sequence hashes of every request's routing blocks, one request after another."""

    values: NDArray[np.uint64]
    first: NDArray[np.int64]
    """Shape (n + 1,)."""

    def of(self, request: int, blocks: int) -> NDArray[np.uint64]:
        """A request's first `blocks` hashes: a view. O(1)."""
        begin = self.first.item(request)
        return self.values[begin : begin + blocks]


@njit(uint64(uint64), cache=True, nogil=True)
def _mixed(word):  # type: ignore[no-untyped-def] # numba's signature says it; so below
    """SplitMix64's finalizer."""
    word = (word ^ (word >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    word = (word ^ (word >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return word ^ (word >> np.uint64(31))


@njit(void(_IDS, _COUNTS, _COUNTS, int64, int64, _COUNTS, uint64[::1]), cache=True, nogil=True)
def _hash_all(blocks, first_block, named, block_tokens, block_size, first, hashes):  # type: ignore[no-untyped-def]
    """Chain each request's blocks: over the ids that a block touches, or over the request's number where no ids name it whole."""
    for request in range(len(named)):
        chain = _GOLDEN
        for block in range(first[request + 1] - first[request]):
            begin, end = block * block_size, (block + 1) * block_size
            if end <= named[request]:
                for index in range(begin // block_tokens, (end - 1) // block_tokens + 1):
                    chain = _mixed((chain ^ blocks[first_block[request] + index]) + _GOLDEN)
            else:
                chain = _mixed(chain ^ _mixed(~np.uint64(request)))
            hashes[first[request] + block] = chain
