"""Which waiting requests join the next prefill: SGLang's budget of memory, input and chunk.

A candidate reserves its uncached prompt and its whole output; of the requests that decode already, only a share of what they may
still produce is reserved (`NewTokenRatio`), for most end before their limit. The share falls while all is well, jumps when
requests had to be retracted, and begins anew when the engine was idle.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence as Many

    from sim.engine.cache import PrefixCache
    from sim.engine.pool import PagePool
    from sim.engine.request import Sequence

MOST_RESERVED_TOKENS = 4096
"""At most so many future tokens of one request are reserved."""


def reserved_tokens(sequence: Sequence) -> int:
    """Future tokens to reserve for one request. O(1)."""
    return min(max(sequence.max_new_tokens - len(sequence.output), 0), MOST_RESERVED_TOKENS)


class NewTokenRatio:
    """The share of running requests' future tokens that admission reserves."""

    START = 0.7
    FLOOR = 0.14 * START
    DECAY_STEPS = 600
    LOOKAHEAD_STEPS = 20

    def __init__(self) -> None:
        self.value = self.START

    def reset(self) -> None:
        """The engine is idle: expect what is expected at the start. O(1)."""
        self.value = self.START

    def decay(self) -> None:
        """A decode step went well. O(1)."""
        self.value = max(self.FLOOR, self.value - (self.START - self.FLOOR) / self.DECAY_STEPS)

    def raise_after_retraction(self, kept: Many[Sequence]) -> None:
        """Requests were retracted: expect of those kept what they turned out to need. O(n)."""
        decoded = sum(len(sequence.output) for sequence in kept)
        allowed = sum(sequence.max_new_tokens for sequence in kept)
        expected = (decoded + self.LOOKAHEAD_STEPS * len(kept)) / (allowed + 1)
        self.value = min(1.0, max(self.FLOOR, expected))


class PrefillBudget:
    """What one prefill batch may still take."""

    def __init__(
        self, pool: PagePool, cache: PrefixCache, reserved_tokens: float, input_tokens: int, chunk_tokens: int
    ) -> None:
        self._pool = pool
        self._cache = cache
        self._reserved = reserved_tokens
        self.input_tokens = input_tokens
        self.chunk_tokens = chunk_tokens

    @property
    def memory_tokens(self) -> float:
        """Tokens that are free or evictable, and not reserved."""
        return self._pool.free_tokens + self._cache.evictable_tokens - self._reserved

    @property
    def batch_full(self) -> bool:
        """No further request can join this batch, whatever the memory."""
        return self.input_tokens <= 0 or self.chunk_tokens <= 0

    def fits(self, sequence: Sequence, extend: int) -> bool:
        """Whether there is memory for `extend` new tokens, the output, and a page of rounding. O(1)."""
        return extend + reserved_tokens(sequence) + self._pool.page_size < self.memory_tokens

    def first_chunk(self, start: int, extend: int) -> int:
        """How many of a new request's `extend` tokens after its cached `start` join; a cut falls on a page. O(1)."""
        page = self._pool.page_size
        if self._paged(extend) <= self.chunk_tokens:
            return extend
        return max(0, (start + self.chunk_tokens // page * page) // page * page - start)

    def next_chunk(self, extend: int) -> int:
        """How many of the `extend` tokens left of a begun prompt join; some always do, for it holds memory. O(1)."""
        memory = int(self.memory_tokens)
        return min(extend, min(self.chunk_tokens, memory) if memory > 0 else self.chunk_tokens)

    def take(self, sequence: Sequence, extend: int, *, last: bool) -> None:
        """Charge an admitted request; its output only with its last chunk. O(1)."""
        paged = self._paged(extend)
        output = min(sequence.max_new_tokens, MOST_RESERVED_TOKENS) if last else 0
        self._reserved += paged + self._pool.page_size + output
        self.input_tokens -= paged
        self.chunk_tokens -= paged

    def _paged(self, tokens: int) -> int:
        return self._pool.pages_for(tokens) * self._pool.page_size

    def __repr__(self) -> str:
        return f"<PrefillBudget: {self.memory_tokens:.0f} of memory, {self.chunk_tokens} of chunk>"
