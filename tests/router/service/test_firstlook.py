"""A router that has just started: what is waited for, and for how long."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from router.metrics import Metrics
from router.service.firstlook import FirstLook

if TYPE_CHECKING:
    import pytest


async def held(look: FirstLook) -> asyncio.Task[None]:
    """A request that waits."""
    request = asyncio.create_task(look.somebody())
    await asyncio.sleep(0)
    assert not request.done()
    return request


async def test_without_registries_nothing_is_waited_for() -> None:
    look = FirstLook([], 1000.0)
    async with asyncio.timeout(5):
        await look.listings(1000.0)
        await look.somebody()


async def test_the_listing_is_whole_when_every_registry_has_been_read() -> None:
    look = FirstLook(["one", "two"], 1000.0)
    listing = asyncio.create_task(look.listings(1000.0))
    look.read("one")
    look.read("one")
    await asyncio.sleep(0)
    assert look.unread == 1
    assert not listing.done()
    look.read("two")
    async with asyncio.timeout(5):
        await listing


async def test_a_request_waits_for_a_first_worker_and_is_counted() -> None:
    metrics = Metrics()
    look = FirstLook(["one"], 1000.0, metrics)
    look.read("one")
    request = await held(look)
    look.met()
    async with asyncio.timeout(5):
        await request
        await look.somebody()
    assert b"warmpath_held_requests_total 1.0" in metrics.exposition()


async def test_no_longer_than_its_time() -> None:
    look = FirstLook(["one"], 0.01)
    request = await held(look)
    look.read("one")
    async with asyncio.timeout(5):
        await request


async def test_who_is_there_at_once_is_not_waited_for(caplog: pytest.LogCaptureFixture) -> None:
    look = FirstLook(["one"], 1000.0)
    look.met()
    look.read("one")
    async with asyncio.timeout(5):
        await look.listings(1000.0)
        await look.somebody()
    assert caplog.text == ""


async def test_a_registry_that_cannot_be_read_is_said_and_holds_nobody_up_for_ever(
    caplog: pytest.LogCaptureFixture,
) -> None:
    look = FirstLook(["one", "two"], 1000.0)
    look.read("two")
    request = await held(look)
    async with asyncio.timeout(5):
        await look.listings(0.01)
        await request
    assert "1 registries could not be read" in caplog.text
    assert look.unread == 1
    look.read("one")  # later
    assert look.unread == 0
