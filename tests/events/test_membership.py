"""Registries: one suite over all of them; then what only a folder can suffer (the others have files of their own)."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from events.membership import Joined, Left, RegistryError, Role, card_folder
from events.membership.card_file import file_name
from events.membership.changes import changes
from events.membership.etcd.access import EtcdAccess
from events.membership.etcd.registry import EtcdRegistry
from events.membership.file import FileRegistry
from events.membership.kubernetes import KubernetesRegistry
from events.membership.memory import MemoryDirectory, MemoryRegistry
from tests.events.cards import card
from tests.events.fake_kubernetes import FakeKubernetes

ROOT = Path(__file__).parents[2]


@pytest.fixture(params=["memory", "file", "etcd", "kubernetes"])
def registry_kind(request):
    """The kind, and for etcd the server. (Not async, as the server is the session's.)"""
    return request.param, request.getfixturevalue("etcd_url") if request.param == "etcd" else None


@pytest.fixture
async def open_registry(registry_kind, tmp_path):
    """Makes registries that share what they hold; closes them at the end."""
    made = []
    directory = MemoryDirectory()
    kind, url = registry_kind
    kubernetes = FakeKubernetes()
    if kind == "kubernetes":
        await kubernetes.__aenter__()

    def make():
        match kind:
            case "kubernetes":
                made.append(
                    KubernetesRegistry(
                        "ns", poll_seconds=0.01, kubernetes_namespace="models", connect=kubernetes.connect
                    )
                )
            case "file":
                made.append(FileRegistry(tmp_path / "cards", "test", poll_seconds=0.01))
            case "etcd":
                made.append(EtcdRegistry(EtcdAccess(urls=(url,)), str(tmp_path)))
            case _:
                made.append(MemoryRegistry(directory))
        return made[-1]

    yield make
    for registry in made:
        await registry.close()
    if kind == "kubernetes":
        await kubernetes.__aexit__()


async def test_a_card_is_seen_by_others_as_it_was_registered(open_registry):
    full = card(
        ranks=2, block_size=128, page_size=16, max_running_requests=7, kv_events=False, tiers=("device", "host"),
        role=Role.PREFILL, bootstrap_host="10.0.0.1", bootstrap_port=8998, engine_version="0.5.3",
    )  # fmt: skip
    here, there = open_registry(), open_registry()
    assert await there.cards() == {}
    await here.register(full)
    assert await there.cards() == await here.cards() == {"w1": full}
    assert here.statistics().registered == 1


async def test_a_watch_begins_with_who_is_there_and_tells_every_change(open_registry, watch, eventually):
    workers, router = open_registry(), open_registry()
    await workers.register(card("w1"))
    seen = watch(router)
    await eventually(lambda: seen.changes == [Joined(card("w1"))])
    await workers.register(card("w2"))
    await eventually(lambda: seen.changes[1:] == [Joined(card("w2"))])
    await workers.unregister("w1")
    await eventually(lambda: seen.changes[2:] == [Left("w1")])
    await workers.register(card("w2", epoch=2))
    await eventually(lambda: seen.changes[3:] == [Joined(card("w2", epoch=2))])


@pytest.mark.parametrize("number", [0, 3])
async def test_a_watch_says_once_that_it_has_listed_all(open_registry, watch, eventually, number):
    workers = open_registry()
    for index in range(number):
        await workers.register(card(f"w{index}"))
    seen = watch(open_registry())
    await eventually(lambda: seen.listed == [number])
    await workers.register(card("late"))
    await eventually(lambda: "late" in seen.present)
    assert seen.listed == [number]


async def test_several_watches_see_the_same(open_registry, watch, eventually):
    workers = open_registry()
    watches = [watch(workers), watch(workers), watch(open_registry())]
    for number in range(5):
        await workers.register(card(f"w{number}"))
    await eventually(lambda: all(len(one.present) == 5 for one in watches))


async def test_close_withdraws_what_was_registered_there_and_nothing_else(open_registry):
    one, two = open_registry(), open_registry()
    await one.register(card("w1"))
    await two.register(card("w2"))
    await one.close()
    await one.close()
    assert list(await two.cards()) == ["w2"]
    with pytest.raises(RegistryError, match="closed"):
        await one.register(card("w1"))


async def test_a_watch_ends_when_its_registry_is_closed(open_registry, watch):
    registry = open_registry()
    seen = watch(registry)
    await registry.close()
    async with asyncio.timeout(10):
        await asyncio.wait({seen.task})
    assert seen.task.exception() is None


async def test_unregister_touches_only_what_is_ours(open_registry):
    one, two = open_registry(), open_registry()
    await one.register(card("w1"))
    await two.unregister("w1")
    await two.unregister("nobody")
    assert list(await two.cards()) == ["w1"]


async def test_a_later_start_takes_the_place_and_the_former_cannot_withdraw_it(open_registry):
    former, later = open_registry(), open_registry()
    await former.register(card("w1", epoch=1))
    await later.register(card("w1", epoch=2))
    await former.close()
    assert (await later.cards())["w1"].epoch == 2


@pytest.mark.parametrize(
    "worker_id", ["10.0.0.1:30000", "../../etc/passwd", "a/b", ".", "..", "wörker", "a b\n", "%2F"]
)
async def test_any_worker_id_will_do(open_registry, worker_id):
    one = open_registry()
    await one.register(card(worker_id))
    assert list(await open_registry().cards()) == [worker_id]
    await one.unregister(worker_id)
    assert await one.cards() == {}


async def test_a_crash_in_memory_is_a_card_taken_out(watch, eventually):
    directory = MemoryDirectory()
    registry = MemoryRegistry(directory)
    await registry.register(card("w1"))
    seen = watch(registry)
    await eventually(lambda: seen.present)
    directory.discard("w1")
    await eventually(lambda: seen.changes[-1] == Left("w1"))


CARDS = st.dictionaries(st.sampled_from("abc"), st.integers(1, 3)).map(
    lambda epochs: {worker_id: card(worker_id, epoch) for worker_id, epoch in epochs.items()}
)


@given(st.lists(CARDS, min_size=1, max_size=5))
def test_changes_lead_from_one_look_to_the_next(looks):
    present = {}
    for before, after in itertools.pairwise([{}, *looks]):
        for change in changes(before, after):
            match change:
                case Joined(joined):
                    assert present.get(joined.worker_id) != joined
                    present[joined.worker_id] = joined
                case Left(worker_id):
                    del present[worker_id]
        assert present == after


# Only in a folder


def write_raw(folder, name, content):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(content if isinstance(content, str) else json.dumps(content))


def wire(one, version=1):
    return {"version": version, "card": msgspec.to_builtins(one)}


def quick_registry(path, ttl_seconds=10.0):
    """Looks and beats far more often than its time to live asks for."""
    registry = FileRegistry(path, "ns", ttl_seconds, poll_seconds=0.01)
    registry._beat_seconds = 0.02
    return registry


@pytest.fixture
async def registry(tmp_path):
    registry = quick_registry(tmp_path)
    yield registry
    await registry.close()


@pytest.fixture
async def impatient(tmp_path):
    """A registry that sees cards expire soon."""
    registry = quick_registry(tmp_path, ttl_seconds=1.0)
    yield registry
    await registry.close()


@pytest.fixture
def clock(monkeypatch):
    """The clocks that cards expire by; advanced by hand."""
    clock = SimpleNamespace(now=1000.0, wall=0.0)
    clock.monotonic = lambda: clock.now
    clock.time = lambda: clock.wall
    monkeypatch.setattr(card_folder, "time", clock)
    return clock


async def test_namespaces_are_apart_and_never_leave_the_folder(tmp_path):
    odd = FileRegistry(tmp_path / "cards", "../..")
    await odd.register(card())
    assert await FileRegistry(tmp_path / "cards", "other").cards() == {}
    assert list(tmp_path.iterdir()) == [tmp_path / "cards"]
    await odd.close()


async def test_heartbeats_touch_the_card(registry, tmp_path, eventually):
    await registry.register(card())
    path = tmp_path / "ns" / "w1.json"
    os.utime(path, (1, 1))
    await eventually(lambda: path.stat().st_mtime > 1)
    # It is counted after the thread that touched the file.
    await eventually(lambda: registry.statistics().heartbeats >= 1)


async def test_a_card_lives_while_it_is_touched_and_expires_when_not(registry, tmp_path, clock):
    write_raw(tmp_path / "ns", "w1.json", wire(card("w1")))
    for beat in range(5):
        clock.now += 9.0
        os.utime(tmp_path / "ns" / "w1.json", (beat, beat))
        assert list(await registry.cards()) == ["w1"]
    clock.now += 9.0
    assert list(await registry.cards()) == ["w1"]
    clock.now += 1.1
    assert await registry.cards() == {}
    assert registry.statistics().expired == 1


async def test_a_jump_of_the_wall_clock_expires_nothing_known(registry, tmp_path, clock):
    write_raw(tmp_path / "ns", "w1.json", wire(card("w1")))
    assert list(await registry.cards()) == ["w1"]
    clock.wall = 1e10
    assert list(await registry.cards()) == ["w1"]


WORKER = """
import asyncio, sys
from events.membership import WorkerCard
from events.membership.etcd.access import EtcdAccess
from events.membership.etcd.registry import EtcdRegistry
from events.membership.file import FileRegistry
async def main():
    registry = FileRegistry(sys.argv[1], "ns", ttl_seconds=0.3)  # beats every 0.1 s
    await registry.register(WorkerCard(worker_id="w1", epoch=1, model="m", endpoint="e", capacity_tokens=1, context_tokens=1))
    await asyncio.sleep(3600)
asyncio.run(main())
"""


@pytest.fixture
def worker(tmp_path):
    """A process that keeps a card in the folder."""
    process = subprocess.Popen([sys.executable, "-c", WORKER, str(tmp_path)], cwd=ROOT)
    yield process
    process.kill()
    process.wait()


async def test_a_worker_that_is_killed_expires(impatient, worker, watch, eventually, tmp_path):
    seen = watch(impatient)
    await eventually(lambda: seen.present, 30)
    worker.kill()
    await eventually(lambda: seen.changes[-1] == Left("w1"))
    assert list((tmp_path / "ns").iterdir()) == []
    assert impatient.statistics().expired >= 1


async def test_a_worker_that_was_stopped_too_long_comes_back(impatient, worker, watch, eventually):
    seen = watch(impatient)
    await eventually(lambda: seen.present, 30)
    worker.send_signal(signal.SIGSTOP)
    await eventually(lambda: not seen.present)
    worker.send_signal(signal.SIGCONT)
    await eventually(lambda: seen.present)


async def test_a_dead_card_is_not_seen_at_the_first_look(registry, tmp_path):
    write_raw(tmp_path / "ns", "w1.json", wire(card("w1")))
    os.utime(tmp_path / "ns" / "w1.json", (1, 1))
    assert await registry.cards() == {}
    assert list((tmp_path / "ns").iterdir()) == []


async def test_a_card_that_was_taken_away_is_written_anew(registry, tmp_path, eventually):
    await registry.register(card())
    (tmp_path / "ns" / "w1.json").unlink()
    await eventually(lambda: registry.statistics().recreated == 1)
    assert list(await registry.cards()) == ["w1"]


async def test_a_folder_that_was_taken_away_is_made_again(registry, tmp_path, eventually):
    await registry.register(card())
    (tmp_path / "ns" / "w1.json").unlink()
    (tmp_path / "ns").rmdir()
    await eventually(lambda: registry.statistics().recreated == 1)
    assert list(await registry.cards()) == ["w1"]


@pytest.mark.parametrize("later_first", [False, True])
async def test_of_two_processes_for_one_worker_the_later_start_stays(tmp_path, eventually, later_first):
    former, later = quick_registry(tmp_path), quick_registry(tmp_path)
    both = [(former, card(epoch=1)), (later, card(epoch=2))]
    for registry, one in reversed(both) if later_first else both:
        await registry.register(one)
    await eventually(lambda: former.statistics().superseded == 1)
    assert former.statistics().registered == 0
    assert (await later.cards())["w1"].epoch == 2
    await former.close()
    await later.close()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", "truncated"),
        ("not json", "malformed"),
        (wire(card("w1"), version=2), "version 2 is unknown, want 1"),
        ({"version": 2, "other": "layout"}, "version 2 is unknown, want 1"),
        ({"version": 1}, "Expected `object`, got `null`"),
        ({"version": 1, "card": {"worker_id": "w1"}}, "missing required field `epoch`"),
        (
            {"version": 1, "card": msgspec.to_builtins(card("w1")) | {"ranks": "two"}},
            r"Expected `int`, got `str` - at `$.ranks`",
        ),
        (wire(card("w2")), "it is the card of 'w2'"),
        ('{"other": ' + "[" * 100_000, "recursion"),
    ],
)
async def test_an_unreadable_card_is_skipped_counted_and_said_once(registry, tmp_path, caplog, content, reason):
    await registry.register(card("good"))
    write_raw(tmp_path / "ns", "w1.json", content)
    for _ in range(3):
        assert list(await registry.cards()) == ["good"]
    assert registry.statistics().unreadable == 1
    assert caplog.text.count("w1.json is skipped") == 1
    assert reason in caplog.text


