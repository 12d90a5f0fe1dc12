"""What only an etcd cluster can suffer: it dies, stands still, loses its data, forgets history, is cut off."""

from __future__ import annotations

import argparse
import asyncio
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from aetcd import rpc

from events.membership import Joined, Left, RegistryError, discovery
from events.membership.etcd.access import EtcdAccess
from events.membership.etcd.registry import EtcdRegistry
from events.membership.etcd.session import Compacted, Session
from launch.etcd import EtcdServer
from launch.link import Link
from tests.events.cards import card

ROOT = Path(__file__).parents[2]
TTL_SECONDS = 3.0
SHORT_TTL_SECONDS = 1.0  # the least that the test server takes; where a lease is to end


@pytest.fixture
async def server(tmp_path):
    """An etcd of this test's own, to be maltreated."""
    async with EtcdServer(tmp_path / "etcd") as server:
        yield server
        server.send(signal.SIGCONT)


@pytest.fixture
async def open_registry():
    """Makes registries; closes them at the end."""
    made = []

    def make(url, ttl_seconds=TTL_SECONDS, **access):
        made.append(EtcdRegistry(EtcdAccess(urls=(url,), **access), "ns", ttl_seconds))
        return made[-1]

    yield make
    for registry in made:
        await registry.close()


@pytest.fixture
async def session(server):
    session = Session(EtcdAccess(urls=(server.url,)), 2.0)
    yield session
    await session.close()


async def test_etcd_killed_and_restarted_loses_nobody(server, open_registry, watch, eventually):
    worker, router = open_registry(server.url), open_registry(server.url)
    await worker.register(card("w1"))
    seen = watch(router)
    await eventually(lambda: seen.present)
    await server.kill()
    await eventually(lambda: router.statistics().failures and worker.statistics().failures)
    await server.start()
    await worker.register(card("w2"))
    await eventually(lambda: "w2" in seen.present)
    assert [type(change) for change in seen.changes] == [Joined, Joined]


async def test_etcd_that_lost_its_data_gets_the_cards_again_and_routers_notice_nothing(
    server, open_registry, watch, eventually
):
    worker, router = open_registry(server.url), open_registry(server.url)
    await worker.register(card("w1"))
    seen = watch(router)
    await eventually(lambda: seen.present)
    await server.kill()
    server.lose_data()
    await server.start()
    await eventually(lambda: worker.statistics().recreated == 1)
    await worker.register(card("w2"))
    await eventually(lambda: "w2" in seen.present)
    assert seen.changes == [Joined(card("w1")), Joined(card("w2"))]


async def test_who_did_not_come_back_with_etcd_has_left(server, open_registry, watch, eventually):
    worker, router = open_registry(server.url, 2.0), open_registry(server.url, SHORT_TTL_SECONDS)
    await worker.register(card("w1"))
    seen = watch(router)
    await eventually(lambda: seen.present)
    await server.kill()
    with pytest.raises(RegistryError, match="etcd 127"):
        await worker.unregister("w1")
    await worker.close()
    server.lose_data()
    await server.start()
    await eventually(lambda: seen.changes == [Joined(card("w1")), Left("w1")])


async def test_etcd_stopped_for_longer_than_its_leases(server, open_registry, watch, eventually):
    worker, router = open_registry(server.url, 2.0), open_registry(server.url, 2.0)
    await worker.register(card("w1"))
    seen = watch(router)
    await eventually(lambda: seen.present)
    server.send(signal.SIGSTOP)
    await asyncio.sleep(3.0)  # the one thing waited for here is that time passes
    server.send(signal.SIGCONT)
    await worker.register(card("w2"))
    await eventually(lambda: "w2" in seen.present)
    beats = worker.statistics().heartbeats
    await eventually(lambda: worker.statistics().heartbeats >= beats + 4)
    assert seen.present.keys() == {"w1", "w2"}
    assert (await router.cards()).keys() == {"w1", "w2"}


