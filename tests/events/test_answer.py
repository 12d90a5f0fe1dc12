"""The frames of a streamed answer: whatever is lost of it is noticed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from events.bus import NoResponder
from events.bus.answer import Answer, failure, frames

PARTS = st.lists(st.binary(max_size=20), max_size=6)


async def parts_of(received):
    answer = Answer("svc")
    for frame in received:
        answer.offer(frame)
    return [part async for part in answer.parts(timeout_seconds=0)]


@given(PARTS, st.integers(1, 8))
async def test_parts_survive_being_cut_into_frames(parts, frame_bytes):
    sent = list(frames(parts, frame_bytes))
    assert all(len(frame) <= 5 + frame_bytes for frame in sent)
    assert await parts_of(sent) == parts


@given(PARTS, st.integers(1, 8), st.data())
async def test_a_lost_frame_is_noticed(parts, frame_bytes, data):
    sent = list(frames(parts, frame_bytes))
    lost = data.draw(st.integers(0, len(sent) - 1))
    with pytest.raises(NoResponder, match=f"frame {lost} is missing" if lost < len(sent) - 1 else "no answer"):
        await parts_of(sent[:lost] + sent[lost + 1 :])


@pytest.mark.parametrize("frame", [b"", b"p", b"some other answer", b"x\0\0\0\0"])
async def test_what_is_no_frame_is_said(frame):
    with pytest.raises(NoResponder, match="not from a server of this bus"):
        await parts_of([frame])


async def test_a_failure_ends_an_answer_at_once():
    with pytest.raises(NoResponder, match="svc: out of order"):
        await parts_of([next(frames([b"first"])), failure("out of order")])
