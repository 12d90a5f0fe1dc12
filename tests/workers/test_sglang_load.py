"""Load reports of real servers, and of ones that say less or more."""

from __future__ import annotations

import msgspec
import pytest

from events import messages
from workers.sglang.card import Chosen, describe
from workers.sglang.load import LoadError, LoadReport, from_loads, from_message

from . import captures

CARD = describe({"max_total_num_tokens": 1}, Chosen("http://h:1", "h:1", 64), 5).card
CAPTURED_HEX = "9ba84c6f616453746174000030cd0800000030cd04000000"


@pytest.mark.parametrize("name", ["basic_p16.jsonl", "dp2_p1_dynamo.jsonl"])
def test_every_captured_frame(name):
    frames = captures.frames(name, "load")
    for frame in frames:
        assert list(msgspec.structs.astuple(from_message(frame.payload))) == frame.decoded[1:]
    assert frames


def test_a_captured_frame_as_routers_take_it():
    load = from_message(bytes.fromhex(CAPTURED_HEX)).as_worker_load(CARD, 0, 12.5)
    assert load == messages.WorkerLoad("h:1", 0, 5, 0, 0, 48, 2048, 0, 1024, 0, 0.0, 12.5)
    assert messages.decode(messages.encode(load)) == load


def test_what_a_version_does_not_say_is_none_and_what_it_says_more_is_left_out():
    short = from_message(msgspec.msgpack.encode(["LoadStat", 2, 1, 48, 2048, 0]))
    load = short.as_worker_load(CARD, 3, 0.0)
    assert (load.rank, load.running_requests, load.waiting_requests) == (3, 2, 1)
    assert load.waiting_uncached_tokens is None
    assert load.total_prefill_busy_seconds is None
    longer = from_message(msgspec.msgpack.encode(["LoadStat", 2, 1, 48, 2048, 0, 5, 6, 7, 8, 1_500_000, "new", 3]))
    assert longer.as_worker_load(CARD, 0, 0.0).total_prefill_busy_seconds == 1.5


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\xc1",
        *map(
            msgspec.msgpack.encode, [7, [], ["LoadStat", 1, 2, 3, 4], ["Other", 1, 2, 3, 4, 5], ["LoadStat", *"abcde"]]
        ),
    ],
)
def test_what_is_no_report_is_an_error(payload):
    with pytest.raises(LoadError, match="no load report"):
        from_message(payload)


def test_a_real_reply_of_loads():
    (report,) = from_loads(captures.document("v1_loads.json"))
    assert report == LoadReport(0, 0, 0, 2048, 0, 0, 0, 1024, 4850, 1733977)
    ranks = [step for step in captures.steps("dp2_p1_dynamo.jsonl") if step["step"] == "loads"]
    assert [report.dp_rank for report in from_loads(ranks[0]["result"])] == [0, 1]


@pytest.mark.parametrize(
    "reply", [{}, {"loads": 3}, {"loads": [{"dp_rank": 0}]}, {"loads": [{"num_running_reqs": "x"}]}]
)
def test_a_reply_without_reports_is_an_error(reply):
    with pytest.raises(LoadError):
        from_loads(reply)
