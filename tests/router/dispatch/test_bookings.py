"""Load truth: whatever happens to requests, workers and the router's own code, no booking is left when all is over.

Every request draws how each engine that gets it behaves, and how its client does; meanwhile workers leave and come back.
"""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router.core import NoTarget, Part, Target
from router.dispatch.engine import EngineTimeouts
from router.dispatch.errors import EngineError
from router.dispatch.relay import Relay
from router.dispatch.request import TextRequest, TokenRequest
from tests.router.dispatch.fleet import MODEL, stack
from tests.router.dispatch.upstream import Upstream

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from aiohttp import web

    from tests.router.dispatch.fleet import Stack

FAULTS = [
    "status_500",
    "refuse",
    "refuse_in_stream",
    "refuse_by_abort",
    "cut",
    "hang",
    "hang_before_token",
    "malformed",
]
FAULTS += ["hang_mid", "cut_mid", "end_mid", "abort_mid", "malformed_mid", "unmet"]
HASTE = EngineTimeouts(first_token_seconds=0.15, idle_seconds=0.15, transfer_seconds=0.1, abort_seconds=1.0)
ATTEMPTS = 4


class Broken(Exception):
    """The router's own code failed."""


class Moody(Upstream):
    """Behaves as the request says, another way each time that it is tried."""

    async def generate(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        attempt = int(body["rid"].rsplit("-", 1)[1])
        self.mode = body["sampling_params"]["moods"][min(attempt, ATTEMPTS - 1)]
        return await super().generate(request)


@dataclass
class Story:
    """One request: what engines do, when its client leaves (after so many outputs; None: it stays), where our own code fails."""

    moods: list[str]
    leaves_after: int | None
    breaks_in: str | None
    worker_leaves: bool


STORIES = st.lists(
    st.builds(
        Story,
        moods=st.lists(st.sampled_from([*FAULTS, "cumulative", "incremental"]), min_size=ATTEMPTS, max_size=ATTEMPTS),
        leaves_after=st.none() | st.integers(0, 3),
        breaks_in=st.none() | st.sampled_from(["progress", "first_token"]),
        worker_leaves=st.booleans(),
    ),
    min_size=1,
    max_size=6,
)


def broken_for(built: Stack, stories: list[Story]) -> None:
    """Have the scheduler fail in the stories that say so."""
    names = {str(number): story.breaks_in for number, story in enumerate(stories)}
    for method in ("progress", "first_token"):
        real = getattr(built.scheduler, method)

        def broken(request_id: str, *arguments: Any, method: str = method, real: Any = real) -> None:
            if names.get(request_id.partition("/")[0]) == method:
                raise Broken(method)
            real(request_id, *arguments)

        setattr(built.scheduler, method, broken)


async def outputs_of(built: Stack, name: str, story: Story) -> AsyncIterator[object]:
    prompt = np.arange(100 + int(name), 140 + int(name), dtype=np.uint32)
    sampling = {"moods": story.moods}
    request = TokenRequest(name, MODEL, prompt, max_new_tokens=8, sampling=sampling)
    async with aclosing(built.dispatcher.run(request)) as outputs:
        async for output in outputs:
            yield output


async def live(built: Stack, name: str, story: Story) -> None:
    """A client's life with one request."""
    seen = 0
    try:
        async with aclosing(outputs_of(built, name, story)) as outputs:  # type: ignore[type-var]
            if story.leaves_after == 0:
                async with asyncio.timeout(0.02):
                    await anext(outputs)
            async for _ in outputs:
                seen += 1
                if seen == story.leaves_after:
                    return
    except (EngineError, NoTarget, Broken, TimeoutError, StopAsyncIteration):
        pass


async def leave_and_return(built: Stack, target: Target, part: Part) -> None:
    """A worker goes while requests are there, and a new one comes to its place."""
    await asyncio.sleep(0.01)
    url = built.fleet.urls.pop(target.worker_id, None)
    built.scheduler.remove_target(target)
    await asyncio.sleep(0.01)
    if url is not None:
        built.fleet.urls[target.worker_id] = url
        built.scheduler.add_target(target, capacity_tokens=10_000, model=MODEL, part=part)


def check_nothing_is_booked(built: Stack) -> None:
    assert built.scheduler.statistics().requests == 0
    built.scheduler._check()
    for state in built.scheduler.targets():
        assert (state.requests, state.prefill_tokens, state.decode_blocks, state.context_tokens) == ([], 0, 0, 0)


@pytest.mark.parametrize(
    "parts", [(Part.WHOLE, Part.WHOLE), (Part.PREFILL, Part.PREFILL, Part.DECODE)], ids=["whole", "pairs"]
)
@settings(max_examples=25)
@given(stories=STORIES)
async def test_no_booking_outlives_its_request(parts: tuple[Part, ...], stories: list[Story]) -> None:
    upstreams = [Moody() for _ in parts]
    built: Stack | None = None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tests.router.dispatch.fleet.Stack.check_all_freed", check_nothing_is_booked)
        async with stack(*upstreams, parts=parts, timeouts=HASTE) as built:
            broken_for(built, stories)
            lives = [live(built, str(number), story) for number, story in enumerate(stories)]
            if any(story.worker_leaves for story in stories):
                lives.append(leave_and_return(built, Target("w0"), parts[0]))
            await asyncio.gather(*lives)
            check_nothing_is_booked(built)


class MoodyText(Upstream):
    """OpenAI's route, as the body's `moods` say."""

    async def generate(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.mode = body["moods"][min(len(self.bodies), ATTEMPTS - 1)]
        body |= {"rid": "r-0", "input_ids": [1, 2, 3], "sampling_params": {"max_new_tokens": 4}}
        self.bodies.append(body)
        mode = getattr(self, f"_mode_{self.mode}")
        answer: web.StreamResponse = await mode(request, body)
        return answer


async def live_as_text(built: Stack, relay: Relay, name: str, story: Story) -> None:
    body = repr({"moods": story.moods}).replace("'", '"').encode()
    prompt = (np.arange(1, 3, dtype=np.uint64), 40)
    request = TextRequest(name, "/generate", body, model=MODEL, prompt=prompt)
    seen = 0
    try:
        async with asyncio.timeout(0.02 if story.leaves_after == 0 else None):
            answer = await relay.open(request)
        try:
            if answer.streams:
                async for _ in answer:
                    seen += 1
                    if seen == story.leaves_after:
                        break
        finally:
            answer.close()
    except (EngineError, NoTarget, Broken, TimeoutError):
        pass


@settings(max_examples=15)
@given(stories=STORIES)
async def test_no_booking_outlives_an_answer_that_is_passed_on(stories: list[Story]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tests.router.dispatch.fleet.Stack.check_all_freed", check_nothing_is_booked)
        async with stack(MoodyText(), MoodyText(), timeouts=HASTE) as built:
            relay = Relay(built.scheduler, built.engine, built.fleet, built.metrics, block_size=16, paths=built.paths)
            broken_for(built, stories)
            await asyncio.gather(*(live_as_text(built, relay, str(n), story) for n, story in enumerate(stories)))
            check_nothing_is_booked(built)
            await relay.close()
