"""The prefix cache against a plain set of prefixes."""

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from sim.engine.cache import PrefixCache
from sim.engine.changes import ChangeLog, Cleared, Removed, Stored
from sim.engine.request import Namespace

PLAIN, TENANT, SALTED = Namespace(), Namespace("tenant"), Namespace(None, "salt")
PAGE = 2


def array(tokens):
    return np.array(tokens, np.uint32)


def prefixes(tokens, page=PAGE):
    return [tuple(tokens[:end]) for end in range(page, len(tokens) + 1, page)]


class CacheAgainstSet(RuleBasedStateMachine):
    """Few tokens and short prompts, so that prefixes meet, split and duplicate all the time."""

    tokens = st.lists(st.integers(0, 2), max_size=12)
    namespaces = st.sampled_from([PLAIN, TENANT, SALTED])

    def __init__(self):
        super().__init__()
        self.changes = ChangeLog()
        self.cache = PrefixCache(PAGE, self.changes)
        self.held = set()  # (namespace, prefix)
        self.mirror = []  # (id, tokens of one page), as a reader of the changes believes
        self.locked = []

    @rule(tokens=tokens, namespace=namespaces)
    def insert(self, tokens, namespace):
        before = {prefix for name, prefix in self.held if name == namespace}
        inserted = self.cache.insert(array(tokens), namespace)
        new = set(prefixes(tokens)) - before
        assert inserted.new_tokens == PAGE * len(new)
        self.held |= {(namespace, prefix) for prefix in new}

    @rule(tokens=tokens, namespace=namespaces, lock=st.booleans())
    def match(self, tokens, namespace, lock):
        found = self.cache.match(array(tokens), namespace)
        longest = max((len(p) for p in prefixes(tokens) if (namespace, p) in self.held), default=0)
        assert found.tokens == longest
        if lock:
            self.cache.lock(found.node)
            self.locked.append((found.node, namespace, tuple(tokens[:longest])))

    @precondition(lambda self: self.locked)
    @rule(index=st.integers(0, 100))
    def unlock(self, index):
        self.cache.unlock(self.locked.pop(index % len(self.locked))[0])

    @rule(tokens=st.integers(0, 10))
    def evict(self, tokens):
        available = self.cache.evictable_tokens
        freed = self.cache.evict(tokens)
        assert freed >= min(tokens, available)
        self.held = self.tree()
        assert all((name, p) in self.held for _, name, tokens in self.locked for p in prefixes(tokens))

    @precondition(lambda self: not self.locked)
    @rule()
    def clear(self):
        assert self.cache.clear() == PAGE * len(self.held)
        self.held = set()

    def tree(self):
        held = set()
        for node in self.cache.nodes():
            path, above = [], node
            while above is not None:
                path.insert(0, above.tokens)
                above = above.parent
            whole = np.concatenate(path).tolist()
            held |= {(node.namespace, tuple(p)) for p in prefixes(whole) if len(p) > len(whole) - len(node.tokens)}
        return held

    @invariant()
    def tree_is_the_set(self):
        self.cache._check()
        assert self.tree() == self.held
        assert self.cache.cached_tokens == PAGE * len(self.held)

    @invariant()
    def changes_replayed_are_the_tree(self):
        for change in self.changes.take():
            match change:
                case Cleared():
                    self.mirror.clear()
                case Removed(ids):
                    for one in ids:
                        self.mirror.remove(one)
                case Stored(ids, parent, tokens, _, _):
                    assert len(tokens) == PAGE * len(ids)
                    assert parent is None or parent in self.mirror
                    self.mirror.extend(ids)
        # The extra key is not in the id, so the same prefix in two namespaces is held twice under one id.
        assert len(self.mirror) == len(self.held)
        assert len(set(self.mirror)) == len({(name.cache_salt, prefix) for name, prefix in self.held})


TestCacheAgainstSet = CacheAgainstSet.TestCase
TestCacheAgainstSet.settings = settings(max_examples=60, stateful_step_count=40, deadline=None, derandomize=True)


def test_eviction_takes_the_least_recently_used_leaf_then_its_parent():
    changes = ChangeLog()
    cache = PrefixCache(1, changes)
    for tokens in ([1, 2, 3], [1, 2, 4], [9]):
        cache.insert(array(tokens), PLAIN)
    (one, two, three), (four,), (nine,) = (change.block_ids for change in changes.take())
    cache.match(array([1, 2, 3]), PLAIN)
    assert [cache.evict(1), cache.evict(1), cache.evict(2)] == [1, 1, 3]
    assert changes.take() == [Removed([four, nine, three, one, two])]  # a leaf before the pages in front of it


def test_a_longer_store_right_after_its_prefix_joins_it():
    changes = ChangeLog()
    cache = PrefixCache(2, changes)
    cache.insert(array([1, 2]), PLAIN)
    cache.insert(array([1, 2, 3, 4]), PLAIN)
    cache.insert(array([1, 2, 5, 6]), PLAIN)
    first, second = changes.take()
    assert first.tokens.tolist() == [1, 2, 3, 4]
    assert second.parent_id == first.block_ids[0]


def test_clear_refuses_while_locked():
    cache = PrefixCache(1)
    cache.insert(array([1]), PLAIN)
    cache.lock(cache.match(array([1]), PLAIN).node)
    with pytest.raises(RuntimeError, match="1 tokens of the cache are in use"):
        cache.clear()
    assert repr(cache) == "<PrefixCache: 1 tokens in use, 0 evictable>"


def test_what_a_split_cuts_off_counts_as_used():
    cache = PrefixCache(PAGE)
    cache.insert(array([1, 2, 3, 4]), PLAIN)
    cache.insert(array([7, 8, 9, 9]), PLAIN)
    assert cache.match(array([1, 2, 5]), PLAIN).tokens == 2  # cuts the older prefix
    cache.evict(1)
    assert cache.match(array([7, 8, 9, 9]), PLAIN).tokens == 0
    assert cache.match(array([1, 2, 3, 4]), PLAIN).tokens == 4
