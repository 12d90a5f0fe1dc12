"""The parts of the harness that could hide a fault: the NATS link, the clock, the draw."""

from __future__ import annotations

import asyncio
import contextlib
import random
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from events.bus.broker import EmbeddedBroker
from events.bus.nats import NatsBus
from tests.chaos.campaign import Campaign
from tests.chaos.faults import FAULTS, Scene
from tests.chaos.natslink import NatsLink
from tests.chaos.truth import Truth

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("kind", "seen"),
    [
        ("drop", [2, 3, 4]),
        ("duplicate", [0, 0, 1, 1, 2, 3, 4]),
        ("reorder", [2, 0, 1, 3, 4]),
        ("delay", [0, 1, 2, 3, 4]),
    ],
)
async def test_a_link_disturbs_the_messages_it_is_told_to_and_no_others(kind, seen, eventually):
    async with EmbeddedBroker() as broker, NatsLink(broker.port) as link:
        far = NatsBus(f"nats://127.0.0.1:{link.port}")
        async with NatsBus(broker.url) as near, far:
            heard, others = [], []

            async def hear(received):
                (heard if ".kv." in received.subject else others).append(received.data[0])

            await near.subscribe("warmpath.>", hear)
            link.disturb(kind, 2)
            for number in range(5):
                await far.publish("warmpath.n.load.w.0", bytes([number]) * 100_000)
                await far.publish("warmpath.n.kv.w.0", bytes([number]) * 100_000)
            await far.flush()
            await eventually(lambda: len(heard) == len(seen))
            assert heard == seen
            assert others == list(range(5))
            assert link.disturbed == 2


def test_a_skewed_clock_jumps_when_it_is_told_to(tmp_path):
    (tmp_path / "told.py").write_text(
        "import os, signal, time\n"
        "before = time.time(), time.time_ns()\n"
        "os.kill(os.getpid(), signal.SIGUSR1)\n"
        "print(round(time.time() - before[0]), round((time.time_ns() - before[1]) / 1e9))\n"
    )
    command = [sys.executable, "-m", "tests.chaos.skewed", "told"]
    paths = {"PYTHONPATH": f"{ROOT}:{tmp_path}", "PATH": "/usr/bin:/bin"}
    done = subprocess.run(command, cwd=ROOT, env=paths, capture_output=True, text=True, check=False)
    assert done.stdout == "3600 3600\n", done.stderr


def test_every_fault_comes_once_before_any_comes_again():
    site = SimpleNamespace()
    campaign = Campaign(site, 7, settle_seconds=1, together=0.0)
    drawn = [campaign._draw() for _ in FAULTS]
    assert sorted(kind for kinds in drawn for kind in kinds) == sorted(FAULTS)
    again = Campaign(site, 7, settle_seconds=1, together=0.0)
    assert [again._draw() for _ in FAULTS] == drawn


def test_two_at_once_never_hit_the_same_server_nor_neighbours():
    campaign = Campaign(SimpleNamespace(), 3, settle_seconds=1, together=1.0)
    for _ in range(200):
        kinds = campaign._draw()
        assert sum(kind.startswith("etcd ") for kind in kinds) <= 1
        assert len(set(kinds)) == len(kinds)
    scene = Scene(SimpleNamespace(), SimpleNamespace(), random.Random(1), 0, set())
    engines, adapters = ([SimpleNamespace(name=f"{kind}{n}") for n in range(3)] for kind in ("engine", "adapter"))
    for _ in range(50):
        scene.taken.clear()
        assert scene.index(engines) != scene.index(adapters)


@pytest.mark.parametrize(
    ("victims", "found"),
    [
        (set(), ["router1 has lost worker2, to which nothing was done"]),
        ({"router1"}, []),
        ({"engine2"}, []),
        ({"adapter2"}, []),
        ({"adapter1", "router0"}, ["router1 has lost worker2, to which nothing was done"]),
    ],
)
async def test_who_suffers_from_a_fault_without_being_its_victim_is_found(victims, found, monkeypatch):
    """Router 1 lists two of three workers, router 2 does not answer."""
    parts = [SimpleNamespace(name=f"router{n}") for n in range(3)]
    site = SimpleNamespace(routers=parts, engines=range(3), worker_id=lambda index: f"worker{index}")
    listed = [[0, 1, 2], [0, 1], "router2 does not answer"]

    async def workers(truth, router):
        answer = listed[router]
        return answer if isinstance(answer, str) else [{"worker_id": f"worker{index}"} for index in answer]

    monkeypatch.setattr(Truth, "_workers", workers)
    assert await Truth(site).disturbed(victims) == found


async def test_a_silent_link_passes_nothing_until_it_is_healed(eventually):
    async def echo(reader, writer):
        with contextlib.suppress(OSError):
            while data := await reader.read(100):
                writer.write(data)
        writer.close()

    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    async with server, NatsLink(server.sockets[0].getsockname()[1]) as link:
        reader, writer = await asyncio.open_connection("127.0.0.1", link.port)
        link.silence()
        writer.write(b"PING\r\n")
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(reader.read(10), 0.1)
        await link.heal()
        assert await reader.read(10) == b""  # what was held back is not delivered late
        writer.close()
        reader, writer = await asyncio.open_connection("127.0.0.1", link.port)
        writer.write(b"PING\r\n")
        assert await reader.read(10) == b"PING\r\n"
        writer.close()
