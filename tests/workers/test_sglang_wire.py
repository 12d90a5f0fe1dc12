"""SGLang's event payloads: every captured frame of every version against what was decoded beside it, and hand-made ones."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest

from events.messages import Tier
from workers.sglang import wire
from workers.sglang.wire import EngineCleared, EngineRemoved, EngineStored, EventDecoder, WireError

from . import captures

CAPTURED = ["basic_p16.jsonl", "dp2_p1_dynamo.jsonl", "hicache_p16.jsonl", "pd_nixl.jsonl"]
TIER_OF = {"GPU": Tier.DEVICE, "CPU_PINNED": Tier.HOST}


def payload(*events, rank=0, ts=1.5):
    return msgspec.msgpack.encode([ts, list(events), rank])


def plain(event):
    """An event as something that compares."""
    if isinstance(event, EngineStored):
        salts = (event.cache_salt, event.lora_name)
        return ("S", event.ids, event.parent, event.tokens.tolist(), event.page_size, event.tier, *salts)
    return ("R", event.ids, event.tier) if isinstance(event, EngineRemoved) else ("C",)


def plain_map(fields):
    """The same of a decoded event in map form, read independently."""
    tier = TIER_OF[fields.get("medium", "GPU")]
    if fields["type"] == "BlockStored":
        salts = (fields.get("cache_salt"), fields.get("lora_name"))
        parent, tokens = fields["parent_block_hash"], fields["token_ids"]
        return ("S", fields["block_hashes"], parent, tokens, fields["block_size"], tier, *salts)
    return ("R", fields["block_hashes"], tier) if fields["type"] == "BlockRemoved" else ("C",)


@pytest.mark.parametrize("name", CAPTURED)
def test_every_captured_frame(name):
    decoder = EventDecoder()
    captured = captures.frames(name, "kv")
    for frame in captured:
        batch = decoder.decode(frame.payload)
        ts, events, rank = frame.decoded
        assert [plain(event) for event in batch.events] == [plain_map(event) for event in events]
        assert (batch.ts, batch.rank) == (ts, rank)
    assert decoder.statistics().ignored == {}
    assert decoder.statistics().batches == len(captured) > 0


def test_every_version_says_the_same():
    for golden in captures.document("golden_by_version.json"):
        decoder = EventDecoder()
        _, _, live = (bytes.fromhex(part) for part in golden["live_frames_hex"])
        batch = decoder.decode(live)
        salted = [("S", [-5, 7], None, [1, 2, 3, 4], 2, Tier.DEVICE, "s", None)] if len(batch.events) == 5 else []
        assert [plain(event) for event in batch.events] == [
            ("S", [-5, 7], None, [1, 2, 3, 4], 2, Tier.DEVICE, None, None),
            ("S", [-5, 7], 7, [1, 2, 3, 4], 2, Tier.DEVICE, None, None),
            *salted,
            ("R", [-5, 7], Tier.DEVICE),
            ("C",),
        ], golden["version"]
        assert bool(salted) == (wire_version(golden) >= (0, 5, 18))
        assert batch.rank == 1
        assert decoder.decode(bytes.fromhex(golden["batch_no_rank_hex"])).rank is None
        assert decoder.statistics().ignored == {}


def wire_version(golden):
    return tuple(int(part) for part in golden["version"].split(".")[:3])


def test_a_fleet_of_0_5_17():
    decoder = EventDecoder()
    events = [event for data in captures.fleet_payloads() for event in decoder.decode(data).events]
    assert sum(isinstance(event, EngineStored) for event in events) == 87_093
    assert sum(isinstance(event, EngineRemoved) for event in events) == 248
    joined = wire.coalesce(events)
    assert len(joined) < len(events) // 50
    assert sum(len(event.tokens) for event in joined if isinstance(event, EngineStored)) == 1_393_488


def test_array_form_may_end_anywhere_after_its_fields():
    full = ["BlockStored", [1], None, [5, 6], 2, None, "GPU", {"cache_salt": "s"}]
    for length in (6, 7, 8):
        (event,) = EventDecoder().decode(payload(full[:length])).events
        assert plain(event) == ("S", [1], None, [5, 6], 2, Tier.DEVICE, "s" if length == 8 else None, None)
    (removed,) = EventDecoder().decode(payload(["BlockRemoved", [1]])).events
    assert plain(removed) == ("R", [1], Tier.DEVICE)


def test_later_fields_types_and_media_are_left_out_and_counted():
    decoder = EventDecoder()
    stored = {"type": "BlockStored", "block_hashes": [1], "parent_block_hash": None, "token_ids": [5], "block_size": 1}
    batch = decoder.decode(
        payload(
            stored | {"medium": "GPU", "color": "red"},
            ["BlockStored", [2], 1, [5], 1, None, "GPU", None, "later", "still later"],
            {"type": "BlockMoved", "block_hashes": [1]},
            stored | {"medium": "EXTERNAL"},
            {"type": "BlockRemoved", "block_hashes": [1], "medium": "EXTERNAL"},
            17,
        )
    )
    assert [event.ids for event in batch.events] == [[1], [2]]
    assert decoder.statistics().ignored == {
        "key BlockStored.color": 1,
        "key BlockStored[8]": 1,
        "type BlockMoved": 1,
        "medium EXTERNAL": 2,
        "type int": 1,
    }


@pytest.mark.parametrize(
    "event",
    [
        {"type": "BlockStored"},
        ["BlockStored", [1], None, [5, 6, 7], 2, None],
        ["BlockStored", [], None, [], 2, None],
        ["BlockStored", [1], None, [-5], 1, None],
        ["BlockStored", [1], None, [2**32], 1, None],
        ["BlockStored", [1], None, ["x"], 1, None],
    ],
    ids=str,
)
def test_malformed_stores_are_left_out_and_counted_and_the_others_stay(event):
    decoder = EventDecoder()
    batch = decoder.decode(payload(event, {"type": "AllBlocksCleared"}))
    assert batch.events == [EngineCleared()]
    assert decoder.statistics().ignored == {"malformed BlockStored": 1}


@pytest.mark.parametrize(
    "event",
    [
        {"type": "BlockRemoved", "medium": "GPU"},
        {"type": "BlockRemoved", "block_hashes": ["a"]},
        {"type": "BlockRemoved", "block_hashes": None},
        ["BlockRemoved"],
        {"type": "BlockRemoved", "block_hashes": [1], "medium": [3]},
    ],
    ids=str,
)
def test_a_malformed_removal_makes_the_batch_unreadable(event):
    """Who does not know what is gone cannot know what is there."""
    decoder = EventDecoder()
    with pytest.raises(WireError, match="malformed BlockRemoved"):
        decoder.decode(payload({"type": "AllBlocksCleared"}, event))
    assert decoder.statistics().ignored == {"malformed BlockRemoved": 1}


def test_a_malformed_kind_is_said_once(caplog):
    decoder = EventDecoder()
    for _ in range(3):
        decoder.decode(payload({"type": "BlockMoved"}))
    assert [record.getMessage() for record in caplog.records if "BlockMoved" in record.getMessage()].__len__() == 1


@pytest.mark.parametrize(
    "data", [b"", b"\xc1", b"\x93\xcb", msgspec.msgpack.encode(7), msgspec.msgpack.encode([1.0, 2])]
)
def test_what_is_no_batch_is_an_error(data):
    with pytest.raises(WireError, match="no event batch"):
        EventDecoder().decode(data)


def test_bigrams_stand_for_their_first_token_and_ids_may_be_large_or_bytes():
    for ids in ([2**64 - 1, 3], [b"\x00" * 32, b"\x01" * 32]):
        event = ["BlockStored", ids, None, [[1, 2], [2, 3], [3, 4], [4, 5]], 2, None]
        (stored,) = EventDecoder().decode(payload(event)).events
        assert stored.ids == ids
        assert stored.tokens.tolist() == [1, 2, 3, 4]
        assert stored.tokens.dtype == np.uint32


@pytest.mark.parametrize(
    ("medium", "tier"),
    [("CPU", 1), ("CPU_PINNED", 1), ("CPU_TIER1", 1), ("CPU_TIER2", 2), ("DISK", 2), ("NVME", 2), ("STORAGE", 2)],
)
def test_media(medium, tier):
    (removed,) = EventDecoder().decode(payload(["BlockRemoved", [1], medium])).events
    assert removed.tier == tier


def test_a_lora_without_a_name_is_a_namespace_of_its_own():
    (stored,) = EventDecoder().decode(payload(["BlockStored", [1], None, [5], 1, 3])).events
    assert stored.lora_name == "3"


def stored(ids, parent, **fields):
    return EngineStored(ids, parent, np.arange(2 * len(ids), dtype=np.uint32), 2, **fields)


def test_coalesce_joins_only_what_continues():
    events = [
        stored([1], None),
        stored([2, 3], 1),
        stored([4], 3, tier=Tier.HOST),
        stored([5], 4, tier=Tier.HOST, cache_salt="s"),
        stored([6], None),
        stored([7], None),
        EngineRemoved([1]),
        EngineRemoved([2, 3]),
        EngineRemoved([4], Tier.HOST),
        EngineCleared(),
        EngineCleared(),
    ]
    joined = wire.coalesce(events)
    assert [getattr(event, "ids", None) for event in joined] == [
        [1, 2, 3],
        [4],
        [5],
        [6],
        [7],
        [1, 2, 3],
        [4],
        None,
        None,
    ]
    assert joined[0].tokens.tolist() == [0, 1, 0, 1, 2, 3]
    assert joined[0].parent is None
