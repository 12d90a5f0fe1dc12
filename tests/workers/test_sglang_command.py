"""The adapter as a process: help, errors on one line, and a whole life over a real broker and a file registry."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from pathlib import Path

import pytest

from events import messages
from events.bus.broker import EmbeddedBroker
from events.bus.nats import NatsBus
from events.membership.file import FileRegistry
from events.membership.location import DEFAULT_DISCOVERY_PATH
from events.messages import SnapshotRequest
from workers.sglang.options import parse, parser

from .fake_sglang import FakeServer, free_ports, stored

ROOT = Path(__file__).resolve().parents[2]


async def start(*arguments):
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "workers.sglang", *arguments),
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )


async def finished(*arguments):
    process = await start(*arguments)
    out, err = await asyncio.wait_for(process.communicate(), 20)
    return process.returncode, out.decode(), err.decode()


def test_help_teaches_with_an_example(capsys):
    with pytest.raises(SystemExit) as end:
        parser().parse_args(["-h"])
    assert end.value.code == 0
    text = capsys.readouterr().out
    assert "python -m workers.sglang --attach http://127.0.0.1:30000" in text
    assert "--kv-events-config" in text


def test_defaults_and_aliases():
    options = parse(["--attach", "http://h:1/"]).options
    assert (options.attach, options.nats, options.namespace) == ("http://h:1", "nats://127.0.0.1:4222", "default")
    assert (options.discovery, options.discovery_path, options.block_size) == ("file", DEFAULT_DISCOVERY_PATH, 64)
    for alias in ("--kv_store", "--discovery-backend"):
        assert parser().parse_args(["--attach", "http://h:1", alias, "memory"]).discovery == "memory"


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ([], "--attach"),
        (["--attach", "127.0.0.1:30000"], "'127.0.0.1:30000' is not http://HOST:PORT"),
        (["--attach", "http://h:x"], "is not http://HOST:PORT"),
        (["--attach", "http://h:1/v1"], "is not http://HOST:PORT"),
        (["--attach", "http://h:1", "--block-size", "0"], "--block-size: '0' is not a positive whole number"),
        (["--attach", "http://h:1", "--block-size", "many"], "--block-size"),
        (["--attach", "http://h:1", "--load-poll-seconds", "inf"], "--load-poll-seconds"),
        (["--attach", "http://h:1", "--discovery", "consul"], "--discovery"),
    ],
)
def test_bad_arguments_are_one_line_and_status_2(arguments, named, capsys):
    with pytest.raises(SystemExit) as end:
        parse(arguments)
    assert end.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert named in line


async def test_errors_of_the_process_are_one_line_and_status_2():
    (port,) = free_ports(1)
    bad_url, no_broker = await asyncio.gather(
        finished("--attach", "http://h:1", "--nats", "http://h:1", "--log-level", "error"),
        finished("--attach", "http://h:1", "--nats", f"nats://127.0.0.1:{port}", "--log-level", "error"),
    )
    for (status, out, err), named in ((bad_url, "http://h:1"), (no_broker, f"127.0.0.1:{port}")):
        assert (status, out) == (2, "")
        assert named in err.splitlines()[-1]
        assert "Traceback" not in err
        assert len(err.splitlines()) == 1


async def test_a_life_over_a_real_broker(tmp_path):
    async with FakeServer() as server, EmbeddedBroker() as broker, NatsBus(broker.url) as bus:
        await server.ranks[0].publish(stored([1, 2, 3, 4], None, range(64)))
        process = await start(
            *("--attach", server.url, "--nats", broker.url, "--namespace", "n", "--worker-id", "w"),
            *("--discovery-path", str(tmp_path)),
        )
        try:
            ready = (await asyncio.wait_for(process.stdout.readline(), 20)).decode()
            assert ready.startswith("ready {"), (await process.stderr.read()).decode()
            assert json.loads(ready.removeprefix("ready "))["worker_id"] == "w"
            registry = FileRegistry(tmp_path, "n")
            card = (await registry.cards())["w"]
            request = messages.encode(SnapshotRequest("w", 0))
            (chunk,) = [messages.decode(part) async for part in bus.request("warmpath.n.snapshot.w.0", request)]
            assert (chunk.epoch, chunk.seq, len(chunk.stored)) == (card.epoch, -1, 1)
            process.send_signal(signal.SIGTERM)
            _, err = await asyncio.wait_for(process.communicate(), 20)
            assert process.returncode == 0, err.decode()
            assert "stopped: AdapterStatistics(" in err.decode()
            assert await registry.cards() == {}
            await registry.close()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
