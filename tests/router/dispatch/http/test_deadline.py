from __future__ import annotations

import asyncio

from router.dispatch.http.deadline import Deadline


async def expired(*moves: float | None) -> list[float]:
    """When it expires, after these moves (seconds from now; None: cleared), up to 0.1 s."""
    loop = asyncio.get_running_loop()
    start, times = loop.time(), list[float]()
    done = asyncio.Event()
    deadline = Deadline(loop, lambda: (times.append(loop.time() - start), done.set()))
    for move in moves:
        if move is None:
            deadline.clear()
        else:
            deadline.set(start + move)
    loop.call_later(0.1, done.set)
    await done.wait()
    deadline.cancel()
    return times


async def test_it_expires_once() -> None:
    assert len(await expired(0.01)) == 1


async def test_moved_later_it_expires_later() -> None:
    (when,) = await expired(0.01, 0.05)
    assert when >= 0.049


async def test_moved_earlier_it_does_not_wait_for_the_first() -> None:
    assert len(await expired(50, 0.01)) == 1


async def test_cleared_it_does_not_expire() -> None:
    assert await expired(0.01, None) == []


async def test_cleared_it_can_be_set_again() -> None:
    assert len(await expired(0.01, None, 0.02)) == 1
