"""The requests that wait for their first prefill, or for one more after a retraction."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sim.engine.cache import PrefixCache

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sim.engine.request import Sequence

MOST_SORTED = 128
"""A longer queue is not sorted; of one, so many prefixes are refreshed."""

SHORT_PREFIX_TOKENS = 32
"""A request that found no more than this in the cache waits for another one in the queue that shares more with it."""

REFRESH_INTERVAL = 32
"""Prefixes that are waited for are refreshed each so many admission passes."""


class WaitingQueue:
    """Requests in order of arrival, or of what the cache holds of them (`sort`)."""

    def __init__(self) -> None:
        self._sequences: list[Sequence] = []
        self._passes = 0

    def __len__(self) -> int:
        return len(self._sequences)

    def __iter__(self) -> Iterator[Sequence]:
        return iter(self._sequences)

    def append(self, sequence: Sequence) -> None:
        """Queue one at the end. O(1)."""
        self._sequences.append(sequence)

    @property
    def head(self) -> Sequence:
        """The next one."""
        return self._sequences[0]

    def pop(self) -> Sequence:
        """Take the next one. O(n)."""
        return self._sequences.pop(0)

    def drop_aborted(self) -> None:
        """Forget the aborted ones. O(n)."""
        self._sequences = [sequence for sequence in self._sequences if not sequence.aborted]

    def refresh(self, cache: PrefixCache) -> None:
        """An admission pass over a queue in order of arrival: each `REFRESH_INTERVAL` passes, use what is waited for, head last."""
        due = self._passes % REFRESH_INTERVAL == 0
        self._passes += 1
        if due:
            for sequence in reversed(self._sequences[:MOST_SORTED]):
                cache.match(sequence.tokens(sequence.length), sequence.request.namespace)

    def sort(self, cache: PrefixCache) -> None:
        """SGLang's `lpm`: longest cached prefix first, and of those that share an uncached one, only the first. O(tokens)."""
        if len(self._sequences) > MOST_SORTED:
            return
        others = PrefixCache(page_size=1)
        keys = [self._order(sequence, cache, others) for sequence in self._sequences]
        order = sorted(range(len(keys)), key=keys.__getitem__)
        self._sequences = [self._sequences[index] for index in order]

    @staticmethod
    def _order(sequence: Sequence, cache: PrefixCache, others: PrefixCache) -> float:
        tokens, namespace = sequence.tokens(sequence.length), sequence.request.namespace
        sequence.last_match = min(cache.match(tokens, namespace).tokens, sequence.length - 1)
        if sequence.last_match <= SHORT_PREFIX_TOKENS:
            if others.match(tokens, namespace).tokens >= SHORT_PREFIX_TOKENS:
                return float("inf")
            others.insert(tokens, namespace)
        return -sequence.last_match

    def __repr__(self) -> str:
        return f"<WaitingQueue: {len(self)} requests>"
