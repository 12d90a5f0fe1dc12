from __future__ import annotations

import itertools
import os
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.dispatch.chunks import ChunkReader
from router.dispatch.errors import EngineAborted, EngineFailed, EngineRefused

SHARED = Path(os.environ.get("WARMPATH_SHARED", Path(__file__).resolve().parents[4] / "shared"))


def chunk(ids: list[int], count: int, finish: dict[str, Any] | None = None, **meta: Any) -> bytes:
    return msgspec.json.encode(
        {"output_ids": ids, "meta_info": {"completion_tokens": count, "finish_reason": finish, **meta}}
    )


@st.composite
def answers(draw: st.DrawFn) -> tuple[list[int], list[int]]:
    """Tokens, and how many of them are out after each message."""
    tokens = draw(st.lists(st.integers(0, 50), min_size=1, max_size=30))
    counts = sorted({*draw(st.lists(st.integers(1, len(tokens)))), len(tokens)})
    return tokens, counts


@given(answers(), st.booleans(), st.booleans())
def test_cumulative_or_not_the_new_tokens_are_the_same(
    answer: tuple[list[int], list[int]], cumulative: bool, repeats: bool
) -> None:
    tokens, counts = answer
    reader, got, before = ChunkReader(), list[int](), 0
    for count in counts:
        last = count == len(tokens)
        start = 0 if cumulative or (last and repeats) else before
        output = reader.read(chunk(tokens[start:count], count, {"type": "length", "length": count} if last else None))
        assert output.token_ids == tokens[before:count]
        assert output.finish_reason == ("length" if last else None)
        got += output.token_ids
        before = count
    assert got == tokens


def test_an_incremental_last_message_may_repeat_only_some() -> None:
    reader = ChunkReader()
    reader.read(chunk([1, 2, 3], 3))
    assert reader.read(chunk([3, 4], 4, {"type": "stop", "matched": 4})).token_ids == [4]


def test_a_last_message_may_leave_the_stop_token_out() -> None:
    for before in ([], [chunk([1], 1), chunk([1, 2], 2)]):
        reader = ChunkReader()
        got = [token for payload in before for token in reader.read(payload).token_ids]
        output = reader.read(chunk([1, 2], 3, {"type": "stop", "matched": 9}))
        assert (got + output.token_ids, output.matched, output.finish_reason) == ([1, 2], 9, "stop")


def test_lost_tokens_are_noticed() -> None:
    reader = ChunkReader()
    reader.read(chunk([1], 1))
    with pytest.raises(EngineFailed, match="3 are new, 1 arrived"):
        reader.read(chunk([4], 4))


def test_counts_come_with_the_tokens() -> None:
    output = ChunkReader().read(chunk([5], 1, prompt_tokens=17, cached_tokens=16))
    assert (output.prompt_tokens, output.cached_tokens, output.completion_tokens) == (17, 16, 1)


@pytest.mark.parametrize("payload", [b"", b"nonsense", b"[]", b"{}", b'{"output_ids": ["a"]}', b'{"meta_info": {}}'])
def test_what_makes_no_sense_is_the_workers_failure(payload: bytes) -> None:
    with pytest.raises(EngineFailed, match="malformed"):
        ChunkReader().read(payload)


def test_an_error_before_any_token_condemns_the_request() -> None:
    with pytest.raises(EngineRefused, match="too long") as caught:
        ChunkReader().read(b'{"error": {"message": "too long"}}')
    assert caught.value.status == 400


def test_an_error_with_a_code_is_what_its_code_says() -> None:
    with pytest.raises(EngineFailed, match="queue is full"):
        ChunkReader().read(b'{"error": {"message": "queue is full", "code": 503}}')


def test_an_error_after_tokens_is_the_workers_failure() -> None:
    reader = ChunkReader()
    reader.read(chunk([1], 1))
    with pytest.raises(EngineFailed, match="broke"):
        reader.read(b'{"error": {"message": "broke"}}')


@pytest.mark.parametrize(
    ("finish", "kind"),
    [
        ({"type": "abort", "message": "bad", "status_code": 400}, EngineRefused),
        ({"type": "abort", "message": "full", "status_code": 503}, EngineAborted),
        ({"type": "abort", "message": "Aborted"}, EngineAborted),
        ({"type": "abort"}, EngineAborted),
    ],
)
def test_an_abort_is_an_error(finish: dict[str, Any], kind: type[Exception]) -> None:
    with pytest.raises(kind):
        ChunkReader().read(chunk([], 0, finish))


@pytest.mark.parametrize(
    ("name", "tokens"), [("stream_generate.txt", [557, 1421, 1246]), ("stream_skip_tokenizer.txt", [228, 1787, 228])]
)
def test_streams_captured_from_sglang(name: str, tokens: list[int]) -> None:
    path = SHARED / "sglang-cpu" / "captures" / name
    if not path.exists():
        pytest.skip(f"{name} needs the shared captures")
    payloads = [line[6:] for line in path.read_bytes().splitlines() if line.startswith(b"data: {")]
    reader = ChunkReader()
    outputs = [reader.read(payload) for payload in payloads]
    assert [token for output in outputs for token in output.token_ids] == tokens
    assert [output.finish_reason for output in outputs] == [None, None, "length"]


@given(answers(), st.booleans(), st.sets(st.integers(0, 30)), st.sampled_from([None, "abort", "malformed"]))
def test_messages_that_arrive_at_once_say_the_same_together(
    answer: tuple[list[int], list[int]], cumulative: bool, cuts: set[int], ending: str | None
) -> None:
    """However they are grouped; and what came before an error is not lost with it."""
    tokens, counts = answer
    payloads = [
        chunk(tokens[0 if cumulative else before : count], count, None)
        for before, count in zip([0, *counts], counts, strict=False)
    ]
    if ending is not None:
        abort = chunk(tokens, len(tokens), {"type": "abort", "message": "out of memory"})
        payloads.append(abort if ending == "abort" else b"{")
    reader, got, errors = ChunkReader(), list[int](), list[Exception]()
    edges = sorted({0, len(payloads), *(cut for cut in cuts if cut < len(payloads))})
    for start, end in itertools.pairwise(edges):
        output, error = reader.read_all(payloads[start:end])
        if output is not None:
            got += output.token_ids
            assert output.completion_tokens == len(got)
        if error is not None:
            errors.append(error)
    assert got == tokens
    assert [type(error) for error in errors] == {None: [], "abort": [EngineAborted], "malformed": [EngineFailed]}[
        ending
    ]
