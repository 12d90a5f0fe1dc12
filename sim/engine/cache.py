"""The radix tree of cached prefixes: match, insert, lock, evict, page by page.

A node holds a run of whole pages; its prefix is its ancestors' pages and then its own. Nodes that a running sequence uses are
locked, with all their ancestors. Unlocked leaves are evicted whole, least recently used first.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np
from sortedcontainers import SortedDict

from sim.engine.changes import Stored, block_id, page_digests, seed_digest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from sim.engine.request import Namespace

NO_TOKENS: NDArray[np.uint32] = np.empty(0, np.uint32)


class Changes(Protocol):
    """What is told of changes; see `ChangeLog`."""

    def stored(self, change: Stored) -> None:
        """New pages."""

    def removed(self, block_ids: list[int]) -> None:
        """Evicted pages."""

    def cleared(self) -> None:
        """All pages are gone."""


class Node:
    """A run of whole pages in one namespace; a root has none."""

    __slots__ = ("children", "digests", "last_access", "locks", "namespace", "number", "parent", "tokens")

    def __init__(self, number: int, namespace: Namespace, parent: Node | None, tokens: NDArray[np.uint32]) -> None:
        self.number = number
        self.namespace = namespace
        self.parent = parent
        self.tokens = tokens
        self.children: dict[bytes, Node] = {}
        """By the bytes of the child's first page."""
        self.digests: list[bytes] = []
        """One per page; empty where changes are not recorded."""
        self.locks = 0
        """Running sequences whose prefix this node is part of."""
        self.last_access = 0

    def __repr__(self) -> str:
        return f"<Node {self.number}: {len(self.tokens)} tokens, {len(self.children)} children, {self.locks} locks>"


class Match(NamedTuple):
    """The longest cached prefix."""

    node: Node
    """Its last node, to be locked by who relies on it."""
    tokens: int


class Insertion(NamedTuple):
    """What an insert did."""

    node: Node
    """The last node of the inserted prefix."""
    new_tokens: int
    """Tokens that were not cached before."""


