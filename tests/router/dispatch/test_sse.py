from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.dispatch.sse import EventTooLong, SseDecoder

lines = st.binary(max_size=20).map(lambda data: data.replace(b"\n", b"").replace(b"\r", b""))


@given(st.lists(st.lists(lines, min_size=1, max_size=3), max_size=6), st.data())
def test_however_the_bytes_are_cut_the_events_are_the_same(events: list[list[bytes]], data: st.DataObject) -> None:
    wire = b"".join(b"".join(b"data: " + line + b"\n" for line in event) + b"\n" for event in events)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(wire)), max_size=8)))
    decoder = SseDecoder()
    got = [
        event
        for start, end in zip([0, *cuts], [*cuts, len(wire)], strict=True)
        for event in decoder.feed(wire[start:end])
    ]
    assert got == [b"\n".join(event) for event in events]
    assert repr(decoder) == "SseDecoder(0 bytes pending)"


def test_comments_other_fields_and_carriage_returns_are_skipped() -> None:
    decoder = SseDecoder()
    assert decoder.feed(b": ping\r\n\r\nid: 7\r\nevent: x\r\ndata:1\r\n\r\ndata: 2\n\n") == [b"1", b"2"]


def test_an_event_without_an_end_is_given_up() -> None:
    decoder = SseDecoder(max_event_bytes=100)
    decoder.feed(b"data: " + b"x" * 60 + b"\n")
    with pytest.raises(EventTooLong, match="100 bytes"):
        decoder.feed(b"data: " + b"x" * 60)