async def test_an_unreadable_card_that_becomes_readable_is_seen(registry, tmp_path):
    write_raw(tmp_path / "ns", "w1.json", "half a ca")
    assert await registry.cards() == {}
    write_raw(tmp_path / "ns", "w1.json", wire(card("w1")))
    assert list(await registry.cards()) == ["w1"]


async def test_unreadable_cards_and_what_crashed_writers_left_expire_too(registry, tmp_path, clock):
    folder = tmp_path / "ns"
    write_raw(folder, "w1.json", "garbage")
    write_raw(folder, "w2.json.77.tmp", "{")
    write_raw(folder, "README", "not ours")
    await registry.cards()
    assert len(list(folder.iterdir())) == 3
    clock.now += 11
    await registry.cards()
    assert [path.name for path in folder.iterdir()] == ["README"]


async def test_fields_of_a_newer_card_are_ignored(registry, tmp_path):
    newer = wire(card("w1"))
    newer["card"]["color"] = "blue"
    write_raw(tmp_path / "ns", "w1.json", newer)
    assert await registry.cards() == {"w1": card("w1")}


async def test_a_path_that_is_no_folder_is_said(tmp_path):
    (tmp_path / "file").touch()
    registry = FileRegistry(tmp_path / "file", "ns")
    for attempt in (registry.cards(), registry.register(card()), anext(registry.watch())):
        with pytest.raises(RegistryError, match=rf"registry {tmp_path}/file/ns: Not a directory"):
            await attempt
    assert registry.statistics().failures == 3
    assert registry.statistics().registered == 0
    await registry.close()


