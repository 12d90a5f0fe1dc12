"""Every format: what is read from it, what is written to it, which one a file is in, and what a wrong file says."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given

from sim.traces import ALONE, Trace, TraceError, azure, bailian, formats, mooncake, native
from tests.sim.traces.published import published
from tests.sim.traces.strategies import assert_equal, traces

if TYPE_CHECKING:
    from pathlib import Path

NATIVE = '{"warmpath_trace": 1, "name": "n", "block_tokens": 16}'
REQUEST = '{"arrival_seconds": 1.5, "input_tokens": 20, "output_tokens": 3, "blocks": [7, 8]}'
BAILIAN = '{"chat_id": 9, "parent_chat_id": -1, "timestamp": 61.114, "input_length": 20, "output_length": 3, "hash_ids": [1, 2]}'
AZURE = "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46.6805900,374,44\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("traces")


def file(folder: Path, text: str, name: str = "file") -> Path:
    path = folder / name
    path.write_text(text)
    return path


# ---- our own


@given(trace=traces())
def test_our_own_format_keeps_every_column(folder: Path, trace: Trace) -> None:
    native.write(trace, folder / "own.jsonl")
    assert_equal(native.read(folder / "own.jsonl"), trace)
    assert formats.detect(folder / "own.jsonl") == "warmpath"


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["{}", REQUEST], 'file, line 1: is no {"warmpath_trace": 1'),
        ([NATIVE.replace("1,", "2,", 1), REQUEST], "line 1: warmpath_trace: is 2: this warmpath reads version 1"),
        ([NATIVE], "file: has no requests"),
        ([NATIVE, REQUEST, REQUEST.replace("20", "0")], "line 3: input_tokens: is 0: must be at least 1"),
        ([NATIVE, REQUEST.replace("1.5", "-1.5")], "line 2: arrival_seconds: is -1.5: must be at least 0 and finite"),
        (
            [NATIVE, REQUEST, REQUEST.replace("1.5", "1")],
            "line 3: arrival_seconds: is 1.0: the request before it comes later",
        ),
        ([NATIVE, REQUEST.replace('"input_tokens": 20,', "")], "line 2: Object missing required field `input_tokens`"),
        ([NATIVE, REQUEST, REQUEST.replace("[7", "[-7")], "line 3: blocks: must be unsigned 64-bit numbers"),
        ([NATIVE, REQUEST.replace("}", ', "previous": 0}')], "line 2: previous: is 0: must be an earlier request"),
        ([NATIVE.replace("16", "0"), REQUEST], "block_tokens: must be at least 1, not 0"),
    ],
)
def test_a_wrong_line_of_our_own_is_named(tmp_path: Path, lines: list[str], message: str) -> None:
    with pytest.raises(TraceError, match=re.escape(message)):
        native.read(file(tmp_path, "\n".join(lines)))


# ---- Mooncake's


@given(trace=traces(branches=False))
def test_mooncake_keeps_all_but_the_name_to_the_microsecond(folder: Path, trace: Trace) -> None:
    mooncake.write(trace, folder / "mooncake.jsonl")
    back = mooncake.read(folder / "mooncake.jsonl", block_tokens=trace.block_tokens)
    from_zero = trace.arrival_seconds - trace.arrival_seconds[0]
    assert back.arrival_seconds == pytest.approx(from_zero, abs=2e-6)
    assert back.delay_seconds == pytest.approx(trace.delay_seconds, abs=1e-6)
    same = back.with_columns(name=trace.name, arrival_seconds=trace.arrival_seconds, delay_seconds=trace.delay_seconds)
    assert_equal(same, trace)


def test_mooncake_cannot_say_that_a_session_branches(tmp_path: Path) -> None:
    trace = Trace.open_loop("n", np.arange(3.0), np.ones(3, np.int64), np.ones(3, np.int64))
    with pytest.raises(TraceError, match="two requests follow the same one"):
        mooncake.write(trace.with_columns(previous=np.array([ALONE, 0, 0])), tmp_path / "file")


def test_the_published_trace_is_written_as_it_was(tmp_path: Path) -> None:
    mooncake.write(mooncake.read(published("conversation.jsonl")), tmp_path / "again")
    assert (tmp_path / "again").read_text().replace(" ", "") == published("conversation.jsonl").read_text().replace(
        " ", ""
    )


def test_deltas_become_whole_prompts(tmp_path: Path) -> None:
    trace = mooncake.read_delta(
        file(
            tmp_path,
            """
            {"timestamp": 0, "input_length": 1100, "output_length": 100, "hash_ids": [5, 6, 7], "session_id": "a"}
            {"timestamp": 1, "input_length": 600, "output_length": 3, "hash_ids": [5, 9]}
            {"delay": 2000, "input_length": 400, "output_length": 50, "hash_ids": [8], "session_id": "a"}
            {"delay": 2000, "input_length": 1, "output_length": 1, "hash_ids": [8], "session_id": "a"}
            """,
        )
    )
    assert trace.input_tokens.tolist() == [1100, 600, 1100 + 100 + 400, 1600 + 50 + 1]
    assert trace.previous.tolist() == [ALONE, ALONE, 0, 2]
    first, alone, second, third = (trace.ids(request).tolist() for request in range(4))
    assert alone == [5, 9]
    assert first[:2] == [5, 6]
    assert len(first) == 3  # 1,200 tokens: the third block holds a bit of the prompt, and the output
    assert first[2] != 7
    assert second[:3] == first
    assert len(second) == len(third) == 4
    assert third == second


def test_agentic_rows_wait_for_earlier_ones(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    row = '"input_length": 9, "output_length": 1, "hash_ids": [1]}\n'
    text = (
        f'{{"request_id": "r1", "session_id": "s", "timestamp": 0, "wait_for": [], {row}'
        f'{{"request_id": "r2", "session_id": "t", "timestamp": 10, "wait_for": ["r1"], "delay": 1, "tool_wait_ms": 2, {row}'
        f'{{"request_id": "r3", "session_id": "s", "timestamp": 20, "wait_for": ["r1", "r2"], "delay": 4, {row}'
        f'{{"request_id": "r4", "session_id": "s", "timestamp": 30, "wait_for": ["r0"], "delay": 4, {row}'
    )
    path = file(tmp_path, text)
    trace = formats.load(path)
    assert formats.detect(path) == "mooncake-agentic"
    assert trace.previous.tolist() == [ALONE, 0, 1, ALONE]
    assert trace.delay_seconds.tolist() == [0.0, 0.003, 0.004, 0.0]
    assert "1 requests wait for several" in caplog.text
    assert "1 requests follow one that is not there" in caplog.text


# ---- Qwen-Bailian's and Azure's


def test_bailian_links_turns_to_their_parents(tmp_path: Path) -> None:
    later = BAILIAN.replace('"chat_id": 9, "parent_chat_id": -1', '"chat_id": 4, "parent_chat_id": 9').replace(
        "61.114", "70"
    )
    trace = formats.load(file(tmp_path, f"{BAILIAN}\n{later}\n"))
    assert trace.block_tokens == 16
    assert trace.arrival_seconds.tolist() == pytest.approx([0.0, 8.886])
    assert trace.previous.tolist() == [ALONE, 0]
    assert trace.delay_seconds.tolist() == pytest.approx([0.0, 8.886])
    assert not trace.without_sessions().has_sessions


def test_azure_has_arrivals_and_lengths(tmp_path: Path) -> None:
    trace = formats.load(file(tmp_path, AZURE + "2023-11-16 18:15:50.9951690,396,109\n\n"))
    assert trace.arrival_seconds.tolist() == pytest.approx([0.0, 4.314579])
    assert (trace.input_tokens.tolist(), trace.output_tokens.tolist()) == ([374, 396], [44, 109])
    assert len(trace.blocks) == 0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "file: has no requests"),
        ("\n \n", "file: has no requests"),
        ("a,b\n1,2\n", "file, line 1: is in no format that is known (warmpath, mooncake,"),
        ('["hash_ids"]\n', "line 1: is in no format that is known"),
        ('{"a": 1}\n', "line 1: is in no format that is known"),
        (
            BAILIAN + '\n{"chat_id": 1, "timestamp": 0, "output_length": 1}',
            "line 2: Object missing required field `input_length`",
        ),
        (BAILIAN.replace("61.114", '"now"'), "line 1: timestamp: Expected `float`, got `str`"),
        ("TIMESTAMP,ContextTokens\n", "line 1: GeneratedTokens: is no column of the header"),
        (AZURE + "2023-11-16 18:15:50,3\n", "line 3: has 2 of 3 fields"),
        (AZURE + "\nyesterday,3,4\n", "line 4: TIMESTAMP: 'yesterday' is no time"),
        (AZURE + ",3,4\n", "line 3: TIMESTAMP: is empty"),
        (AZURE + "2023-11-16 18:15:50,3,many\n", "line 3: GeneratedTokens: 'many' is no whole number"),
        (AZURE + "2023-11-16 18:15:50,0,4\n", "line 3: input tokens: must be at least 1"),
        (AZURE.split("\n")[0] + "\n", "file: has no requests"),
    ],
)
def test_a_wrong_file_says_where_and_why(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(TraceError, match=re.escape(message)):
        formats.load(file(tmp_path, text))


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(BAILIAN.encode() + b'\n{"chat_id": "\xff\xfe"}\n')
    with pytest.raises(TraceError, match="line 2"):
        formats.load(tmp_path / "file")


@pytest.mark.parametrize(("name", "rows"), [("azure2023_code.csv", 8_819), ("azure2023_conv.csv", 19_366)])
def test_the_published_azure_traces(name: str, rows: int) -> None:
    assert len(azure.read(published(name))) == rows


def test_a_parent_that_is_not_there_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    trace = bailian.read(file(tmp_path, BAILIAN.replace("-1", "55")))
    assert trace.previous.tolist() == [ALONE]
    assert "1 requests follow one that is not there" in caplog.text
