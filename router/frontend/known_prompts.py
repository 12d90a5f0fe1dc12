"""Prompts that came before, word for word: their hashes, without reading them again."""

from __future__ import annotations

import random
from collections import OrderedDict
from typing import TYPE_CHECKING, NamedTuple

import xxhash

if TYPE_CHECKING:
    from collections.abc import Iterable

    import msgspec

    from router.dispatch.request import PromptHashes

LIMIT_BYTES = 32 * 1024 * 1024
ENTRY_BYTES = 400
"""What an entry takes beside its hashes."""
AGE_SECONDS = 600.0
"""A template may put the date into a prompt: what it made of one is not believed for longer."""


class _Known(NamedTuple):
    prompt: PromptHashes
    made_at: float


class KnownPrompts:
    """The bytes of a body's fields → the prompt's hashes, least recently used out first.

    Bytes are known by 128 bits of their XXH3 under a seed that nobody knows: should two ever have the same, a request would be
    placed as another one, and answered no less well. So this is fit for placing alone.
    """

    def __init__(self, limit_bytes: int = LIMIT_BYTES) -> None:
        self._limit_bytes = limit_bytes
        self._seed = random.getrandbits(64)
        self._known: OrderedDict[bytes, _Known] = OrderedDict()
        self._size_bytes = 0

    def __len__(self) -> int:
        return len(self._known)

    def __repr__(self) -> str:
        return f"KnownPrompts({len(self)} prompts, {self._size_bytes} of {self._limit_bytes} bytes)"

    def key(self, fields: Iterable[bytes | msgspec.Raw]) -> bytes:
        """What the raw JSON of some fields is known by; none of it has a NUL. O(bytes)."""
        return xxhash.xxh3_128_digest(b"\0".join(fields), self._seed)

    def get(self, key: bytes, now: float) -> PromptHashes | None:
        """What is known; None: nothing, or it is too old. O(1)."""
        known = self._known.get(key)
        if known is None or now - known.made_at > AGE_SECONDS:
            return None
        self._known.move_to_end(key)
        return known.prompt

    def put(self, key: bytes, prompt: PromptHashes, now: float) -> None:
        """Keep it, in place of those that were not used for longest. Amortised O(1)."""
        before = self._known.pop(key, None)
        if before is not None:
            self._size_bytes -= _entry_bytes(before.prompt)
        self._known[key] = _Known(prompt, now)
        self._size_bytes += _entry_bytes(prompt)
        while self._size_bytes > self._limit_bytes:
            _, gone = self._known.popitem(last=False)
            self._size_bytes -= _entry_bytes(gone.prompt)

    def _check(self) -> None:
        assert self._size_bytes == sum(_entry_bytes(known.prompt) for known in self._known.values())
        assert self._size_bytes <= self._limit_bytes


def _entry_bytes(prompt: PromptHashes) -> int:
    return int(prompt.hashes.nbytes) + ENTRY_BYTES
