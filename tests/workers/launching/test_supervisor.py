"""An engine's lives: small programs as engines, and a fake server for what drain asks."""

from __future__ import annotations

import asyncio
import sys
import textwrap
from pathlib import Path

import aiohttp
import pytest

from tests.workers.fake_sglang import FakeServer
from workers.sglang import cancelling
from workers.sglang.engine import Engine
from workers.sglang.launching import restarts
from workers.sglang.launching.drain import Patience, drain
from workers.sglang.launching.process import EngineProcess
from workers.sglang.launching.restarts import Restarts
from workers.sglang.launching.supervisor import Supervisor

ROOT = Path(__file__).resolve().parents[3]
QUICK = Patience(0.01, 0.1, 60.0)


def program(code):
    return [sys.executable, "-c", textwrap.dedent(code)]


def supervised(code, **options):
    return Supervisor(program(code), "http://127.0.0.1:9", None, patience=QUICK, **options)


@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("raise SystemExit(7)", 7),
        ("pass", 0),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", 137),
    ],
)
async def test_an_engines_own_end_is_passed_on(code, status):
    assert await asyncio.wait_for(supervised(code).run(), 50) == status


async def test_restarts_end_and_the_last_status_counts(tmp_path, monkeypatch):
    monkeypatch.setattr(restarts, "FIRST_PAUSE_SECONDS", 0.01)
    lives = tmp_path / "lives"
    code = f"open({str(lives)!r}, 'a').write('x'); raise SystemExit(3)"
    supervisor = supervised(code, restarts=Restarts("on-failure", most_in_a_row=2))
    assert await asyncio.wait_for(supervisor.run(), 50) == 3
    assert lives.read_text() == "xxx"


def test_when_an_engine_is_started_again():
    assert Restarts("on-failure").pause_after(0, 1) is None
    assert Restarts("on-failure").pause_after(2, 1) is None  # it does not take its options
    assert Restarts("always").pause_after(0, 1) == 1
    assert Restarts("never").pause_after(1, 1) is None
    row = Restarts("on-failure", most_in_a_row=10)
    assert [row.pause_after(1, 1) for _ in range(7)] == [1, 2, 4, 8, 16, 30, 30]
    assert row.pause_after(1, restarts.STEADY_SECONDS) == 1


async def test_a_stop_is_orderly_and_status_0(tmp_path):
    ended = tmp_path / "ended"
    code = f"""
        import signal, sys, time
        def end(*_):
            open({str(ended)!r}, "w").write("in order"); sys.exit(5)
        signal.signal(signal.SIGTERM, end)
        open({str(tmp_path / "up")!r}, "w")
        time.sleep(60)
    """
    supervisor = supervised(code)
    running = asyncio.create_task(supervisor.run())
    await _exists(tmp_path / "up")
    supervisor.stop()
    assert await asyncio.wait_for(running, 50) == 0
    assert ended.read_text() == "in order"


async def test_a_stubborn_engine_and_its_children_are_killed(tmp_path):
    code = f"""
        import os, signal, time
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        child = os.fork()
        if child:
            open({str(tmp_path / "child.new")!r}, "w").write(str(child))
            os.rename({str(tmp_path / "child.new")!r}, {str(tmp_path / "child")!r})
        time.sleep(60)
    """
    async with EngineProcess(program(code)) as engine:
        await _exists(tmp_path / "child")
        await engine.stop(0.1)
        assert await engine.wait() == 137
    child = int((tmp_path / "child").read_text())
    async with asyncio.timeout(5):
        while _alive(child):
            await asyncio.sleep(0.01)


async def test_an_engine_ends_with_its_supervisor(tmp_path):
    code = f"""
        import asyncio, sys
        from workers.sglang.launching.process import EngineProcess
        async def main():
            async with EngineProcess([sys.executable, "-c", "import time; time.sleep(60)"]) as engine:
                print(engine.pid, flush=True)
                await asyncio.sleep(60)
        sys.path.insert(0, {str(ROOT)!r})
        asyncio.run(main())
    """
    supervisor = await asyncio.create_subprocess_exec(*program(code), stdout=asyncio.subprocess.PIPE)
    child = int(await supervisor.stdout.readline())
    supervisor.kill()
    await supervisor.wait()
    async with asyncio.timeout(10):
        while _alive(child):
            await asyncio.sleep(0.01)


async def test_a_lost_cancellation_is_said_again(monkeypatch):
    monkeypatch.setattr(cancelling, "AGAIN_SECONDS", 0.01)
    lost = []

    async def deaf():
        while True:
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                if lost:
                    raise
                lost.append(True)

    task = asyncio.create_task(deaf())
    await asyncio.sleep(0)
    await asyncio.wait_for(cancelling.cancelled(task), 10)
    assert (lost, task.cancelled()) == ([True], True)


async def test_drain_waits_for_what_runs_waits_or_is_transferred():
    async with FakeServer() as server, aiohttp.ClientSession() as session:
        engine = Engine(server.url, session)
        busy = server.loads[0]
        assert not await drain(engine, 0.05)
        busy |= {"num_running_reqs": 0}
        assert not await drain(engine, 0.05)  # it holds tokens
        busy |= {"num_used_tokens": 0, "disaggregation": {"mode": "prefill", "prefill_inflight_queue_reqs": 1}}
        assert not await drain(engine, 0.05)
        waiting = asyncio.create_task(drain(engine, 50))
        asked = len(server.asked)
        async with asyncio.timeout(5):
            while len(server.asked) == asked:
                await asyncio.sleep(0.01)
        busy["disaggregation"]["prefill_inflight_queue_reqs"] = 0
        assert await waiting


async def test_an_engine_that_does_not_say_gets_the_whole_time():
    async with aiohttp.ClientSession() as session:
        assert not await drain(Engine("http://127.0.0.1:9", session), 0.05)


async def _exists(path):
    async with asyncio.timeout(10):
        while not path.exists():
            await asyncio.sleep(0.01)


def _alive(pid):
    """Whether a process still runs; one that only waits to be reaped does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
