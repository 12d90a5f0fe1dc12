"""A multi-turn load from the real OpenAI client: conversations that share a system prompt and grow turn by turn."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from typing import TYPE_CHECKING, NamedTuple

from openai import AsyncOpenAI

if TYPE_CHECKING:
    from openai.types.chat import ChatCompletionMessageParam

WORDS = """
cache prefix route worker token queue batch prefill decode latency prompt stream model index block event score target load page
memory host device chunk engine answer question weather river garden letter music window bridge
""".split()  # noqa: SIM905 - a list of words reads best as words


class Workload(NamedTuple):
    """What is sent. The prompts depend on nothing but `seed`."""

    conversations: int = 16
    turns: int = 6
    system_words: int = 400
    turn_words: int = 200
    answer_tokens: int = 32
    concurrency: int = 8
    seed: int = 7


class Turn(NamedTuple):
    """One answered request, as its client saw it."""

    worker: str
    prompt_tokens: int
    cached_tokens: int
    ttft_seconds: float


def words(count: int, generator: random.Random) -> str:
    """Text of `count` words."""
    return " ".join(generator.choices(WORDS, k=count))


async def converse(url: str, model: str, load: Workload) -> list[Turn]:
    """Run the workload; turns in the order in which they were answered.

    :raises openai.APIError: a request failed.
    """
    generator = random.Random(load.seed)
    system = words(load.system_words, generator)
    scripts = [[words(load.turn_words, generator) for _ in range(load.turns)] for _ in range(load.conversations)]
    turns: list[Turn] = []
    places = asyncio.Semaphore(load.concurrency)

    async def one(client: AsyncOpenAI, script: list[str]) -> None:
        messages: list[ChatCompletionMessageParam] = [{"role": "system", "content": system}]
        for question in script:
            messages.append({"role": "user", "content": question})
            async with places:
                turn, answer = await ask(client, model, messages, load.answer_tokens)
            turns.append(turn)
            messages.append({"role": "assistant", "content": answer})

    async with AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client, asyncio.TaskGroup() as group:
        for script in scripts:
            group.create_task(one(client, script))
    return turns


async def ask(
    client: AsyncOpenAI, model: str, messages: list[ChatCompletionMessageParam], answer_tokens: int
) -> tuple[Turn, str]:
    """One streamed request: what it cost, and the answer."""
    started = time.perf_counter()
    reply = await client.chat.completions.with_raw_response.create(
        model=model,
        messages=messages,
        max_tokens=answer_tokens,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
    )
    ttft_seconds, text, usage = None, [], None
    async for chunk in reply.parse():
        if chunk.choices and chunk.choices[0].delta.content:
            ttft_seconds = ttft_seconds or time.perf_counter() - started
            text.append(chunk.choices[0].delta.content)
        usage = chunk.usage or usage
    assert usage is not None, "stream_options.include_usage was asked for"
    cached = (usage.prompt_tokens_details and usage.prompt_tokens_details.cached_tokens) or 0
    worker = reply.headers.get("x-warmpath-worker", "?")
    seconds = ttft_seconds if ttft_seconds is not None else time.perf_counter() - started
    return Turn(worker, usage.prompt_tokens, cached, seconds), "".join(text)


class Summary(NamedTuple):
    """A run in figures."""

    requests: int
    cached_ratio: float
    """Cached prompt tokens / prompt tokens."""
    ttft_p50_seconds: float
    ttft_p99_seconds: float
    spread: float
    """Requests of the busiest worker / the mean of all workers: 1 is even."""
    workers: int


def summarise(turns: list[Turn], fleet_size: int) -> Summary:
    """Figures of a run over a fleet of `fleet_size` workers."""
    ttfts = sorted(turn.ttft_seconds for turn in turns)
    counts = Counter(turn.worker for turn in turns)
    return Summary(
        requests=len(turns),
        cached_ratio=sum(turn.cached_tokens for turn in turns) / sum(turn.prompt_tokens for turn in turns),
        ttft_p50_seconds=ttfts[len(ttfts) // 2],
        ttft_p99_seconds=ttfts[min(len(ttfts) - 1, int(0.99 * len(ttfts)))],
        spread=max(counts.values()) * fleet_size / len(turns),
        workers=len(counts),
    )