async def test_a_cut_network_and_a_silent_one(server, open_registry, watch, eventually):
    async with Link(server.port) as link:
        far = f"http://127.0.0.1:{link.port}"
        worker, router, elsewhere = open_registry(far), open_registry(far), open_registry(server.url)
        await worker.register(card("w1"))
        seen = watch(router)
        await eventually(lambda: seen.present)
        for number, breaking in enumerate((link.cut, link.silence), start=2):
            broken = breaking()
            if broken is not None:
                await broken
            failures = router.statistics().failures
            await elsewhere.register(card(f"w{number}"))
            await eventually(lambda: router.statistics().failures > failures)  # noqa: B023
            await link.heal()
            await eventually(lambda: f"w{number}" in seen.present)  # noqa: B023
        await eventually(lambda: seen.present.keys() == {"w1", "w2", "w3"})
        await router.close()


WORKER = """
import asyncio, sys
from events.membership import WorkerCard
from events.membership.etcd.access import EtcdAccess
from events.membership.etcd.registry import EtcdRegistry
async def main():
    registry = EtcdRegistry(EtcdAccess(urls=(sys.argv[1],)), "ns", ttl_seconds=1.0)
    await registry.register(WorkerCard(worker_id="w1", epoch=1, model="m", endpoint="e", capacity_tokens=1, context_tokens=1))
    await asyncio.sleep(3600)
asyncio.run(main())
"""


async def test_a_worker_stopped_too_long_comes_back_and_one_killed_does_not(server, open_registry, watch, eventually):
    process = subprocess.Popen([sys.executable, "-c", WORKER, server.url], cwd=ROOT)
    try:
        seen = watch(open_registry(server.url, SHORT_TTL_SECONDS))
        await eventually(lambda: seen.present, 30)
        process.send_signal(signal.SIGSTOP)
        await eventually(lambda: not seen.present)
        process.send_signal(signal.SIGCONT)
        await eventually(lambda: seen.present)
    finally:
        process.kill()
        process.wait()
    await eventually(lambda: seen.changes[-1] == Left("w1"))


async def compact(session):
    """Forget the history up to now."""
    revision = (await session.listing(b"/")).revision
    await session._call(lambda: session._unary(rpc.KVStub, "Compact", rpc.CompactionRequest(revision=revision)))


async def test_a_watch_over_forgotten_history_says_so(server, session, open_registry):
    worker = open_registry(server.url)
    for epoch in range(3):
        await worker.register(card("w1", epoch))
    await compact(session)
    with pytest.raises(Compacted, match="is gone"):
        async for _ in session.watch(b"/warmpath/", 1):
            pass


async def test_a_watch_that_missed_forgotten_history_lists_again(
    server, session, open_registry, watch, eventually, monkeypatch
):
    worker, router = open_registry(server.url), open_registry(server.url)
    await worker.register(card("w1"))
    await worker.register(card("w2"))
    follow = Session.watch
    monkeypatch.setattr(Session, "watch", lambda self, prefix, _: follow(self, prefix, 1))  # as if it had slept since
    await compact(session)
    seen = watch(router)
    await eventually(lambda: seen.present.keys() == {"w1", "w2"})
    monkeypatch.setattr(Session, "watch", follow)
    await worker.register(card("w3"))
    await eventually(lambda: "w3" in seen.present)
    assert router.statistics().failures == 0  # nothing was wrong with etcd


@pytest.mark.parametrize("later_first", [False, True])
async def test_of_two_processes_for_one_worker_the_later_start_stays(server, open_registry, eventually, later_first):
    former, later = open_registry(server.url), open_registry(server.url)
    both = [(former, card(epoch=1)), (later, card(epoch=2))]
    for registry, one in reversed(both) if later_first else both:
        await registry.register(one)
    await eventually(lambda: former.statistics().superseded == 1)
    assert former.statistics().registered == 0
    assert (await later.cards())["w1"].epoch == 2


