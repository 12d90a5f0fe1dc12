"""The end of a task, however it takes its cancellation."""

from __future__ import annotations

import asyncio
from typing import Any

AGAIN_SECONDS = 1.0


async def cancelled(task: asyncio.Task[Any]) -> None:
    """Cancel a task until it is over; its result or error stays with it.

    A cancellation that comes in the moment in which what was waited for arrives can be lost (`asyncio.wait_for` before 3.12).
    """
    while not task.done():
        task.cancel()
        await asyncio.wait([task], timeout=AGAIN_SECONDS)
