"""The rival of the index: Dynamo's radix tree and block hash, from its public wheel."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

os.environ.setdefault("DYN_LOG", "error")

try:
    from dynamo import _core
except ImportError:
    _core = None

MISSING = "ai-dynamo-runtime is not installed (dependency group bench)"


def available() -> bool:
    return _core is not None


def tree() -> Any:
    """An empty tree. It lives on a thread of its own, and every call hops there: pinned to one core is its best case."""
    return _core.RadixTree()


def block_hashes(tokens: list[int], block_size: int) -> list[int]:
    hashes: list[int] = _core.compute_block_hash_for_seq(tokens, block_size)
    return hashes


def stored(parent: int | None, blocks: Iterable[int]) -> bytes:
    """An event as the wheel takes it; one number serves as both hashes of a block."""
    pairs = [{"block_hash": block, "tokens_hash": block} for block in blocks]
    return _event({"stored": {"parent_hash": parent, "blocks": pairs}})


def removed(blocks: list[int]) -> bytes:
    return _event({"removed": {"block_hashes": blocks}})


def stores(chain: list[int], event_blocks: int) -> Iterator[bytes]:
    """A chain as events of so many blocks."""
    for start in range(0, len(chain), event_blocks):
        yield stored(chain[start - 1] if start else None, chain[start : start + event_blocks])


def _event(data: dict[str, Any]) -> bytes:
    return json.dumps({"event_id": 0, "dp_rank": 0, "data": data}, separators=(",", ":")).encode()