async def test_an_unreadable_card_is_skipped_counted_and_said_once(
    server, session, open_registry, watch, eventually, caplog
):
    router = open_registry(server.url)
    seen = watch(router)
    lease = await session.grant(60)
    for content in (b"not json", b"{}", b'{"version": 7}'):
        await session.put(b"/warmpath/ns/workers/w1", content, lease)
    await open_registry(server.url).register(card("w2"))
    await eventually(lambda: seen.present)
    assert list(seen.present) == list(await router.cards()) == ["w2"]
    assert caplog.text.count("w1 is skipped") == 1
    assert router.statistics().unreadable >= 2


async def test_no_etcd_at_the_start_is_said(open_registry):
    registry = open_registry("http://127.0.0.1:1")
    for attempt in (registry.cards(), registry.register(card()), anext(registry.watch())):
        with pytest.raises(RegistryError, match=r"registry http://127.0.0.1:1: etcd 127.0.0.1:1: .*[Cc]onnect"):
            await attempt
    assert registry.statistics().registered == 0


async def test_the_next_member_is_asked_when_one_fails(server):
    registry = EtcdRegistry(EtcdAccess(urls=("http://127.0.0.1:1", server.url)), "ns", TTL_SECONDS)
    with pytest.raises(RegistryError):
        await registry.cards()
    assert await registry.cards() == {}
    await registry.close()


async def test_a_user_with_a_password_over_tls(tmp_path, open_registry, eventually):
    async with EtcdServer(tmp_path / "etcd", ["--auto-tls"], scheme="https") as server:
        ca_file = tmp_path / "etcd" / "data" / "fixtures" / "client" / "cert.pem"
        nobody = Session(EtcdAccess(urls=(server.url,), ca_file=ca_file), 2.0)
        for method, request in (
            ("UserAdd", rpc.AuthUserAddRequest(name="root", password="pass")),
            ("UserGrantRole", rpc.AuthUserGrantRoleRequest(user="root", role="root")),
            ("AuthEnable", rpc.AuthEnableRequest()),
        ):
            await nobody._call(lambda method=method, request=request: nobody._unary(rpc.AuthStub, method, request))
        await nobody.close()
        worker = open_registry(server.url, user="root", password="pass", ca_file=ca_file)
        await worker.register(card("w1"))
        assert list(await worker.cards()) == ["w1"]
        beats = worker.statistics().heartbeats
        await eventually(lambda: worker.statistics().heartbeats > beats)
        with pytest.raises(RegistryError, match="authentication failed"):
            await open_registry(server.url, user="root", password="wrong", ca_file=ca_file).cards()
        with pytest.raises(RegistryError, match=r"user name is empty|permission denied"):
            await open_registry(server.url, ca_file=ca_file).cards()


def options(*arguments):
    parser = argparse.ArgumentParser()
    parser.add_argument("--namespace", default="ns")
    discovery.add_options(parser, memory="nowhere")
    return parser.parse_args(["--discovery", "etcd", *arguments])


def test_options_make_an_access(tmp_path):
    password = tmp_path / "password"
    password.write_text("secret\n")
    access = discovery.etcd_access(
        options("--etcd", "https://a:1,https://b:2/", "--etcd-user", "u", "--etcd-password-file", str(password))
    )
    assert access == EtcdAccess(urls=("https://a:1", "https://b:2"), user="u", password="secret")
    assert "secret" not in repr(access)
    assert access.members == ["a:1", "b:2"]


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--etcd", "10.0.0.1:2379"], "'10.0.0.1:2379' is not http"),
        (["--etcd", "http://a:1,https://b:2"], "cannot be mixed"),
        (["--etcd", "http://a"], "'http://a' is not http"),
        (["--etcd-user", "u"], "a user needs a password"),
        (["--etcd-ca", "/nowhere/ca.pem"], "there is no file /nowhere/ca.pem"),
        (["--etcd-ca", __file__], "is not https"),
        (["--etcd", "https://a:1", "--etcd-cert", __file__], "a certificate needs its key"),
    ],
)
def test_options_that_cannot_work_are_named(arguments, reason):
    with pytest.raises(RegistryError, match=reason):
        discovery.open_registry(options(*arguments))
