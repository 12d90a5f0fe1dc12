"""Clients: requests over shared prefixes, whose answers are known; what they lose is counted."""

from __future__ import annotations

import asyncio
import json
import random
from typing import TYPE_CHECKING, NamedTuple

import aiohttp

from launch.stack import MODEL_NAME

if TYPE_CHECKING:
    from tests.chaos.site import Site

FAMILIES = 8
SHARED_TOKENS = 320
OUTPUT_TOKENS = (4, 32, 250)
PATIENCE_SECONDS = 30.0
RETRY_SECONDS = 0.2


class Loss(NamedTuple):
    """A request without its answer."""

    at: str
    reason: str


class Question(NamedTuple):
    """What is asked, and how."""

    prompt: tuple[int, ...]
    output_tokens: int
    stream: bool

    def body(self) -> dict[str, object]:
        """As a completion."""
        return {
            "model": MODEL_NAME,
            "prompt": list(self.prompt),
            "max_tokens": self.output_tokens,
            "ignore_eos": True,
            "stream": self.stream,
        }


class Failed(Exception):
    """A router's answer is no answer."""


class Clients:
    """Sends requests to the routers in turn; one whose router cannot be reached goes to the next, as behind any load balancer."""

    def __init__(self, site: Site, generator: random.Random) -> None:
        self._site = site
        self._random = generator
        self._turn = 0
        self._answers: dict[tuple[tuple[int, ...], int], str] = {}
        self.sent = self.moved = 0
        """Requests; those that had to try another router."""
        self.losses: list[Loss] = []

    async def send(self, count: int, over_seconds: float) -> None:
        """So many requests, spread over that time; returns when all have their answer, or never will."""
        gaps = sorted(self._random.uniform(0, over_seconds) for _ in range(count))
        questions = [self._question() for _ in gaps]
        await asyncio.gather(*(self._later(gap, question) for gap, question in zip(gaps, questions, strict=True)))

    def _question(self) -> Question:
        """A family's shared tokens, and some of its own; now and then a prompt that was sent before."""
        output_tokens, stream = self._random.choice(OUTPUT_TOKENS), self._random.random() < 0.5
        if self._answers and self._random.random() < 0.3:
            prompt, output_tokens = self._random.choice(list(self._answers))
            return Question(prompt, output_tokens, stream)
        family = random.Random(self._random.randrange(FAMILIES))
        shared = [family.randrange(3, 2000) for _ in range(SHARED_TOKENS)]
        own = [self._random.randrange(3, 2000) for _ in range(self._random.randrange(1, 500))]
        return Question((*shared, *own), output_tokens, stream)

    async def _later(self, seconds: float, question: Question) -> None:
        await asyncio.sleep(seconds)
        self.sent += 1
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                text = await self._answer(question)
        except TimeoutError:
            self.losses.append(Loss("client", f"no answer in {PATIENCE_SECONDS:g} s"))
        except Failed as error:
            self.losses.append(Loss("router", str(error)))
        else:
            if self._answers.setdefault((question.prompt, question.output_tokens), text) != text:
                self.losses.append(Loss("client", "another answer than before"))

    async def _answer(self, question: Question) -> str:
        """The text, from the first router that can be reached.

        :raises Failed: it answers, and that is no answer.
        """
        while True:
            self._turn = (self._turn + 1) % len(self._site.routers)
            try:
                return await self._ask(self._site.router_url(self._turn), question)
            except aiohttp.ClientError:  # the router is not there (any more)
                self.moved += 1
                await asyncio.sleep(RETRY_SECONDS)

    async def _ask(self, url: str, question: Question) -> str:
        async with self._site.http.post(f"{url}/v1/completions", json=question.body()) as reply:
            if reply.status != 200:
                raise Failed(f"{url} answers {reply.status}: {await reply.text()}")
            if question.stream:
                return await _streamed(reply)
            return _text(await reply.json())


async def _streamed(reply: aiohttp.ClientResponse) -> str:
    """All pieces of a stream, which must end as it should."""
    pieces = []
    async for line in reply.content:
        if line.startswith(b"data: [DONE]"):
            return "".join(pieces)
        if line.startswith(b"data: "):
            pieces.append(_text(json.loads(line[6:])))
    raise aiohttp.ClientPayloadError("the stream ended early")


def _text(content: dict[str, object]) -> str:
    if "error" in content:
        raise Failed(f"the stream ends in {content['error']}")
    choices = content["choices"]
    assert isinstance(choices, list)
    return str(choices[0]["text"])
