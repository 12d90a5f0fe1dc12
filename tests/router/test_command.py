"""`python -m router`: what cannot be started as asked is said on one line, with status 2."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from router.config import parse
from sim import tinymodel

ROOT = Path(__file__).resolve().parent.parent.parent
MODEL = ("--model-path", str(tinymodel.PATH))


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "router", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=30)


@pytest.mark.parametrize(
    ("arguments", "mention"),
    [
        ((), "--model-path"),
        (("--model-path", "/nowhere"), "/nowhere"),
        ((*MODEL, "--policy", "psychic"), "psychic"),
        ((*MODEL, "--policy", "linear", "--policy-option", "wrong=1"), "wrong"),
        ((*MODEL, "--policy-option", "temperature"), "NAME=NUMBER"),
        ((*MODEL, "--block-size", "0"), "--block-size"),
        ((*MODEL, "--http-port", "70000"), "--http-port"),
        ((*MODEL, "--worker", "10.0.0.1:30000"), "http://HOST:PORT"),
        ((*MODEL, "--nats", "http://127.0.0.1:1"), "--nats"),
        ((*MODEL, "--discovery", "memory", "--no-kv-events"), "--worker"),
        ((*MODEL, "--migration-limit", "-1"), "--migration-limit"),
        ((*MODEL, "--durable-events", "--nats", "embedded"), "--nats-store-dir"),
        ((*MODEL, "--first-token-timeout", "0"), "--first-token-timeout"),
    ],
)
def test_a_wrong_option_is_named(arguments: tuple[str, ...], mention: str) -> None:
    answer = run(*arguments)
    assert answer.returncode == 2
    assert mention in answer.stderr
    last = answer.stderr.strip().splitlines()[-1]
    assert last.startswith("python -m router: error: ")
    assert "Traceback" not in answer.stderr


def test_a_broken_model_folder_is_named_with_its_file(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{")
    answer = run("--model-path", str(tmp_path))
    assert answer.returncode == 2
    assert str(tmp_path / "tokenizer.json") in answer.stderr


@pytest.mark.parametrize("option", ["--http-port", "--nats-port"])
def test_a_taken_port_is_named(option: str, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        arguments = {"--http-port": "0", "--nats-port": "0", option: port}
        answer = run(
            *MODEL, "--http-host", "127.0.0.1", "--nats", "embedded", "--discovery-path", str(tmp_path),
            *(word for pair in arguments.items() for word in pair),
        )  # fmt: skip
    assert answer.returncode == 2
    assert port in answer.stderr
    assert "Traceback" not in answer.stderr


def test_it_serves_until_it_is_told_to_stop(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "router", *MODEL, "--http-port", "0", "--nats", "embedded", "--nats-port", "0"]
    with subprocess.Popen([*command, "--discovery-path", str(tmp_path)], stdout=subprocess.PIPE, cwd=ROOT) as router:
        assert router.stdout is not None
        line = router.stdout.readline()
        assert json.loads(line.removeprefix(b"ready "))["http"].startswith("http://127.0.0.1:")
        router.send_signal(signal.SIGTERM)
        assert router.wait(timeout=10) == 0


def test_the_administrators_token_comes_from_the_environment_or_the_command_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("WARMPATH_ADMIN_TOKEN", raising=False)
    assert parse(MODEL).admin_token is None
    monkeypatch.setenv("WARMPATH_ADMIN_TOKEN", "from-environment")
    assert parse(MODEL).admin_token == "from-environment"
    assert parse([*MODEL, "--admin-token", "from-line"]).admin_token == "from-line"
