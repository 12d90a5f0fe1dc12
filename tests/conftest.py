"""What tests of all parts share."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings

if TYPE_CHECKING:
    from collections.abc import Callable

DEADLINE_SECONDS = 10.0

# The same examples every time, and no verdict that depends on how busy the machine is.
settings.register_profile("steady", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("steady")


@pytest.fixture(scope="session")
def eventually():
    """Poll a condition until it holds; fail when it does not within the deadline."""

    async def wait(condition: Callable[[], object], deadline_seconds: float = DEADLINE_SECONDS) -> None:
        try:
            async with asyncio.timeout(deadline_seconds):
                while not condition():
                    await asyncio.sleep(0.005)
        except TimeoutError:
            pytest.fail(f"still not true after {deadline_seconds} s: {condition}")

    return wait
