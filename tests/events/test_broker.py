"""The embedded NATS server: it comes up, it says why if not, and it never outlives us."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from events.bus import BusUnavailable
from events.bus.broker import EmbeddedBroker, find_binary
from events.bus.nats import NatsBus

ROOT = Path(__file__).parents[2]


def alive(pid: int) -> bool:
    """Whether a process runs (one that only waits to be reaped does not)."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


async def test_it_serves_while_in_context_and_leaves_nothing():
    broker = EmbeddedBroker()
    async with broker, NatsBus(broker.url) as bus:
        await bus.flush()
        pid, folder = broker.pid, broker._folder
        assert broker.running
        assert repr(broker) == f"<EmbeddedBroker {broker.url}, pid {pid}>"
    assert not broker.running
    assert not alive(pid)
    assert not folder.exists()
    assert repr(broker) == "<EmbeddedBroker, not running>"


async def test_start_and_stop_are_idempotent_and_keep_the_port():
    broker = EmbeddedBroker()
    await broker.start()
    url, pid = broker.url, broker.pid
    await broker.start()
    assert broker.pid == pid
    await broker.stop()
    await broker.stop()
    with pytest.raises(RuntimeError, match="not started"):
        _ = broker.url
    async with broker:
        assert broker.url == url


async def test_one_that_died_is_started_anew():
    async with EmbeddedBroker() as broker:
        pid = broker.pid
        os.kill(pid, signal.SIGKILL)
        await asyncio.to_thread(os.waitid, os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        assert not broker.running
        await broker.start()
        assert broker.running
        assert broker.pid != pid


async def test_a_stopped_one_can_be_ended():
    async with EmbeddedBroker() as broker:
        pid = broker.pid
        os.kill(pid, signal.SIGSTOP)
    assert not alive(pid)


async def test_a_taken_port_is_said():
    async with EmbeddedBroker() as first:
        with pytest.raises(
            BusUnavailable, match=rf"nats-server on 127\.0\.0\.1:{first.port}: .*address already in use"
        ):
            await EmbeddedBroker(first.port).start()


async def test_a_missing_binary_is_said(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    with pytest.raises(BusUnavailable, match=r"no nats-server beside .* nor on the PATH"):
        await EmbeddedBroker().start()


def test_the_binary_beside_python_comes_before_the_path(monkeypatch, tmp_path):
    for folder in ("beside", "path"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "nats-server").touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "path"))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "beside" / "python"))
    assert find_binary() == str(tmp_path / "beside" / "nats-server")
    (tmp_path / "beside" / "nats-server").unlink()
    assert find_binary() == str(tmp_path / "path" / "nats-server")


async def test_a_server_that_does_not_come_up_is_ended(monkeypatch, tmp_path):
    silent = tmp_path / "nats-server"
    silent.write_text("#!/bin/sh\nexec sleep 1000\n")
    silent.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    broker = EmbeddedBroker(ready_timeout_seconds=0.1)
    with pytest.raises(BusUnavailable, match=r"did not listen in 0.1 s"):
        await broker.start()
    assert not broker.running


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a child with its parent")
async def test_it_dies_with_its_parent(eventually):
    script = """
import asyncio, os, signal
from events.bus.broker import EmbeddedBroker
async def main():
    broker = EmbeddedBroker()
    await broker.start()
    print(broker.pid, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
asyncio.run(main())
"""
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-c", script],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    await eventually(lambda: not alive(int(done.stdout)))
