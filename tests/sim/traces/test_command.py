"""`python -m sim trace`, as a user runs it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from sim.__main__ import main
from sim.patience import COMPILING
from sim.traces import formats

ROOT = Path(__file__).parents[3]


def run(*arguments: object) -> int:
    """The status of a command."""
    try:
        return main(["trace", *map(str, arguments)])
    except SystemExit as error:
        return int(error.code or 0)


@pytest.fixture
def chats(tmp_path: Path) -> Path:
    path = tmp_path / "chats.jsonl"
    assert run("synthesize", "conversation", "--requests", 60, "--seed", 3, "-o", path) == 0
    return path


def test_statistics_as_a_table_and_as_json(chats: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("stats", chats, chats, "--capacity-tokens", 4096) == 0
    assert "hit ratio, infinite cache" in capsys.readouterr().out
    assert run("stats", chats, "--json") == 0
    assert json.loads(capsys.readouterr().out)["traces"][0]["requests"] == 60
    assert run("stats", chats, "--json", tmp_path / "stats.json") == 0
    assert json.loads((tmp_path / "stats.json").read_text())["traces"][0]["sharing"]["infinite_hit_ratio"] > 0


def test_cut_and_scale(chats: Path, tmp_path: Path) -> None:
    part, fast = tmp_path / "part", tmp_path / "fast"
    assert run("cut", chats, "--from", 2, "--to", 10, "--requests", 5, "--skip", 1, "-o", part) == 0
    assert len(formats.load(part)) == 5
    assert run("cut", chats, "--sessions", 3, "--seed", 1, "-o", part) == 0
    scaling = ("--rate", "x2", "--input-tokens", "x0.5", "--output-tokens", 2, "--smooth-arrivals", "--open-loop")
    assert run("scale", chats, *scaling, "-o", fast, "--output-format", "mooncake") == 0
    assert formats.detect(fast) == "mooncake"
    assert formats.load(fast).span_seconds == pytest.approx(formats.load(chats).span_seconds / 2, rel=0.05)
    assert run("scale", chats, "--rate", 10, "-o", fast) == 0
    assert len(formats.load(fast)) / formats.load(fast).span_seconds == pytest.approx(10, rel=0.01)


def test_a_fit_shows_how_well_it_fits(chats: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("synthesize", "--fit", chats, "--requests", 90, "--rate", "x2", "-o", tmp_path / "like") == 0
    assert "like-conversation" in capsys.readouterr().out
    assert len(formats.load(tmp_path / "like")) == 90


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["stats", "{none}"], "none: No such file or directory"),
        (["stats", "{wrong}"], "wrong, line 1: is in no format that is known"),
        (["stats", "{chats}", "--format", "azure"], "line 1: TIMESTAMP: is no column of the header"),
        (["stats", "{chats}", "--format", "csv"], "invalid choice: 'csv'"),
        (["stats", "{chats}", "--capacity-tokens", "0"], "'0' is not a positive whole number"),
        (["cut", "{chats}", "-o", "{none}"], "say what to cut: --from, --to, --requests or --sessions"),
        (["cut", "{chats}", "--from", "-1", "-o", "{none}"], "'-1' is not a number of seconds"),
        (["cut", "{chats}", "--from", "1e9", "-o", "{none}"], "no request arrives from 1e+09 s to inf s"),
        (["scale", "{chats}", "--rate", "x0", "-o", "{none}"], "'x0' is no rate: 5 (requests per second) or x2"),
        (["scale", "{chats}", "--input-tokens", "some", "-o", "{none}"], "'some' is no factor, as x2 or x0.5"),
        (["scale", "{chats}", "--rate", "2", "-o", "{none}/file"], "none/file': there is no folder"),
        (["scale", "{chats}", "--rate", "2", "-o", "/"], "'/' is a folder"),
        (
            ["synthesize", "-o", "{none}"],
            "say either a kind (conversation, tool-agent, shared-prompt, uniform) or --fit",
        ),
        (["synthesize", "uniform", "--fit", "{chats}", "-o", "{none}"], "say either a kind"),
        (["synthesize", "uniform", "--turns", "3", "-o", "{none}"], "--turns: uniform has no such parameter"),
        (
            ["synthesize", "uniform", "--block-tokens", "1.5", "-o", "{none}"],
            "--block-tokens: must be a whole number, not 1.5",
        ),
        (["synthesize", "conversation", "--turns", "-1", "-o", "{none}"], "turns: must be positive, not -1"),
        (["synthesize", "poems", "-o", "{none}"], "invalid choice: 'poems'"),
        (["synthesize", "uniform"], "the following arguments are required: -o/--output"),
        ([], "the following arguments are required: ACTION"),
    ],
)
def test_bad_input_is_one_line_and_status_2(
    chats: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    (tmp_path / "wrong").write_text("hello\n")
    places = {"chats": chats, "none": tmp_path / "none", "wrong": tmp_path / "wrong"}
    capsys.readouterr()
    assert run(*(argument.format(**places) for argument in arguments)) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        ([], 0, "usage: python -m sim PART"),
        (["nothing"], 2, "no part 'nothing'; there are replay, trace"),
        (["trace", "-h"], 0, "examples:"),
    ],
)
def test_the_simulator_says_what_it_has(arguments: list[str], status: int, said: str) -> None:
    answer = subprocess.run([sys.executable, "-m", "sim", *arguments], capture_output=True, text=True, cwd=ROOT)
    assert answer.returncode == status
    assert said in answer.stdout + answer.stderr


def test_the_reader_of_the_output_may_leave(chats: Path) -> None:
    command = f"'{sys.executable}' -m sim trace stats '{chats}' --json | head -c 10"
    answer = subprocess.run(["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True, cwd=ROOT)
    assert (answer.returncode, answer.stderr.replace(f"{COMPILING}\n", "")) == (0, "")
