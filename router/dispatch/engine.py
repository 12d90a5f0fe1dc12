"""An SGLang engine over HTTP: `generate` streams tokens, `abort` ends a request early, `post` carries a body as it is.

Out of it come outputs and the families of `router.dispatch.errors`; the transport's own errors go no further.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from router.dispatch.chunks import END, ChunkReader, refused_or_failed
from router.dispatch.errors import EngineBusy, EngineError, EngineFailed, EngineTimeout, EngineUnreachable
from router.dispatch.http import ConnectFailed, ConnectionLost, HttpClient, HttpError, PoolFull, Response, TimedOut
from router.dispatch.http.client import JSON_HEADERS
from router.dispatch.sse import EventTooLong, SseDecoder

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping

    from router.dispatch.chunks import EngineOutput
    from router.dispatch.http import ClientStatistics

logger = logging.getLogger(__name__)

DRAIN_SECONDS = 1.0
"""How long the end of an answer may take to follow its last message, for its connection to be used again."""
MAX_ERROR_BYTES = 64 * 1024


class EngineTimeouts(NamedTuple):
    """How long an engine may be silent, seconds."""

    connect_seconds: float = 5.0
    first_token_seconds: float = 300.0
    """From sending the request; includes the engine's queue and its prefill."""
    idle_seconds: float = 60.0
    """Between tokens; a long prefill of others delays a decode."""
    transfer_seconds: float = 30.0
    """From the end of a prefill on one worker to the first token at another."""
    abort_seconds: float = 5.0
    health_seconds: float = 5.0


class EngineClient:
    """Speaks to any number of engines, each through a pool of connections; used inside a running event loop."""

    def __init__(self, timeouts: EngineTimeouts | None = None) -> None:
        self.timeouts = timeouts or EngineTimeouts()
        self._http = HttpClient(connect_seconds=self.timeouts.connect_seconds)

    def __repr__(self) -> str:
        return f"EngineClient({self._http!r}, {self.timeouts})"

    async def generate(self, endpoint: str, body: Mapping[str, object]) -> AsyncGenerator[EngineOutput]:
        """The engine's answer to `body` (SGLang's `/generate`, with `stream` true), as it comes; ends after a finish reason.

        What arrived at once is one output. Closing the generator closes the connection, unless the answer is as good as complete.

        :raises EngineUnreachable: no connection, or no answer on it.
        :raises EngineBusy: too many connections.
        :raises EngineRefused: the request itself is wrong.
        :raises EngineTimeout: no token in time.
        :raises EngineFailed: anything else.
        """
        loop = asyncio.get_running_loop()
        events, reader = SseDecoder(), ChunkReader()
        url = f"{endpoint}/generate"
        response = await self.post(url, msgspec.json.encode(body))
        response.deadline = loop.time() + self.timeouts.first_token_seconds
        finished = False
        try:
            while data := await self.read(url, response):
                payloads = _feed(events, data)
                output, error = reader.read_all([payload for payload in payloads if payload != END])
                if output is not None:
                    response.deadline = loop.time() + self.timeouts.idle_seconds
                    finished = output.finish_reason is not None
                    yield output
                if error is not None:
                    raise error
                if finished:
                    await _drain(response)
                    return
            raise EngineFailed(f"the stream ended after {reader.seen} tokens without a finish reason")
        finally:
            if finished:
                response.discard(DRAIN_SECONDS)
            else:
                response.close()

    async def post(
        self,
        url: str,
        body: bytes,
        headers: Mapping[str, str] = JSON_HEADERS,
        own_headers: Mapping[str, str] | None = None,
    ) -> Response:
        """Send a body, and wait for a reply of status 200, whose body is still to come; the first token's time holds for both.

        :raises EngineError: as `generate`.
        """
        loop = asyncio.get_running_loop()
        return await self._post(url, body, loop.time() + self.timeouts.first_token_seconds, headers, own_headers)

    async def read(self, url: str, response: Response) -> bytes:
        """What has arrived of a reply's body, at least one byte; empty at the end.

        :raises EngineTimeout: nothing, up to the response's deadline.
        :raises EngineFailed: the rest will not come.
        """
        try:
            return await response.read()
        except HttpError as error:
            raise _family(url, error, connected=True) from error

    async def read_all(self, url: str, response: Response, max_bytes: int) -> bytes:
        """A reply's whole body.

        :raises EngineTimeout: it is not there by the response's deadline.
        :raises EngineFailed: it will not come, or is larger than `max_bytes`.
        """
        try:
            return await response.read_all(max_bytes)
        except HttpError as error:
            raise _family(url, error, connected=True) from error

    async def abort(self, endpoint: str, rid: str) -> None:
        """Ask the engine to give up a request; unknown ids are ignored by it.

        :raises EngineError: it could not be asked.
        """
        deadline = asyncio.get_running_loop().time() + self.timeouts.abort_seconds
        response = await self._post(f"{endpoint}/abort_request", msgspec.json.encode({"rid": rid}), deadline)
        response.discard(DRAIN_SECONDS)

    async def is_healthy(self, endpoint: str) -> bool:
        """Whether the server answers `/health` in time; that costs it a token. Never raises."""
        deadline = asyncio.get_running_loop().time() + self.timeouts.health_seconds
        try:
            response = await self._http.get(f"{endpoint}/health", deadline)
        except HttpError as error:
            logger.debug("%s/health: %s", endpoint, error)
            return False
        response.discard(DRAIN_SECONDS)
        return response.status < 500

    def drop(self, endpoint: str) -> int:
        """Break all that goes on with a server, so that its requests go on elsewhere; how many those are. O(connections)."""
        return self._http.drop(endpoint)

    async def close(self) -> None:
        """Close all connections. Idempotent."""
        await self._http.close()

    def statistics(self) -> ClientStatistics:
        """Of the connections."""
        return self._http.statistics()

    async def _post(
        self,
        url: str,
        body: bytes,
        deadline: float,
        headers: Mapping[str, str] = JSON_HEADERS,
        own_headers: Mapping[str, str] | None = None,
    ) -> Response:
        try:
            response = await self._http.post(url, body, deadline, headers, own_headers)
            if response.status != 200:
                raise await _status_error(response)
        except HttpError as error:
            raise _family(url, error, connected=False) from error
        return response


