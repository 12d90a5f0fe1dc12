"""Requests to a live SGLang server: token ids in, times out."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, NamedTuple

import aiohttp
import msgspec

from events.command import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

TIMEOUT_SECONDS = 600.0


class Answer(NamedTuple):
    """One request's times."""

    prompt_tokens: int
    cached_tokens: int
    sent_at: float
    token_times: list[float]
    """When each token came, on the clock of `sent_at`."""

    @property
    def ttft_seconds(self) -> float:
        """From sending to the first token."""
        return self.token_times[0] - self.sent_at


class _Meta(msgspec.Struct):
    completion_tokens: int = 0
    cached_tokens: int = 0


class _Piece(msgspec.Struct):
    meta_info: _Meta = msgspec.field(default_factory=_Meta)
    error: Any = None


class Client:
    """A connection to one server's /generate."""

    def __init__(self, url: str, session: aiohttp.ClientSession) -> None:
        self._url = url
        self._session = session
        self._piece = msgspec.json.Decoder(_Piece)

    async def generate(self, prompt: Sequence[int], max_new_tokens: int) -> Answer:
        """Send a prompt and take all its tokens.

        :raises UsageError: the server cannot be reached, refuses, or ends early; the message says which.
        """
        sampling = {"max_new_tokens": max_new_tokens, "temperature": 0, "ignore_eos": True}
        body = msgspec.json.encode({"input_ids": list(prompt), "sampling_params": sampling, "stream": True})
        sent_at = time.monotonic()
        try:
            async with self._session.post(f"{self._url}/generate", data=body, headers=HEADERS) as reply:
                if reply.status != 200:
                    raise UsageError(f"{self._url} answered {reply.status}: {(await reply.text())[:200]}")
                times, cached = await self._read(reply)
        except (aiohttp.ClientError, TimeoutError) as error:
            raise UsageError(f"{self._url}: {error or type(error).__name__}") from error
        if len(times) != max_new_tokens:
            raise UsageError(f"{self._url} gave {len(times)} of {max_new_tokens} tokens for a prompt of {len(prompt)}")
        return Answer(len(prompt), cached, sent_at, times)

    async def _read(self, reply: aiohttp.ClientResponse) -> tuple[list[float], int]:
        times: list[float] = []
        cached = 0
        async for line in reply.content:
            if not line.startswith(b"data:") or b"[DONE]" in line:
                continue
            piece = self._piece.decode(line[5:])
            if piece.error is not None:
                raise UsageError(f"{self._url}: {piece.error}")
            now = time.monotonic()
            times += [now] * (piece.meta_info.completion_tokens - len(times))
            cached = piece.meta_info.cached_tokens
        return times, cached


HEADERS = {"Content-Type": "application/json"}


def session() -> aiohttp.ClientSession:
    """A session without limits of connections and with a generous time-out."""
    connector = aiohttp.TCPConnector(limit=0)
    return aiohttp.ClientSession(
        connector=connector, timeout=aiohttp.ClientTimeout(total=TIMEOUT_SECONDS), read_bufsize=2**22
    )
