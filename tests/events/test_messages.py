"""Messages: round trips, and whatever else comes in place of one."""

from __future__ import annotations

import typing

import msgspec
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from events import messages
from events.messages import (
    BlocksRemoved,
    BlocksStored,
    CacheCleared,
    KvEvents,
    KvMark,
    SnapshotChunk,
    SnapshotRequest,
    Tier,
    WorkerLoad,
    decode,
    encode,
    pack_hashes,
    unpack_hashes,
)

HASHES = st.lists(st.integers(0, 2**64 - 1), max_size=20)
PACKED = HASHES.map(lambda hashes: pack_hashes(np.array(hashes, np.uint64)))
TIERS = st.sampled_from(Tier)
STORED = st.builds(BlocksStored, PACKED, TIERS)
EVENTS = st.one_of(STORED, st.builds(BlocksRemoved, PACKED, TIERS), st.builds(CacheCleared))
COUNT = st.integers(0, 2**63 - 1)
SEQ = st.integers(-1, 2**63 - 1)
SECONDS = st.floats(0, 1e12)
RANK = {"worker_id": st.text(), "rank": COUNT}
MESSAGES = st.one_of(
    st.builds(KvMark, **RANK, epoch=COUNT, seq=COUNT, published_at=SECONDS, orphans=COUNT, gaps=COUNT),
    st.builds(KvEvents, **RANK, epoch=COUNT, seq=COUNT, events=st.lists(EVENTS, max_size=5), published_at=SECONDS),
    st.builds(SnapshotRequest, **RANK, distrusted=st.booleans()),
    st.builds(
        SnapshotChunk, **RANK, epoch=COUNT, seq=SEQ, index=COUNT, count=COUNT, stored=st.lists(STORED, max_size=5)
    ),
    st.builds(
        WorkerLoad,
        **RANK,
        epoch=COUNT,
        running_requests=COUNT,
        waiting_requests=COUNT,
        used_tokens=COUNT,
        capacity_tokens=COUNT,
        waiting_uncached_tokens=st.none() | COUNT,
        max_running_requests=st.none() | COUNT,
        total_prefill_uncached_tokens=st.none() | COUNT,
        total_prefill_busy_seconds=st.none() | SECONDS,
        reported_at=SECONDS,
    ),
)


@given(MESSAGES)
def test_a_message_survives_the_wire(message):
    assert decode(encode(message)) == message


@given(HASHES)
def test_hashes_survive_the_wire(hashes):
    data = pack_hashes(np.array(hashes, np.uint64))
    assert len(data) == 8 * len(hashes)
    assert unpack_hashes(data).tolist() == hashes
    assert not unpack_hashes(data).flags.writeable


def test_hashes_are_little_endian():
    assert pack_hashes(np.array([1, 2**56], np.uint64)) == b"\1" + bytes(14) + b"\1"


def test_hashes_of_a_broken_length_are_refused():
    with pytest.raises(ValueError, match="multiple"):
        unpack_hashes(b"1234567")


@given(st.binary())
@example(b"")
@example(b"\x93\xa5snap?\xa1\xff\x00")  # a string that is not UTF-8
@example(b"\x94\xa5snap?\xa1w\x00" + b"\x91" * 20_000 + b"\xc0")  # nested deeper than anybody would
def test_garbage_is_a_decode_error_or_a_message(data):
    try:
        message = decode(data)
    except msgspec.DecodeError:
        return
    assert isinstance(message, typing.get_args(messages.Message))


@given(MESSAGES, st.data())
def test_a_truncated_message_is_a_decode_error(message, data):
    whole = encode(message)
    with pytest.raises(msgspec.DecodeError):
        decode(whole[: data.draw(st.integers(0, len(whole) - 1))])


@pytest.mark.parametrize(
    ("wire", "reason"),
    [
        (["kv", "w", 0, 1, 2, "no list"], r"Expected `array`, got `str` - at `\$\[5\]`"),
        (["kv", "w", 0, 1, 2, [["X", b""]]], "Invalid value 'X'"),
        (["kv", "w", 0, 1, 2, [["S", b"", 9]]], "Invalid enum value 9"),
        (["kv", "w", 0, 1], "at least"),
        (["other", 1], "Invalid value 'other'"),
        ({"type": "kv"}, "Expected `array`"),
    ],
)
def test_a_wrong_field_is_named(wire, reason):
    with pytest.raises(msgspec.ValidationError, match=reason):
        decode(msgspec.msgpack.encode(wire))


def test_the_wire_form_is_fixed():
    """Fields by position: whoever changes them breaks workers of another version."""
    message = KvEvents("w", 1, 2, 3, [BlocksStored(b"12345678"), BlocksRemoved(b"", Tier.HOST), CacheCleared()], 4.0)
    wire = ["kv", "w", 1, 2, 3, [["S", b"12345678", 0], ["R", b"", 1], ["C"]], 4.0]
    assert encode(message) == msgspec.msgpack.encode(wire)
    request = SnapshotRequest("w", 1, distrusted=True)
    assert encode(request) == msgspec.msgpack.encode(["snap?", "w", 1, True])
    mark = KvMark("w", 0, 1, 2, 3.0, 4, 5, 6, 7, 8, rebuilds=9, corrections=10)
    assert encode(mark) == msgspec.msgpack.encode(["mark", "w", 0, 1, 2, 3.0, 4, 5, 6, 7, 8, 9, 10])


def test_fields_appended_by_a_newer_version_are_ignored_and_missing_ones_have_defaults():
    assert decode(msgspec.msgpack.encode(["snap?", "w", 0])) == SnapshotRequest("w", 0, distrusted=False)
    assert decode(msgspec.msgpack.encode(["snap?", "w", 0, True, "new"])) == SnapshotRequest("w", 0, distrusted=True)
    assert decode(msgspec.msgpack.encode(["mark", "w", 0, 1, 2, 3.0, 4, 5, 6, 7, 8])) == KvMark(
        "w", 0, 1, 2, 3.0, 4, 5, 6, 7, 8, rebuilds=0, corrections=0
    )
    assert decode(msgspec.msgpack.encode(["kv", "w", 0, 1, 2, [["S", b""]]])) == KvEvents(
        "w", 0, 1, 2, [BlocksStored(b"")]
    )
