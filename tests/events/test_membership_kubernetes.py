"""What only leases in Kubernetes can suffer, before a small API server of our own."""

from __future__ import annotations

import argparse
import asyncio

import pytest

from events.membership import Joined, Left, RegistryError, discovery
from events.membership.kubernetes import CARD, KubernetesRegistry
from tests.events.cards import card
from tests.events.fake_kubernetes import FakeKubernetes


@pytest.fixture
async def server():
    async with FakeKubernetes() as server:
        yield server


@pytest.fixture
async def open_registry(server):
    """Makes registries; closes them at the end."""
    made = []

    def make(ttl_seconds=30.0, namespace="ns"):
        made.append(
            KubernetesRegistry(namespace, ttl_seconds, 0.01, kubernetes_namespace="models", connect=server.connect)
        )
        return made[-1]

    yield make
    server.failing = False
    for registry in made:
        await registry.close()


def crash(registry):
    """Beat no more, and withdraw nothing."""
    registry._own.clear()


async def test_leases_lie_where_they_should_and_namespaces_are_apart(server, open_registry):
    await open_registry(namespace="one").register(card())
    assert await open_registry(namespace="two").cards() == {}
    ((place, name),) = server.leases
    assert place == "models"
    assert name.startswith("warmpath-")


async def test_a_worker_that_crashed_expires_and_its_lease_is_removed(server, open_registry, watch, eventually):
    worker, router = open_registry(), open_registry(ttl_seconds=0.5)
    await worker.register(card())
    seen = watch(router)
    await eventually(lambda: seen.present)
    crash(worker)
    await eventually(lambda: seen.changes[-1] == Left("w1"))
    assert server.leases == {}
    assert router.statistics().expired == 1


async def test_heartbeats_keep_a_card_alive(open_registry, watch, eventually):
    worker, router = open_registry(ttl_seconds=1.5), open_registry(ttl_seconds=1.5)
    await worker.register(card())
    seen = watch(router)
    await eventually(lambda: worker.statistics().heartbeats >= 4, 30)
    assert seen.changes == [Joined(card())]


async def test_a_card_that_was_taken_away_is_put_anew(server, open_registry, eventually):
    worker = open_registry(ttl_seconds=1.0)
    await worker.register(card())
    server.leases.clear()
    await eventually(lambda: worker.statistics().recreated == 1)
    assert list(await worker.cards()) == ["w1"]


async def test_an_outage_takes_nobody_away(server, open_registry, watch, eventually):
    worker, router = open_registry(ttl_seconds=2.0), open_registry(ttl_seconds=2.0)
    await worker.register(card())
    seen = watch(router)
    await eventually(lambda: seen.present)
    server.failing = True
    await asyncio.sleep(2.5)  # longer than anything lives
    assert router.statistics().failures
    server.failing = False
    beats = worker.statistics().heartbeats
    await eventually(lambda: worker.statistics().heartbeats > beats)
    await worker.register(card("w2"))
    await eventually(lambda: "w2" in seen.present)
    assert seen.changes == [Joined(card()), Joined(card("w2"))]


@pytest.mark.parametrize("later_first", [False, True])
async def test_of_two_processes_for_one_worker_the_later_start_stays(open_registry, eventually, later_first):
    former, later = open_registry(ttl_seconds=1.0), open_registry(ttl_seconds=1.0)
    both = [(former, card(epoch=1)), (later, card(epoch=2))]
    for registry, one in reversed(both) if later_first else both:
        await registry.register(one)
    await eventually(lambda: former.statistics().superseded == 1)
    await eventually(lambda: later.statistics().heartbeats > 1)
    assert (await later.cards())["w1"].epoch == 2


async def test_an_unreadable_card_is_skipped_counted_and_said_once(server, open_registry, caplog):
    registry = open_registry()
    await registry.register(card("w1"))
    await registry.register(card("w2"))
    lease = next(iter(server.leases.values()))
    lease["metadata"]["annotations"][CARD] = "not json"
    lease["metadata"]["resourceVersion"] = "other"
    for _ in range(3):
        assert list(await registry.cards()) == ["w2"]
    assert registry.statistics().unreadable == 1
    assert caplog.text.count("failed: JSON is malformed") == 1


async def test_no_api_server_is_said(server, open_registry):
    registry = open_registry()
    server.failing = True
    for attempt in (registry.cards(), registry.register(card()), anext(registry.watch())):
        with pytest.raises(RegistryError, match="503"):
            await attempt
    assert registry.statistics().registered == 0


def test_the_option_opens_one():
    parser = argparse.ArgumentParser()
    parser.add_argument("--namespace", default="ns")
    discovery.add_options(parser, memory="nowhere")
    options = parser.parse_args(["--discovery", "kubernetes", "--kubernetes-namespace", "models"])
    assert repr(discovery.open_registry(options)) == "<KubernetesRegistry models/ns, 0 own cards>"
