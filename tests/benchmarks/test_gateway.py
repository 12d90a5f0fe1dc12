"""Rival gateways before running engines: how they are named, started and stopped, and what of their answers is known."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

import aiohttp
import pytest

from benchmarks.engines import Answer, Policy, Replay, parse, summary
from benchmarks.gateway import Gateway
from launch.process import ProcessFailed

if TYPE_CHECKING:
    from pathlib import Path

ENGINES = ["http://a:1", "http://b:2"]


def answer(worker: str | None) -> Answer:
    return Answer(0, 0.0, worker, prompt_tokens=10, cached_tokens=5, token_seconds=[0.1, 0.2], token_counts=[1, 3])


def test_the_gaps_of_a_command_are_filled() -> None:
    gateway = Gateway.parse("rival=env A='b c' rival --urls {engines} --host=h:{port}")
    words = ["env", "A=b c", "rival", "--urls", "http://a:1", "http://b:2", "--host=h:80"]
    assert (gateway.name, gateway.words(80, ENGINES)) == ("rival", words)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("rival", "not NAME=COMMAND"),
        ("=run {port} {engines}", "not NAME=COMMAND"),
        ("rival=run {engines}", r"no \{port\}"),
        ("rival=run {port}", r"no \{engines\}"),
        ("rival=run {port} {engines} {metrics}", r"\{metrics\} is neither"),
        ("rival=run {port} '{engines}", "No closing quotation"),
    ],
)
def test_a_command_that_cannot_be_filled_is_refused(text: str, reason: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match=reason):
        Gateway.parse(text)


def test_contenders_keep_the_order_in_which_they_were_given() -> None:
    both = ["--policy", "linear", "--gateway", "rival=run {port} {engines}", "--policy", "warm"]
    options = parse(["t.jsonl", "--engine", ENGINES[0], *both])
    assert options.contenders == [Policy("linear"), Gateway("rival", "run {port} {engines}"), Policy("warm")]


def test_two_of_one_name_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parse(["t.jsonl", "--engine", ENGINES[0], "--policy", "warm", "--gateway", "warm=run {port} {engines}"])
    assert ended.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


async def test_a_gateway_serves_while_it_is_needed(tmp_path: Path) -> None:
    gateway = Gateway.parse(f"worker={sys.executable} -m sim.worker --port {{port}} --served-model-name '{{engines}}'")
    async with aiohttp.ClientSession() as session:
        async with gateway.running(ENGINES, tmp_path / "log") as url, session.get(f"{url}/v1/models") as reply:
            assert (await reply.json())["data"][0]["id"] == " ".join(ENGINES)
        with pytest.raises(aiohttp.ClientConnectionError):
            await session.get(f"{url}/v1/models")


@pytest.mark.parametrize(
    ("program", "said"),
    [("no-such-program", "cannot be started"), (f"{sys.executable} -c 'exit(\"bad flag\")'", "bad flag")],
)
async def test_a_gateway_that_does_not_start_says_why(program: str, said: str, tmp_path: Path) -> None:
    gateway = Gateway.parse(f"rival={program} {{port}} {{engines}}")
    with pytest.raises(ProcessFailed, match=said):
        async with gateway.running(ENGINES, tmp_path / "log"):
            pass


@pytest.mark.parametrize(("workers", "ratio"), [(["a", "a", "a", "b"], 1.5), (["a", None], None)])
def test_the_busiest_server_is_known_only_where_all_are(workers: list[str | None], ratio: float | None) -> None:
    figures = summary(Replay([answer(worker) for worker in workers], ["refused"]), requests=8, workers=2)
    assert figures["busiest_to_mean"] == ratio
    assert (figures["failed"], figures["unfinished"]) == (1, 7 - len(workers))


def test_a_run_without_an_answer_has_no_figures() -> None:
    with pytest.raises(ProcessFailed, match="no request was answered"):
        summary(Replay([], ["refused"]), requests=1, workers=2)
