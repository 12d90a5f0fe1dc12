"""HiCache in small: a second, larger place for prefixes, in host memory.

What the device caches is written through to it one step later; what the device has evicted is found here, and loaded back before a
prefill goes on from it. Both tiers evict by themselves, so either may hold what the other does not.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sim.engine.cache import PrefixCache
from sim.engine.changes import HOST, Stored

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from sim.engine.changes import ChangeLog
    from sim.engine.request import Namespace, Sequence

LEAST_LOADED_TOKENS = 10
"""SGLang's threshold: fewer are computed again rather than loaded."""


class _HostChanges:
    """The engine's log of changes, as the host tier writes to it."""

    def __init__(self, log: ChangeLog) -> None:
        self._log = log

    def stored(self, change: Stored) -> None:
        self._log.stored(change._replace(tier=HOST))

    def removed(self, block_ids: list[int]) -> None:
        self._log.removed(block_ids, HOST)

    def cleared(self) -> None:
        """The device's says it for all tiers."""


class HostTier:
    """Prefixes in host memory, least recently used ones first to go."""

    def __init__(self, capacity_tokens: int, page_size: int, changes: ChangeLog | None) -> None:
        self.capacity_tokens = capacity_tokens
        self._page_size = page_size
        self._cache = PrefixCache(page_size, _HostChanges(changes) if changes is not None else None)
        self._due: list[tuple[NDArray[np.uint32], Namespace]] = []

    @property
    def held_tokens(self) -> int:
        """Tokens in it."""
        return self._cache.cached_tokens

    def write_later(self, tokens: NDArray[np.uint32], namespace: Namespace) -> None:
        """The device has cached these: `write` will copy what is not here."""
        self._due.append((tokens, namespace))

    def write(self) -> None:
        """Copy what is due, as far as it fits. O(n)."""
        due, self._due = self._due, []
        for tokens, namespace in due:
            new = len(tokens) - self._cache.match(tokens, namespace).tokens
            if new <= 0 or len(tokens) > self.capacity_tokens:
                continue
            kept = self._cache.match(tokens, namespace).node
            self._cache.lock(kept)
            self._cache.evict(self.held_tokens + new - self.capacity_tokens)
            self._cache.unlock(kept)
            if self.held_tokens + new <= self.capacity_tokens:
                self._cache.insert(tokens, namespace)

    def found(self, sequence: Sequence, on_device: int) -> int:
        """Tokens of a sequence's prefix that are here and worth loading, more than the device's; else `on_device`. O(n)."""
        held = self._cache.match(sequence.tokens(sequence.length - 1), sequence.request.namespace).tokens
        return held if held - on_device >= LEAST_LOADED_TOKENS else on_device

    def clear(self) -> None:
        """Forget everything."""
        self._due.clear()
        self._cache.clear()

    def _check(self) -> None:
        self._cache._check()  # noqa: SLF001 - invariants of a part are part of ours
        assert self.held_tokens <= self.capacity_tokens

    def __repr__(self) -> str:
        return f"<HostTier: {self.held_tokens} of {self.capacity_tokens} tokens>"
