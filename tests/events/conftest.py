"""Real servers for the session, NATS and etcd; buses of both kinds; watches of registries."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
import pytest_asyncio

from events.bus.broker import EmbeddedBroker
from events.bus.memory import MemoryBroker, MemoryBus
from events.bus.nats import NatsBus
from launch.etcd import EtcdServer
from tests.events.cards import Watch

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from events.bus import Bus
    from events.membership import Registry


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def nats_url() -> AsyncIterator[str]:
    async with EmbeddedBroker() as broker:
        yield broker.url


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def etcd_url(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[str]:
    async with EtcdServer(tmp_path_factory.mktemp("etcd")) as server:
        yield server.url


@pytest_asyncio.fixture
async def watch() -> AsyncIterator[Callable[[Registry], Watch]]:
    """Starts watches; ends them."""
    watches: list[Watch] = []

    def start(registry: Registry) -> Watch:
        watches.append(Watch(registry))
        return watches[-1]

    yield start
    for one in watches:
        one.task.cancel()
        await asyncio.wait({one.task})


@pytest.fixture(params=["memory", "nats"])
def bus_url(request: pytest.FixtureRequest) -> str | None:
    """None: in memory. (Not async: a fixture of the session's event loop is only to be had outside a running one.)"""
    return request.getfixturevalue("nats_url") if request.param == "nats" else None


@pytest_asyncio.fixture
async def network(bus_url: str | None) -> AsyncIterator[Callable[..., Bus]]:
    """Makes buses that reach each other, not yet open; closes them at the end."""
    made: list[Bus] = []
    broker = MemoryBroker()

    def make(**options: object) -> Bus:
        bus = NatsBus(bus_url, **options) if bus_url else MemoryBus(broker, **options)
        made.append(bus)
        return bus

    yield make
    for bus in made:
        await bus.close()
