"""KV events and load reports as bytes, the way each SGLang version writes them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from sim.engine import Cleared, Removed, Stored

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from sim.engine import Change, Load

OLDEST = (0, 5, 6)
"""Before it block ids were another function of the tokens."""
LOAD_TOPIC = b"load"
END_OF_REPLAY = b"\xff" * 8


def parse_version(version: str) -> tuple[int, ...]:
    """The numbers of a version; suffixes do not count.

    :raises ValueError: it does not begin with three numbers, or is older than 0.5.6.

    >>> parse_version("0.5.9.post1")
    (0, 5, 9)
    """
    match = re.match(r"(\d+)\.(\d+)\.(\d+)", version)
    if match is None:
        raise ValueError(f"version must look like 0.5.23, not {version!r}")
    numbers = tuple(int(part) for part in match.groups())
    if numbers < OLDEST:
        raise ValueError(f"version must be at least 0.5.6, not {version}")
    return numbers


@dataclass(frozen=True)
class Dialect:
    """What differs between versions on the wire."""

    maps: bool
    """Events are maps (0.5.20), not arrays."""
    medium: bool
    """Events name the tier (0.5.9)."""
    lora: bool
    """A store under an adapter names it (0.5.22)."""
    salt: bool
    """A salted store names its salt (0.5.18)."""
    removals_joined: bool
    """One removal for many pages (0.5.15), not one each."""
    stores_joined: bool
    """One store for many pages (0.5.18), not one each."""
    replay_topic: bool
    """Replayed frames carry the topic (0.5.22)."""
    load_socket: bool
    """There is a load publisher (0.5.19)."""
    describes_events: bool
    """/server_info describes the event sockets (0.5.13)."""

    @classmethod
    def of(cls, version: str, event_format: Literal["auto", "array", "map"] = "auto") -> Dialect:
        """The dialect of a version, with arrays or maps forced if wanted.

        :raises ValueError: see `parse_version`.
        """
        numbers = parse_version(version)
        return cls(
            maps=numbers >= (0, 5, 20) if event_format == "auto" else event_format == "map",
            medium=numbers >= (0, 5, 9),
            lora=numbers >= (0, 5, 22),
            salt=numbers >= (0, 5, 18),
            removals_joined=numbers >= (0, 5, 15),
            stores_joined=numbers >= (0, 5, 18),
            replay_topic=numbers >= (0, 5, 22),
            load_socket=numbers >= (0, 5, 19),
            describes_events=numbers >= (0, 5, 13),
        )

    def encode(self, changes: Iterable[Change], page_size: int, rank: int, unix_seconds: float) -> bytes:
        """The payload of one event frame. O(tokens)."""
        write = self._map if self.maps else self._array
        events = [write(part, page_size) for change in changes for part in self._parts(change, page_size)]
        return msgspec.msgpack.encode([unix_seconds, events, rank])

    def _parts(self, change: Change, page_size: int) -> Iterator[Change]:
        """One change for each event that this version makes of it."""
        if isinstance(change, Removed) and not self.removals_joined:
            yield from (Removed([block_id], change.tier) for block_id in change.block_ids)
        elif isinstance(change, Stored) and not self.stores_joined:
            parents = [change.parent_id, *change.block_ids]
            for index, block_id in enumerate(change.block_ids):
                tokens = change.tokens[index * page_size : (index + 1) * page_size]
                yield change._replace(block_ids=[block_id], parent_id=parents[index], tokens=tokens)
        else:
            yield change

    def _map(self, change: Change, page_size: int) -> dict[str, Any]:
        match change:
            case Stored():
                event: dict[str, Any] = {
                    "type": "BlockStored",
                    "block_hashes": change.block_ids,
                    "parent_block_hash": change.parent_id,
                    "token_ids": change.tokens.tolist(),
                    "block_size": page_size,
                    "lora_id": None,
                    "medium": change.tier,
                }
                optional = {"cache_salt": change.namespace.cache_salt, "session_id": change.session_id}
                if self.lora:
                    optional["lora_name"] = change.namespace.lora_name
                return event | {key: value for key, value in optional.items() if value is not None}
            case Removed():
                return {"type": "BlockRemoved", "block_hashes": change.block_ids, "medium": change.tier}
            case Cleared():
                return {"type": "AllBlocksCleared"}

    def _array(self, change: Change, page_size: int) -> list[Any]:
        medium = [change.tier] if self.medium and not isinstance(change, Cleared) else []
        match change:
            case Stored():
                tokens = change.tokens.tolist()
                event = ["BlockStored", change.block_ids, change.parent_id, tokens, page_size, None, *medium]
                salt = change.namespace.cache_salt
                return [*event, {"cache_salt": salt}] if salt and self.salt else event
            case Removed():
                return ["BlockRemoved", change.block_ids, *medium]
            case Cleared():
                return ["AllBlocksCleared"]


def encode_load(load: Load, rank: int) -> bytes:
    """The payload of one load frame. O(1)."""
    return msgspec.msgpack.encode(
        [
            "LoadStat",
            load.running_requests,
            load.waiting_requests,
            load.used_tokens,
            load.capacity_tokens,
            rank,
            load.waiting_uncached_tokens,
            load.total_tokens,
            load.max_running_requests,
            load.total_prefill_uncached_tokens,
            int(load.total_prefill_busy_seconds * 1e6),
        ]
    )
