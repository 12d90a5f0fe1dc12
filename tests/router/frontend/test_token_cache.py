from __future__ import annotations

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from router.frontend.token_cache import LARGEST_SHARE, TokenCache, entry_bytes


def tokens_of(text: str) -> np.ndarray:
    tokens = np.frombuffer(text.encode("utf-32-le"), np.uint32)
    tokens.setflags(write=False)
    return tokens


class Caching(RuleBasedStateMachine):
    """Against a list in order of use."""

    def __init__(self) -> None:
        super().__init__()
        self.limit = 8000
        self.cache = TokenCache(self.limit)
        self.held: list[str] = []
        self.hits = self.misses = self.evictions = self.too_large = 0

    @rule(text=st.text("ab日", max_size=3) | st.text("x", min_size=100, max_size=200))
    def put(self, text: str) -> None:
        self.cache.put(text, tokens_of(text))
        if entry_bytes(text, tokens_of(text)) > self.limit // LARGEST_SHARE:
            self.too_large += 1
        elif text not in self.held:
            self.held.append(text)
        while sum(entry_bytes(held, tokens_of(held)) for held in self.held) > self.limit:
            self.held.pop(0)
            self.evictions += 1

    @rule(text=st.text("ab日", max_size=3))
    def get(self, text: str) -> None:
        found = self.cache.get(text)
        if text in self.held:
            assert found is not None
            assert found.tolist() == tokens_of(text).tolist()
            self.held.remove(text)
            self.held.append(text)
            self.hits += 1
        else:
            assert found is None
            self.misses += 1

    @precondition(lambda self: len(self.held) > 8)
    @rule()
    def clear(self) -> None:
        self.cache.clear()
        self.held.clear()

    @invariant()
    def consistent(self) -> None:
        self.cache._check()
        held = self.cache.statistics()
        assert held[:5] == (self.hits, self.misses, self.evictions, self.too_large, len(self.held))


TestCaching = Caching.TestCase
TestCaching.settings = settings(max_examples=40, stateful_step_count=40)


def test_no_room_keeps_nothing() -> None:
    cache = TokenCache(0)
    cache.put("a", tokens_of("a"))
    assert cache.get("a") is None
    assert repr(cache) == "TokenCache(0 texts, 0 of 0 bytes)"
    with pytest.raises(ValueError, match="limit_bytes: -1 is negative"):
        TokenCache(-1)
