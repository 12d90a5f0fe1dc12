"""SGLang's cache events, decoded, whichever version wrote them.

A payload is msgpack `[ts, [event, …], dp_rank]`. From 0.5.20 on, an event is a map with a `type`; before, it is an array
`[type, field, …]` that grew at its end from version to version. Both end in the same three events here. Page ids stay opaque.
"""

from __future__ import annotations

import logging
from array import array
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
import numpy as np

from events.messages import Tier

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from numpy.typing import NDArray

logger = logging.getLogger(__name__)

PageId = int | bytes

TIERS = {
    None: Tier.DEVICE,  # 0.5.6 and 0.5.8 do not name the medium: there is only one
    "GPU": Tier.DEVICE,
    "CPU": Tier.HOST,
    "CPU_PINNED": Tier.HOST,
    "CPU_TIER1": Tier.HOST,
    "CPU_TIER2": Tier.DISK,
    "DISK": Tier.DISK,
    "NVME": Tier.DISK,
    "STORAGE": Tier.DISK,
}

# Array form: what each position after the type means. The last of a store is a map of its own, from 0.5.18 on, for salted ones.
_POSITIONS = {
    "BlockStored": (
        "block_hashes",
        "parent_block_hash",
        "token_ids",
        "block_size",
        "lora_id",
        "medium",
        "metadata",
    ),
    "BlockRemoved": ("block_hashes", "medium"),
    "AllBlocksCleared": (),
}
_KEYS = {
    "BlockStored": {*_POSITIONS["BlockStored"], "type", "cache_salt", "session_id", "lora_name"},
    "BlockRemoved": {"type", "block_hashes", "medium"},
    "AllBlocksCleared": {"type"},
}


class WireError(ValueError):
    """A payload that is no event batch; what it said is lost."""


@dataclass(frozen=True, slots=True, eq=False)
class EngineStored:
    """The engine holds these pages now, each following the one before, the first following `parent`."""

    ids: list[PageId]
    parent: PageId | None
    """None: the first page begins a prompt."""
    tokens: NDArray[np.uint32]
    """Shape (len(ids) * page_size,)."""
    page_size: int
    tier: Tier = Tier.DEVICE
    cache_salt: str | None = None
    lora_name: str | None = None

    def continues(self, other: EngineEvent) -> bool:
        """Whether the first page follows the last one of `other`, in the same tier and namespace."""
        return (
            isinstance(other, EngineStored)
            and self.parent is not None
            and self.parent == other.ids[-1]
            and (self.page_size, self.tier, self.cache_salt, self.lora_name)
            == (other.page_size, other.tier, other.cache_salt, other.lora_name)
        )


@dataclass(frozen=True, slots=True, eq=False)
class EngineRemoved:
    """The engine no longer holds these pages in this tier, once per mention; in any order."""

    ids: list[PageId]
    tier: Tier = Tier.DEVICE


@dataclass(frozen=True, slots=True)
class EngineCleared:
    """The engine holds nothing any more, in any tier."""


EngineEvent = EngineStored | EngineRemoved | EngineCleared


class EngineBatch(NamedTuple):
    """One payload."""

    ts: float
    """Unix seconds at the engine."""
    events: list[EngineEvent]
    """In causal order."""
    rank: int | None


class DecoderStatistics(NamedTuple):
    """Counts since the start."""

    batches: int
    events: int
    ignored: dict[str, int]
    """What was not understood, by reason: `type …`, `key …`, `medium …`, `malformed …`."""


