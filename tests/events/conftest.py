"""A real NATS server for the session, and buses of both kinds."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import pytest_asyncio

from events.bus.broker import EmbeddedBroker
from events.bus.memory import MemoryBroker, MemoryBus
from events.bus.nats import NatsBus

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from events.bus import Bus


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def nats_url() -> AsyncIterator[str]:
    async with EmbeddedBroker() as broker:
        yield broker.url


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
