"""The few HTTP routes of SGLang that the adapter asks. Never `/health`: it costs the engine a generation of about a second."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import aiohttp

if TYPE_CHECKING:
    from collections.abc import Sequence

TIMEOUT_SECONDS = 5.0
ANSWER_SECONDS = 120.0
"""For a token: the first one may wait for kernels to be compiled."""
NO_ROUTE = 404
NOT_READY = 503


class EngineGone(Exception):
    """The engine does not answer any more, or another one answers in its place."""


class EngineUnreachable(Exception):
    """A request got no usable answer; the text says why."""


class Engine:
    """One SGLang server's HTTP API."""

    def __init__(self, url: str, session: aiohttp.ClientSession) -> None:
        self.url = url
        self._session = session

    def __repr__(self) -> str:
        return f"<Engine {self.url}>"

    async def server_info(self) -> dict[str, Any]:
        """Arguments and sizes of the server.

        :raises EngineUnreachable: it does not answer, or not yet.
        """
        return await self._get_object(["/server_info", "/get_server_info"])

    async def loads(self, *, everything: bool = False) -> dict[str, Any]:
        """What the schedulers of all ranks report of themselves; `everything`: their queues to and from other workers, too.

        :raises EngineUnreachable: it does not answer, or has no such route.
        """
        return await self._get_object(["/v1/loads?include=all" if everything else "/v1/loads"])

    async def adapters(self) -> tuple[str, ...]:
        """Names of the LoRA adapters that it has loaded now: the models that have a parent.

        :raises EngineUnreachable: it does not answer.
        """
        listed = await self._get_object(["/v1/models"])
        return tuple(sorted(str(model["id"]) for model in listed.get("data") or () if model.get("parent")))

    async def tokenize(self, model: str, text: str) -> list[int]:
        """The server's tokens of a text, without special ones; none if it has no tokenizer, or no such route."""
        body = {"model": model, "prompt": text, "add_special_tokens": False}
        timeout = aiohttp.ClientTimeout(total=TIMEOUT_SECONDS)
        try:
            async with self._session.post(f"{self.url}/v1/tokenize", json=body, timeout=timeout) as response:
                said = await response.json(content_type=None) if response.status == 200 else {}
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError):
            return []
        tokens = said.get("tokens") if isinstance(said, dict) else None
        return tokens if isinstance(tokens, list) and all(isinstance(token, int) for token in tokens) else []

    async def check_alive(self) -> None:
        """Return if the server takes requests; versions that do not say so need only answer.

        :raises EngineUnreachable: it does not answer, still starts, or is about to stop.
        """
        status, _ = await self._get("/ready")
        if status == NOT_READY:
            raise EngineUnreachable(f"GET {self.url}/ready: status {status}: it takes no requests")

    async def answer(self, path: str, body: dict[str, Any]) -> None:
        """Have the server answer a small request.

        :raises EngineUnreachable: it does not, or not with status 200.
        """
        timeout = aiohttp.ClientTimeout(total=ANSWER_SECONDS)
        try:
            async with self._session.post(self.url + path, json=body, timeout=timeout) as response:
                said = await response.read()
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise EngineUnreachable(f"POST {self.url}{path}: {error or type(error).__name__}") from error
        if response.status != 200:
            raise EngineUnreachable(
                f"POST {self.url}{path}: status {response.status}: {said[:200].decode(errors='replace')}"
            )

    async def _get_object(self, paths: Sequence[str]) -> dict[str, Any]:
        """The JSON object under the first path that the server has: routes were renamed."""
        status, body = 0, b""
        for path in paths:
            status, body = await self._get(path)
            if status != 404:
                break
        if status != 200:
            raise EngineUnreachable(f"GET {self.url}{path}: status {status}")
        try:
            value = json.loads(body)
        except ValueError as error:
            raise EngineUnreachable(f"GET {self.url}{path}: no JSON: {error}") from error
        if not isinstance(value, dict):
            raise EngineUnreachable(f"GET {self.url}{path}: expected a JSON object")
        return value

    async def _get(self, path: str) -> tuple[int, bytes]:
        timeout = aiohttp.ClientTimeout(total=TIMEOUT_SECONDS)
        try:
            async with self._session.get(self.url + path, timeout=timeout) as response:
                return response.status, await response.read()
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise EngineUnreachable(f"GET {self.url}{path}: {error or type(error).__name__}") from error