async def _drain(response: Response) -> None:
    """Read to the end, which follows the last message at once."""
    response.deadline = asyncio.get_running_loop().time() + DRAIN_SECONDS
    with contextlib.suppress(HttpError):
        async for _ in response:
            pass


def _feed(events: SseDecoder, data: bytes) -> list[bytes]:
    try:
        return events.feed(data)
    except EventTooLong as error:
        raise EngineFailed(str(error)) from error


async def _status_error(response: Response) -> EngineError:
    """The error in a reply whose status is not 200; its message as far as it has the usual shape."""
    try:
        text = (await response.read_all(MAX_ERROR_BYTES)).decode(errors="replace")
    except TimedOut:
        raise
    except HttpError as error:
        text = str(error)
    finally:
        response.close()
    try:
        content = msgspec.json.decode(text)
    except msgspec.DecodeError:
        content = None
    if isinstance(content, dict):
        error_field = content.get("error", content)
        text = str(error_field.get("message", text) if isinstance(error_field, dict) else error_field)
    return refused_or_failed(response.status, text[:2000], EngineFailed)


def _family(url: str, error: HttpError, *, connected: bool) -> EngineError:
    """The family of a transport's error; `connected`: status and headers were there."""
    match error:
        case PoolFull():
            return EngineBusy(str(error))
        case ConnectFailed():
            return EngineUnreachable(f"{url}: no connection: {error}")
        case TimedOut():
            return EngineTimeout(f"{url}: {error}")
        case ConnectionLost() if not connected:
            return EngineUnreachable(f"{url}: {error}")
        case _:
            return EngineFailed(f"{url}: {error}")