async def test_a_worker_id_too_long_for_a_file_is_said(registry, tmp_path):
    with pytest.raises(RegistryError, match="File name too long"):
        await registry.register(card("w" * 300))
    assert list((tmp_path / "ns").iterdir()) == []


async def test_a_failing_look_keeps_the_cards_and_is_said_once(registry, tmp_path, watch, eventually, caplog):
    worker = FileRegistry(tmp_path, "ns")
    await worker.register(card())
    seen = watch(registry)
    await eventually(lambda: seen.present)
    (tmp_path / "ns").rename(tmp_path / "away")
    (tmp_path / "ns").touch()
    await eventually(lambda: registry.statistics().failures >= 3)
    assert list(seen.present) == ["w1"]
    assert caplog.text.count("look failed") == 1
    (tmp_path / "ns").unlink()
    (tmp_path / "away").rename(tmp_path / "ns")
    await worker.register(card("w2"))
    await eventually(lambda: "w2" in seen.present)
    await worker.close()


async def test_a_failing_heartbeat_is_said_once_and_heals(registry, tmp_path, eventually, caplog):
    await registry.register(card())
    (tmp_path / "ns").rename(tmp_path / "away")
    (tmp_path / "ns").touch()
    await eventually(lambda: registry.statistics().failures >= 2)
    assert caplog.text.count("heartbeat failed") == 1
    (tmp_path / "ns").unlink()
    await eventually(lambda: registry.statistics().recreated == 1)
    assert list(await registry.cards()) == ["w1"]


async def test_only_what_changed_is_read(registry, tmp_path, monkeypatch):
    reads = []
    read = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda path: reads.append(path.name) or read(path))
    for number in range(5):
        write_raw(tmp_path / "ns", file_name(f"w{number}"), wire(card(f"w{number}")))
    for _ in range(3):
        assert len(await registry.cards()) == 5
    assert len(reads) == 5