class PrefixCache:
    """Which prefixes are in KV memory. It owns their pages; the caller moves pages between it and the pool."""

    def __init__(self, page_size: int, changes: Changes | None = None) -> None:
        self.page_size = page_size
        self.evictable_tokens = 0
        self.protected_tokens = 0
        self._changes = changes
        self._roots: dict[Namespace, Node] = {}
        self._leaves: SortedDict[tuple[int, int], Node] = SortedDict()
        """Evictable leaves by (last access, number): the next victim first."""
        self._tick = 0
        self._numbers = 0

    @property
    def cached_tokens(self) -> int:
        """Tokens in the tree."""
        return self.evictable_tokens + self.protected_tokens

    def match(self, tokens: NDArray[np.uint32], namespace: Namespace) -> Match:
        """The longest cached page-aligned prefix of `tokens`; splits the node it ends in, and counts as a use. O(n)."""
        self._tick += 1
        node, position = self._descend(self._root(namespace), self._aligned(tokens))
        return Match(node, position)

    def insert(self, tokens: NDArray[np.uint32], namespace: Namespace, session_id: str | None = None) -> Insertion:
        """Cache the full pages of `tokens`; what is there already stays. O(n)."""
        self._tick += 1
        tokens = self._aligned(tokens)
        node, position = self._descend(self._root(namespace), tokens)
        if position == len(tokens):
            return Insertion(node, 0)
        leaf = self._attach(node, tokens[position:].copy())
        self._record_stored(leaf, session_id)
        return Insertion(leaf, len(leaf.tokens))

    def lock(self, node: Node) -> None:
        """Protect a prefix from eviction. O(depth)."""
        for part in self._path(node):
            if part.locks == 0:
                self._unlist(part)
                self.evictable_tokens -= len(part.tokens)
                self.protected_tokens += len(part.tokens)
            part.locks += 1

    def unlock(self, node: Node) -> None:
        """Undo one `lock`. O(depth)."""
        for part in self._path(node):
            part.locks -= 1
            if part.locks == 0:
                self.evictable_tokens += len(part.tokens)
                self.protected_tokens -= len(part.tokens)
                self._list(part)

    def evict(self, tokens: int) -> int:
        """Drop least recently used leaves, whole, until `tokens` are freed or none is left; returns the tokens freed.

        O(k log n) for k leaves dropped.
        """
        freed = 0
        while freed < tokens and self._leaves:
            _, node = self._leaves.popitem(0)
            freed += len(node.tokens)
            self._detach(node)
        return freed

    def clear(self) -> int:
        """Forget everything; returns the tokens freed.

        :raises RuntimeError: a prefix is locked.
        """
        if self.protected_tokens:
            raise RuntimeError(f"{self.protected_tokens} tokens of the cache are in use")
        freed, self.evictable_tokens = self.evictable_tokens, 0
        self._roots.clear()
        self._leaves.clear()
        if self._changes is not None:
            self._changes.cleared()
        return freed

    def nodes(self) -> Iterator[Node]:
        """Every node that holds pages. O(nodes)."""
        stack = list(self._roots.values())
        while stack:
            node = stack.pop()
            stack.extend(node.children.values())
            if node.parent is not None:
                yield node

    def sequences(self) -> Iterator[tuple[Namespace, NDArray[np.uint32]]]:
        """Every sequence that no longer one extends: the tokens from a root to each leaf. O(tokens of all of them)."""
        for node in self.nodes():
            if not node.children:
                path = [part.tokens for part in self._path(node)]
                yield node.namespace, np.concatenate(path[::-1])

    def _aligned(self, tokens: NDArray[np.uint32]) -> NDArray[np.uint32]:
        return tokens[: len(tokens) // self.page_size * self.page_size]

    def _root(self, namespace: Namespace) -> Node:
        root = self._roots.get(namespace)
        if root is None:
            root = self._roots[namespace] = Node(0, namespace, None, NO_TOKENS)
        return root

    def _first_page(self, tokens: NDArray[np.uint32]) -> bytes:
        return tokens[: self.page_size].tobytes()

    def _descend(self, node: Node, tokens: NDArray[np.uint32]) -> tuple[Node, int]:
        """Walk down as far as `tokens` agree, touching each node; returns the last node and the tokens matched."""
        position = 0
        while position < len(tokens):
            child = node.children.get(self._first_page(tokens[position:]))
            if child is None:
                break
            self._touch(child)  # whole: what a split cuts off counts as used too
            common = self._common(child.tokens, tokens[position:])
            if common < len(child.tokens):
                child = self._split(child, common)
            position += common
            node = child
        return node, position

    def _common(self, left: NDArray[np.uint32], right: NDArray[np.uint32]) -> int:
        """Length of the common page-aligned prefix."""
        length = min(len(left), len(right))
        different = left[:length] != right[:length]
        first = int(different.argmax()) if different.any() else length
        return first // self.page_size * self.page_size

    def _touch(self, node: Node) -> None:
        listed = self._unlist(node)
        node.last_access = self._tick
        if listed:
            self._list(node)

    def _split(self, node: Node, length: int) -> Node:
        """Cut a node after `length` tokens; returns the new upper half. Nothing is published: the pages stay."""
        assert node.parent is not None
        self._numbers += 1
        upper = Node(self._numbers, node.namespace, node.parent, node.tokens[:length])
        upper.locks = node.locks
        upper.last_access = node.last_access
        upper.digests, node.digests = node.digests[: length // self.page_size], node.digests[length // self.page_size :]
        node.parent.children[self._first_page(upper.tokens)] = upper
        node.parent = upper
        node.tokens = node.tokens[length:]
        upper.children[self._first_page(node.tokens)] = node
        return upper

    def _attach(self, parent: Node, tokens: NDArray[np.uint32]) -> Node:
        self._numbers += 1
        leaf = Node(self._numbers, parent.namespace, parent, tokens)
        leaf.last_access = self._tick
        self._unlist(parent)
        parent.children[self._first_page(tokens)] = leaf
        self.evictable_tokens += len(tokens)
        self._list(leaf)
        return leaf

    def _detach(self, node: Node) -> None:
        parent = node.parent
        assert parent is not None
        self.evictable_tokens -= len(node.tokens)
        del parent.children[self._first_page(node.tokens)]
        if self._changes is not None:
            self._changes.removed([block_id(digest) for digest in node.digests])
        if parent.parent is None and not parent.children:
            self._roots.pop(parent.namespace, None)
        self._list(parent)

    def _record_stored(self, leaf: Node, session_id: str | None) -> None:
        if self._changes is None:
            return
        parent = leaf.parent
        assert parent is not None
        at_root = parent.parent is None
        previous = seed_digest(leaf.namespace.cache_salt, leaf.namespace.lora_name) if at_root else parent.digests[-1]
        leaf.digests = page_digests(leaf.tokens, self.page_size, previous)
        ids = [block_id(digest) for digest in leaf.digests]
        parent_id = None if at_root else block_id(previous)
        self._changes.stored(Stored(ids, parent_id, leaf.tokens, leaf.namespace, session_id))

    def _list(self, node: Node) -> None:
        """Enter a node into the eviction order if it may be evicted."""
        if node.parent is not None and not node.children and node.locks == 0:
            self._leaves[node.last_access, node.number] = node

    def _unlist(self, node: Node) -> bool:
        return self._leaves.pop((node.last_access, node.number), None) is not None

    @staticmethod
    def _path(node: Node) -> Iterator[Node]:
        """The node and its ancestors, without the root."""
        current: Node | None = node
        while current is not None and current.parent is not None:
            yield current
            current = current.parent

    def _check(self) -> None:
        """Assert every invariant. O(nodes)."""
        nodes = list(self.nodes())
        for node in nodes:
            assert node.parent is not None
            assert len(node.tokens) > 0
            assert len(node.tokens) % self.page_size == 0
            assert node.parent.children[self._first_page(node.tokens)] is node
            assert node.parent.parent is None or node.parent.locks >= node.locks
            assert all(child.namespace == node.namespace for child in node.children.values())
            assert self._changes is None or len(node.digests) * self.page_size == len(node.tokens)
            assert ((node.last_access, node.number) in self._leaves) == (not node.children and node.locks == 0)
        assert len({node.number for node in nodes}) == len(nodes)
        assert len(self._leaves) <= len(nodes)
        assert self.evictable_tokens == sum(len(node.tokens) for node in nodes if node.locks == 0)
        assert self.protected_tokens == sum(len(node.tokens) for node in nodes if node.locks)

    def __repr__(self) -> str:
        return f"<PrefixCache: {self.protected_tokens} tokens in use, {self.evictable_tokens} evictable>"
