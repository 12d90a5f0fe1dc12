"""Tokens of texts seen before, within a bound in bytes."""

from __future__ import annotations

import sys
from collections import OrderedDict
from threading import Lock
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

ENTRY_BYTES = 300
"""What a text and its tokens take beside their content: an array's header and buffer, a place in the map."""
LARGEST_SHARE = 8
"""A text over this part of the bound is not kept: it would drive out too many others."""


class TokenCacheStatistics(NamedTuple):
    """Counters since the start, and what is held now."""

    hits: int
    misses: int
    evictions: int
    too_large: int
    """Texts not kept."""
    entries: int
    size_bytes: int
    limit_bytes: int


class TokenCache:
    """Text → its tokens, least recently used out first. Keys are the texts themselves, so a hit is never wrong. Thread-safe."""

    def __init__(self, limit_bytes: int) -> None:
        """`limit_bytes` 0 keeps nothing.

        :raises ValueError: it is negative.
        """
        if limit_bytes < 0:
            raise ValueError(f"limit_bytes: {limit_bytes} is negative")
        self._limit_bytes = limit_bytes
        self._tokens: OrderedDict[str, NDArray[np.uint32]] = OrderedDict()
        self._lock = Lock()
        self._size_bytes = 0
        self._hits = self._misses = self._evictions = self._too_large = 0

    def __repr__(self) -> str:
        return f"TokenCache({len(self._tokens)} texts, {self._size_bytes} of {self._limit_bytes} bytes)"

    def get(self, text: str) -> NDArray[np.uint32] | None:
        """Its tokens, read-only; None: not held. O(characters)."""
        with self._lock:
            tokens = self._tokens.get(text)
            if tokens is None:
                self._misses += 1
            else:
                self._hits += 1
                self._tokens.move_to_end(text)
            return tokens

    def put(self, text: str, tokens: NDArray[np.uint32]) -> None:
        """Keep it, in place of those that were not used for longest. Amortized O(characters)."""
        size = entry_bytes(text, tokens)
        with self._lock:
            if size > self._limit_bytes // LARGEST_SHARE:
                self._too_large += 1
            elif text not in self._tokens:
                self._tokens[text] = tokens
                self._size_bytes += size
                self._evict()

    def clear(self) -> None:
        """Forget all texts; the counters stay."""
        with self._lock:
            self._tokens.clear()
            self._size_bytes = 0

    def statistics(self) -> TokenCacheStatistics:
        """A snapshot."""
        with self._lock:
            return TokenCacheStatistics(
                hits=self._hits,
                misses=self._misses,
                evictions=self._evictions,
                too_large=self._too_large,
                entries=len(self._tokens),
                size_bytes=self._size_bytes,
                limit_bytes=self._limit_bytes,
            )

    def _evict(self) -> None:
        while self._size_bytes > self._limit_bytes:
            text, tokens = self._tokens.popitem(last=False)
            self._size_bytes -= entry_bytes(text, tokens)
            self._evictions += 1

    def _check(self) -> None:
        """The invariants."""
        assert self._size_bytes == sum(entry_bytes(text, tokens) for text, tokens in self._tokens.items())
        assert self._size_bytes <= self._limit_bytes
        assert not any(tokens.flags.writeable for tokens in self._tokens.values())


def entry_bytes(text: str, tokens: NDArray[np.uint32]) -> int:
    """What a text and its tokens take in the cache."""
    return sys.getsizeof(text) + tokens.nbytes + ENTRY_BYTES
