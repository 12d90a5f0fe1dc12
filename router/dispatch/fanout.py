"""One call to many engines at once, and what each of them said: for administration, not for requests."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any, NamedTuple

import aiohttp
import msgspec

if TYPE_CHECKING:
    from collections.abc import Mapping

CALL_SECONDS = 600.0
"""Loading weights takes its time."""
MAX_REPLY_BYTES = 16 * 1024**2


class Call(NamedTuple):
    """What every engine is asked."""

    method: str
    path: str
    """With its query."""
    body: bytes | None = None
    """JSON."""


class Outcome(NamedTuple):
    """What came of it at one worker."""

    worker_id: str
    ok: bool
    status: int | None = None
    """None: it was not asked, or did not answer."""
    reply: Any = None
    """JSON where it is, else text."""
    error: str | None = None
    seconds: float = 0.0


class Fanout:
    """Calls engines; one connection a call. `key` is what their `--admin-api-key` asks for."""

    def __init__(self, key: str | None = None, timeout_seconds: float = CALL_SECONDS) -> None:
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._timeout = aiohttp.ClientTimeout(total=timeout_seconds)

    def __repr__(self) -> str:
        return f"Fanout(timeout {self._timeout.total:g} s)"

    async def call(self, endpoints: Mapping[str, str], call: Call) -> list[Outcome]:
        """Ask all at once: base URLs by worker. Outcomes in the same order; no failure is raised."""
        async with aiohttp.ClientSession(timeout=self._timeout, headers=self._headers) as session:
            asked = (self._one(session, worker_id, url, call) for worker_id, url in endpoints.items())
            return list(await asyncio.gather(*asked))

    async def _one(self, session: aiohttp.ClientSession, worker_id: str, url: str, call: Call) -> Outcome:
        began = time.monotonic()
        headers = {"Content-Type": "application/json"} if call.body is not None else {}
        try:
            async with session.request(call.method, url + call.path, data=call.body, headers=headers) as response:
                content = _content(await response.content.read(MAX_REPLY_BYTES))
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            said = str(error) or type(error).__name__
            return Outcome(worker_id, ok=False, error=said, seconds=_since(began))
        failed = isinstance(content, dict) and content.get("success") is False  # SGLang says so under status 200, too
        ok = response.status == 200 and not failed
        return Outcome(worker_id, ok, response.status, content, None if ok else _reason(content), _since(began))


def _since(began: float) -> float:
    return round(time.monotonic() - began, 3)


def _content(body: bytes) -> Any:
    try:
        return msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return body.decode(errors="replace") or None


def _reason(content: Any) -> str:
    """An error's text, in whichever of SGLang's shapes."""
    if isinstance(content, dict):
        error = content.get("error", content)
        if isinstance(error, dict):
            error = error.get("error_message") or error.get("message") or error
        return str(error)[:2000]
    return str(content or "no reason given")[:2000]
