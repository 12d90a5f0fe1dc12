r"""What changed in the cache, under SGLang's block ids.

A page's id chains over all before it (SGLang 0.5.6 and newer):

    digest[i] = SHA-256(digest[i-1] ‖ tokens of page i as little-endian uint32)
    id[i]     = first 8 bytes of digest[i], big-endian, signed

where digest[-1] is empty, or SHA-256("sglang-cache-salt-v1\0" ‖ salt) for a salted prompt. The extra key is not in the id: the
same tokens under two keys are stored twice under one id.
"""

from __future__ import annotations

from hashlib import sha256
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from sim.engine.request import Namespace

SALT_PREFIX = b"sglang-cache-salt-v1\0"
LORA_PREFIX = b"lora\0"
"""Not SGLang's own: its ids for adapters are of another form, and as opaque as all."""


DEVICE, HOST = "GPU", "CPU_PINNED"
"""The tiers, as SGLang calls them."""


class Stored(NamedTuple):
    """The cache now holds these consecutive pages."""

    block_ids: list[int]
    parent_id: int | None
    """The page before the first; None at the root."""
    tokens: NDArray[np.uint32]
    namespace: Namespace
    session_id: str | None = None
    tier: str = DEVICE


class Removed(NamedTuple):
    """The cache no longer holds these pages; leaf nodes first, inside a node from its root side on."""

    block_ids: list[int]
    tier: str = DEVICE


class Cleared(NamedTuple):
    """The cache holds nothing any more, in no tier."""


Change = Stored | Removed | Cleared


def seed_digest(cache_salt: str | None, lora_name: str | None = None) -> bytes:
    """What the first page's digest chains to. O(1)."""
    salted = sha256(SALT_PREFIX + cache_salt.encode()).digest() if cache_salt else b""
    return sha256(LORA_PREFIX + lora_name.encode() + salted).digest() if lora_name else salted


def page_digests(tokens: NDArray[np.uint32], page_size: int, previous: bytes) -> list[bytes]:
    """Digest of each full page, chained to `previous`. O(n)."""
    data = memoryview(tokens.astype("<u4", copy=False).tobytes())
    width = 4 * page_size
    digests = []
    for start in range(0, len(data) - width + 1, width):
        previous = sha256(previous + data[start : start + width]).digest()
        digests.append(previous)
    return digests


def block_id(digest: bytes) -> int:
    """The published id of a page.

    >>> block_id(page_digests(np.array([100], np.uint32), 1, b"")[0])
    4676766937014872581
    """
    return int.from_bytes(digest[:8], "big", signed=True)


class ChangeLog:
    """Changes not published yet, coalesced at its tail as SGLang does: a chain goes on, removals join."""

    def __init__(self) -> None:
        self._pending: list[Change] = []

    def stored(self, change: Stored) -> None:
        """Note new pages. O(pages)."""
        tail = self._pending[-1] if self._pending else None
        if isinstance(tail, Stored) and self._continues(tail, change):
            tail.block_ids.extend(change.block_ids)
            self._pending[-1] = tail._replace(tokens=np.concatenate([tail.tokens, change.tokens]))
        else:
            self._pending.append(change)

    def removed(self, block_ids: list[int], tier: str = DEVICE) -> None:
        """Note evicted pages. O(pages)."""
        tail = self._pending[-1] if self._pending else None
        if isinstance(tail, Removed) and tail.tier == tier:
            tail.block_ids.extend(block_ids)
        else:
            self._pending.append(Removed(block_ids, tier))

    def cleared(self) -> None:
        """Note that everything is gone. O(1)."""
        self._pending.append(Cleared())

    def take(self) -> list[Change]:
        """All pending changes in order; none are pending after. O(1)."""
        taken, self._pending = self._pending, []
        return taken

    def __len__(self) -> int:
        return len(self._pending)

    @staticmethod
    def _continues(tail: Stored, change: Stored) -> bool:
        return (
            change.parent_id == tail.block_ids[-1]
            and change.tier == tail.tier
            and change.namespace == tail.namespace
            and change.session_id == tail.session_id
        )
