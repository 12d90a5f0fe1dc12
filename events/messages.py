"""Every message that crosses the network, and its codec.

Messages are msgpack arrays (fields by position, so fields are only ever appended, with a default) of msgspec structs. Hashes
travel as raw little-endian uint64, 8 bytes a block; no token leaves a worker. Event names are past tense.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING

import msgspec
import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


class Tier(enum.IntEnum):
    """Where a worker holds a block, fastest first."""

    DEVICE = 0
    HOST = 1
    DISK = 2


def pack_hashes(hashes: NDArray[np.uint64]) -> bytes:
    """uint64 (n,) → n * 8 little-endian bytes. O(n)."""
    return hashes.astype("<u8", copy=False).tobytes()


def unpack_hashes(data: bytes) -> NDArray[np.uint64]:
    """N * 8 little-endian bytes → read-only uint64 (n,), without a copy. O(1).

    :raises ValueError: the length is no multiple of 8.
    """
    return np.frombuffer(data, "<u8")


class BlocksStored(msgspec.Struct, frozen=True, array_like=True, tag="S", gc=False):
    """A rank now holds these prefixes."""

    hashes: bytes
    """Sequence hashes, see `pack_hashes`; shorter prefixes first."""
    tier: Tier = Tier.DEVICE


class BlocksRemoved(msgspec.Struct, frozen=True, array_like=True, tag="R", gc=False):
    """A rank no longer holds these prefixes in this tier (it may in another)."""

    hashes: bytes
    tier: Tier = Tier.DEVICE


class CacheCleared(msgspec.Struct, frozen=True, array_like=True, tag="C", gc=False):
    """A rank holds nothing any more, in any tier."""


CacheEvent = BlocksStored | BlocksRemoved | CacheCleared


class KvEvents(msgspec.Struct, frozen=True, array_like=True, tag="kv"):
    """What changed in one rank's cache, in causal order: apply `events` strictly one after another."""

    worker_id: str
    rank: int
    epoch: int
    """Changes whenever the engine or its adapter restarts; grows with time."""
    seq: int
    """0, 1, 2, … within an epoch, without a gap."""
    events: list[CacheEvent]
    published_at: float = 0.0
    """Unix seconds at the adapter."""


class KvMark(msgspec.Struct, frozen=True, array_like=True, tag="mark"):
    """Where one rank's events stand, said every few seconds: who has heard less has missed the last ones before a silence."""

    worker_id: str
    rank: int
    epoch: int
    seq: int
    """Last event message published; -1 before the first."""
    published_at: float = 0.0
    """Unix seconds at the adapter."""
    orphans: int = 0
    """Pages that the engine holds, but whose prefix the adapter does not know: no router can be told of them."""
    gaps: int = 0
    """Times in this epoch that the engine's events skipped numbers; so the next two."""
    lost: int = 0
    """Engine events that no replay could bring."""
    resets: int = 0
    """Times that the adapter emptied its mirror, because events were lost or unreadable."""
    unreadable: int = 0
    """Parts of the engine's events that were not understood and left out."""
    rebuilds: int = 0
    """Times that the adapter built its mirror anew, as a router doubted it."""
    corrections: int = 0
    """Of those, how often all of the engine's events were there, and the mirror had been another than they say."""


class SnapshotRequest(msgspec.Struct, frozen=True, array_like=True, tag="snap?"):
    """Asks an adapter for all that one rank holds; answered by one or more `SnapshotChunk`."""

    worker_id: str
    rank: int
    distrusted: bool = False
    """What it answered before does not come true: it is to build its mirror anew, whatever it answers now."""


class SnapshotChunk(msgspec.Struct, frozen=True, array_like=True, tag="snap"):
    """A part of what a rank held right after event `seq` of `epoch`; all chunks of a snapshot carry the same watermark."""

    worker_id: str
    rank: int
    epoch: int
    seq: int
    """The watermark: last sequence number that the snapshot includes; -1 before the first event."""
    index: int
    count: int
    stored: list[BlocksStored]
    position: int = 0
    """In a log of events: nothing after the watermark lies before this number or at it."""


class WorkerLoad(msgspec.Struct, frozen=True, array_like=True, tag="load"):
    """What one rank's scheduler reports of itself. None: the engine did not say (never to be read as zero)."""

    worker_id: str
    rank: int
    epoch: int
    running_requests: int
    waiting_requests: int
    used_tokens: int
    """Tokens of running requests; evictable cached tokens are not counted."""
    capacity_tokens: int
    waiting_uncached_tokens: int | None = None
    max_running_requests: int | None = None
    total_prefill_uncached_tokens: int | None = None
    """Running total: uncached tokens prefilled since the engine started."""
    total_prefill_busy_seconds: float | None = None
    """Running total: time spent in prefill since the engine started."""
    reported_at: float = 0.0
    """Unix seconds at the adapter."""
    source: str = "engine"
    """Who says so. Reports of one source replace each other, those of several stand beside each other."""


class HoldOrder(msgspec.Struct, frozen=True, array_like=True, tag="hold"):
    """Asks an adapter to say on its card why no new requests are to go to its worker; it answers with the same, once it does."""

    worker_id: str
    reasons: list[str]
    """None: requests are to go there again."""


class RequestBooked(msgspec.Struct, frozen=True, array_like=True, tag="B", gc=False):
    """A router has sent a request to a rank."""

    request_id: str
    """Unique among this router's requests in flight."""
    worker_id: str
    rank: int
    prompt_tokens: int
    uncached_tokens: int
    """To be prefilled there, as its router believes."""
    hashes: bytes = b""
    """Sequence hashes of the prompt, see `pack_hashes`; empty in statements, which only say who is in flight."""
    prefilling: bool = True
    """False: it has its first token, or needs no prefill."""


class RequestPrefilled(msgspec.Struct, frozen=True, array_like=True, tag="P", gc=False):
    """A request has its first token."""

    request_id: str
    cached_tokens: int | None = None
    """Of its prompt, by its engine's word; None: it did not say."""


class RequestFreed(msgspec.Struct, frozen=True, array_like=True, tag="F", gc=False):
    """A request is over."""

    request_id: str
    failed: bool = False
    """What it was to leave in its worker's cache may not be there."""


RequestChange = RequestBooked | RequestPrefilled | RequestFreed


class RouterChanges(msgspec.Struct, frozen=True, array_like=True, tag="rtr"):
    """What became of a router's requests, in causal order."""

    router_id: str
    changes: list[RequestChange]


class RouterStatement(msgspec.Struct, frozen=True, array_like=True, tag="rtr!"):
    """A part of all the requests that a router has in flight: after its last part, nothing else of it is."""

    router_id: str
    number: int
    """Of the statement; grows."""
    index: int
    count: int
    booked: list[RequestBooked]
    leaving: bool = False
    """Its last word."""


Message = KvEvents | KvMark | SnapshotRequest | SnapshotChunk | WorkerLoad | HoldOrder | RouterChanges | RouterStatement

_ENCODER = msgspec.msgpack.Encoder()
_DECODER = msgspec.msgpack.Decoder(Message)


def encode(message: Message) -> bytes:
    """A message's wire form. O(size)."""
    return _ENCODER.encode(message)


def decode(data: bytes) -> Message:
    """A message from its wire form. O(size).

    :raises msgspec.DecodeError: not msgpack, not a known message, or a field of the wrong type
        (`msgspec.ValidationError`, a subclass, names the field).
    """
    try:
        message: Message = _DECODER.decode(data)
    except (UnicodeDecodeError, RecursionError) as error:  # msgspec lets these two through
        raise msgspec.DecodeError(str(error)) from error
    return message