class EventDecoder:
    """Decodes one rank's payloads; what it does not understand is left out, counted, and said once."""

    def __init__(self) -> None:
        self._batches = 0
        self._events = 0
        self._ignored: Counter[str] = Counter()

    def decode(self, payload: bytes) -> EngineBatch:
        """A payload's events in causal order. O(tokens).

        :raises WireError: not msgpack, not `[ts, [event, …], …]`, or a removal in it cannot be read.
        """
        try:
            ts, events, *tail = msgspec.msgpack.decode(payload)
        except (msgspec.DecodeError, ValueError, TypeError) as error:
            raise WireError(f"no event batch: {error}") from error
        if not isinstance(events, list) or not isinstance(ts, float | int):
            raise WireError("no event batch: expected [ts, [event, …], dp_rank]")
        self._batches += 1
        self._events += len(events)
        return EngineBatch(float(ts), [*self._understood(events)], tail[0] if tail else None)

    def statistics(self) -> DecoderStatistics:
        """Counts since the start."""
        return DecoderStatistics(self._batches, self._events, dict(self._ignored))

    def _understood(self, events: list[Any]) -> Iterator[EngineEvent]:
        for event in events:
            kind = _kind(event)
            try:
                decoded = self._event(kind, event)
            except (KeyError, IndexError, TypeError, ValueError, OverflowError) as error:
                self._ignore(f"malformed {kind}", repr(error))
                if kind != "BlockStored":  # a store may be left out; without a removal, ghosts would stay
                    raise WireError(f"malformed {kind}: {error!r}") from error
            else:
                if decoded is not None:
                    yield decoded

    def _event(self, kind: str, event: list[Any] | dict[str, Any]) -> EngineEvent | None:
        if kind not in _KEYS:
            self._ignore(f"type {kind}")
            return None
        fields = event if isinstance(event, dict) else self._by_name(kind, event)
        for key in fields.keys() - _KEYS[kind]:
            self._ignore(f"key {kind}.{key}")
        if kind == "AllBlocksCleared":
            return EngineCleared()
        tier = TIERS.get(fields.get("medium"))
        if tier is None:
            self._ignore(f"medium {fields['medium']}")
            return None
        return _stored(fields, tier) if kind == "BlockStored" else EngineRemoved(_ids(fields["block_hashes"]), tier)

    def _by_name(self, kind: str, event: list[Any]) -> dict[str, Any]:
        names = _POSITIONS[kind]
        fields = dict(zip(names, event[1:], strict=False))
        if len(event) > len(names) + 1:
            self._ignore(f"key {kind}[{len(names) + 1}]")
        metadata = fields.get("metadata")
        return fields | metadata if isinstance(metadata, dict) else fields

    def _ignore(self, reason: str, detail: str = "") -> None:
        if reason not in self._ignored:
            logger.warning("engine events: %s is not understood and left out %s", reason, detail)
        self._ignored[reason] += 1


def coalesce(events: Iterable[EngineEvent]) -> list[EngineEvent]:
    """The same events with neighbours joined: stores that continue each other, removals of one tier. O(tokens).

    Versions before 0.5.18 write an event per page; a chain of pages costs no more than its tokens this way.
    """
    groups: list[list[EngineEvent]] = []
    for event in events:
        if groups and _joins(event, groups[-1][-1]):
            groups[-1].append(event)
        else:
            groups.append([event])
    return [group[0] if len(group) == 1 else _joined(group) for group in groups]


def _joins(event: EngineEvent, last: EngineEvent) -> bool:
    if isinstance(event, EngineStored):
        return event.continues(last)
    return isinstance(event, EngineRemoved) and isinstance(last, EngineRemoved) and event.tier == last.tier


def _joined(group: list[Any]) -> EngineEvent:
    first = group[0]
    ids = [page for event in group for page in event.ids]
    if isinstance(first, EngineRemoved):
        return EngineRemoved(ids, first.tier)
    tokens = np.concatenate([event.tokens for event in group])
    return EngineStored(ids, first.parent, tokens, first.page_size, first.tier, first.cache_salt, first.lora_name)


def _kind(event: Any) -> str:
    if isinstance(event, dict):
        return str(event.get("type"))
    return str(event[0]) if isinstance(event, list) and event else type(event).__name__


def _stored(fields: dict[str, Any], tier: Tier) -> EngineStored:
    ids, tokens, page_size = _ids(fields["block_hashes"]), _tokens(fields["token_ids"]), fields["block_size"]
    if not ids or page_size < 1 or len(tokens) != len(ids) * page_size:
        raise ValueError(f"{len(tokens)} tokens for {len(ids)} pages of {page_size}")
    lora_name = fields.get("lora_name")
    if lora_name is None and fields.get("lora_id") is not None:
        lora_name = str(fields["lora_id"])  # not a name that a router knows, but never the base model's namespace
    return EngineStored(ids, fields["parent_block_hash"], tokens, page_size, tier, fields.get("cache_salt"), lora_name)


def _ids(ids: list[PageId]) -> list[PageId]:
    if not set(map(type, ids)) <= {int, bytes}:
        raise TypeError("page ids must be integers or bytes")
    return ids


def _tokens(tokens: list[Any]) -> NDArray[np.uint32]:
    """Bigrams (`[token, next]`, with EAGLE-like speculation) stand for their first token."""
    if tokens and isinstance(tokens[0], list):
        tokens = [pair[0] for pair in tokens]
    return np.asarray(array("I", tokens), np.uint32)  # array() takes a list of int five times as fast as numpy does
