"""Mooncake's JSON lines."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from sim.traces import ALONE, TraceError, mooncake
from tests.sim.traces.published import published

if TYPE_CHECKING:
    from pathlib import Path

ROW = '{"timestamp": 0, "input_length": 700, "output_length": 5, "hash_ids": [1, 2]}'


def read(folder: Path, *lines: str) -> mooncake.Trace:
    path = folder / "file.jsonl"
    path.write_text("\n".join(lines))
    return mooncake.read(path)


def test_rows_become_columns(tmp_path: Path) -> None:
    later = '{"timestamp": 2500, "input_length": 513, "output_length": 7, "hash_ids": [1, 18446744073709551615]}'
    trace = read(tmp_path, later, "", ROW)
    assert trace.arrival_seconds.tolist() == [0.0, 2.5]
    assert trace.input_tokens.tolist() == [700, 513]
    assert trace.output_tokens.tolist() == [5, 7]
    assert trace.ids(1).tolist() == [1, 2**64 - 1]
    assert not trace.has_sessions


def test_turns_of_a_session_follow_each_other(tmp_path: Path) -> None:
    trace = read(
        tmp_path,
        '{"created_time": 1000, "input_tokens": 9, "output_tokens": 1, "session_id": "a"}',
        '{"timestamp": 1200, "input_length": 9, "output_length": 1, "session_id": "b"}',
        '{"delay": 500, "input_length": 9, "output_length": 1, "session_id": "a"}',
        '{"delay_ms": 100, "input_length": 9, "output_length": 1, "session_id": "a"}',
        '{"timestamp": 2200, "input_length": 9, "output_length": 1, "session_id": "b"}',
    )
    assert trace.previous.tolist() == [ALONE, ALONE, 0, 2, 1]
    assert trace.delay_seconds.tolist() == pytest.approx([0.0, 0.0, 0.5, 0.1, 1.0])
    assert trace.arrival_seconds.tolist() == pytest.approx([0.0, 0.2, 0.5, 0.6, 1.2])


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("not json", "file.jsonl, line 3: JSON is malformed"),
        ('{"timestamp": "soon"}', "file.jsonl, line 3: timestamp: Expected `float | null`, got `str`"),
        ('{"timestamp": 0, "output_length": 5}', "file.jsonl, line 3: input_length: is missing"),
        ('{"timestamp": 0, "input_length": 5}', "file.jsonl, line 3: output_length: is missing"),
        ('{"input_length": 5, "output_length": 5}', "file.jsonl, line 3: timestamp: is missing"),
        ('{"timestamp": 0, "input_length": 0, "output_length": 5}', "line 3: input tokens: must be at least 1"),
        ('{"timestamp": 0, "input_length": 5, "output_length": -5}', "line 3: output tokens: must be at least 0"),
        (
            '{"timestamp": 0, "input_length": 5, "output_length": 5, "hash_ids": [-1]}',
            "line 3: hash_ids: must be unsigned 64-bit numbers",
        ),
        (
            '{"timestamp": 0, "input_length": 5, "output_length": 5, "hash_ids": [1.5]}',
            r"hash_ids\[0\]: Expected `int`",
        ),
    ],
)
def test_a_wrong_line_is_named(tmp_path: Path, line: str, message: str) -> None:
    with pytest.raises(TraceError, match=message):
        read(tmp_path, ROW, "", line, ROW)


def test_an_empty_file_is_no_trace(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match="has no requests"):
        read(tmp_path)


def test_a_request_without_output_has_one_token(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert read(tmp_path, '{"timestamp": 0, "input_length": 5, "output_length": 0}').output_tokens.tolist() == [1]
    assert "1 requests without output tokens" in caplog.text


@pytest.mark.parametrize(("name", "rows", "ids"), [("conversation", 12_031, 288_500), ("synthetic", 3_993, 121_877)])
def test_the_published_traces(name: str, rows: int, ids: int) -> None:
    trace = mooncake.read(published(f"{name}.jsonl"))
    assert (len(trace), len(trace.blocks)) == (rows, ids)
