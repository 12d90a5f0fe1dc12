"""An engine's answer to a body that was passed on, as bytes."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import msgspec

from router.core import Path, Target
from router.dispatch.errors import EngineError, EngineTimeout, EngineUnreachable
from router.dispatch.http.client import JSON_HEADERS
from router.dispatch.textchunks import FirstContent, Usage, reply_usage, stream_error, stream_usage

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from router.core import Placement
    from router.dispatch.engine import EngineClient
    from router.dispatch.errors import Blamed
    from router.dispatch.http import Response
    from router.dispatch.leg import Desk
    from router.dispatch.request import TextRequest

RANK_HEADER = "X-Data-Parallel-Rank"
"""As SGLang reads it: the body stays as the client sent it."""
EVENT_END = b"\n\n"
MAX_REPLY_BYTES = 1024**3
USAGE_TAIL_BYTES = 8192


def extended(body: bytes, fields: Mapping[str, object]) -> bytes:
    """A JSON object with more fields at its end; what it had stays as it was, byte for byte. O(n).

    >>> extended(b'{"model": "m" }', {"rid": "r"})
    b'{"model": "m" ,"rid":"r"}'
    >>> extended(b"{}", {"rid": "r"})
    b'{"rid":"r"}'
    """
    head = body.rstrip()[:-1]
    comma = b"" if head.strip() == b"{" else b","
    return head + comma + msgspec.json.encode(fields)[1:]


class Answer:
    """An engine's answer, and the booking that lasts until it is closed. Iterating gives a stream's bytes as they come."""

    def __init__(
        self,
        request: TextRequest,
        placement: Placement,
        desk: Desk,
        engine: EngineClient,
        failed: Callable[[Blamed, EngineError], object],
    ) -> None:
        self.content_type = "application/json"
        self.body = b""
        """The whole of it, or of a stream what came first."""
        self.usage: Usage | None = None
        """As far as the engine has told, and only once the answer is complete."""
        self._request = request
        self._placement = placement
        self._desk = desk
        self._engine = engine
        self._failed = failed
        self._booked_at = desk.clock()
        self._response: Response | None = None
        self._url = ""
        self._first: FirstContent | None = FirstContent()
        self._tail = b""
        self._events = 0
        self._booked = True
        self._complete = False

    def __repr__(self) -> str:
        state = "booked" if self._booked else "freed"
        return f"{type(self).__name__}({self._request.request_id} at {self.target}, {state}, {self._response})"

    @property
    def target(self) -> Target:
        """Who answers."""
        return self._placement.target

    @property
    def streams(self) -> bool:
        """Whether more than `body` is to come."""
        return self.content_type.startswith("text/event-stream")

    def blame(self, error: EngineError) -> Blamed:
        """Whose fault a failure is: a target's, or that of a prefill and a decode target together."""
        return (self.target,)

    async def begin(self) -> None:
        """Send the request, and wait for the whole reply, or a stream's first bytes.

        :raises EngineError: neither came.
        """
        self._url, headers = self._address(self.target)
        self._response = response = await self._engine.post(self._url, self._body(), headers, self._request.headers)
        self.content_type = (response.header(b"content-type") or b"application/json").decode("latin-1")
        if self.streams:
            await self._begin_stream(response)
            return
        self.body = await self._engine.read_all(self._url, response, MAX_REPLY_BYTES)
        self.usage = reply_usage(self.body)
        self._begun(self.usage)
        self._complete = True
        self.close()

    def __aiter__(self) -> Answer:
        return self

    async def __anext__(self) -> bytes:
        """A stream's next bytes, after `body`: what has arrived.

        :raises EngineError: the rest will not come.
        """
        assert self._response is not None
        self._response.deadline = asyncio.get_running_loop().time() + self._engine.timeouts.idle_seconds
        try:
            data = await self._engine.read(self._url, self._response)
        except EngineError as error:
            self.close(error)
            self._failed(self.blame(error), error)
            raise
        if not data:
            self._complete = True
            self.usage = stream_usage(self._tail)
            raise StopAsyncIteration
        self._look(data)
        return data

    def close(self, error: EngineError | None = None) -> None:
        """Free the booking; if the answer is not complete, close its connection: its engine gives the request up. Idempotent."""
        if self._response is not None:
            self._response.close()
        if not self._booked:
            return
        self._booked = False
        # Left by the client: what was prefilled stays in the engine's cache. Nothing came yet: nobody knows, so do not believe it.
        failed = error is not None or self._first is not None
        self._desk.scheduler.free(self._request.request_id, self._desk.clock(), failed=failed)
        if not self._complete and (error is None or isinstance(error, EngineTimeout)):
            self._given_up(error)

    def _given_up(self, error: EngineError | None) -> None:
        """The connection was closed before the answer's end, which tells the engine."""
        self._desk.metrics.aborts.labels(error.kind if error is not None else "left").inc()

    def _body(self) -> bytes:
        """What is sent: as it came, but for the rank where its route reads it there."""
        rank = self._rank_field(self.target)
        return extended(self._request.body, rank) if rank else self._request.body

    def _rank_field(self, target: Target) -> dict[str, object]:
        """The rank as a field of the body, where the route reads it there; of two fields of one name, engines take the last."""
        if not self._request.names_rank:
            return {}
        try:
            return {"routed_dp_rank": target.rank} if self._desk.endpoints.ranks(target) > 1 else {}
        except KeyError:  # it has left; its address will say so
            return {}

    def _address(self, target: Target) -> tuple[str, dict[str, str]]:
        """The URL and the headers.

        :raises EngineUnreachable: the worker has left since the decision.
        """
        try:
            endpoint, ranks = self._desk.endpoints.endpoint(target), self._desk.endpoints.ranks(target)
        except KeyError as error:
            raise EngineUnreachable(f"{target} has left") from error
        headers = {**JSON_HEADERS, RANK_HEADER: str(target.rank)} if ranks > 1 else JSON_HEADERS
        return f"{endpoint}{self._request.path}", headers

    async def _begin_stream(self, response: Response) -> None:
        self.body = await self._engine.read(self._url, response)
        if error := stream_error(self.body):
            raise error
        self._look(self.body)

    def _look(self, data: bytes) -> None:
        """See what the scheduler should know of a part of a stream; it is not changed."""
        if self._first is not None:
            if self._first.feed(data):
                self._begun(self._first.usage)
        else:
            self._events += data.count(EVENT_END)  # a token each, as a rule
            self._desk.scheduler.progress(self._request.request_id, self._events)
        if self._request.reports_usage:
            self._tail = (self._tail + data)[-USAGE_TAIL_BYTES:]

    def _begun(self, usage: Usage | None) -> None:
        """The first token is there."""
        self._first = None
        now = self._desk.clock()
        self._prefilled(self._request.request_id, self._placement, usage, now)
        if self._request.streams:
            self._desk.paths.first_token(Path.WHOLE, self._placement.predicted_ttft_seconds, now - self._booked_at, now)

    def _prefilled(self, booking_id: str, placement: Placement, usage: Usage | None, now: float) -> None:
        """The prompt's KV is there, and some of it was before."""
        cached_tokens = usage.cached_tokens if usage is not None else None
        self._desk.scheduler.first_token(booking_id, cached_tokens, now)
        if cached_tokens is not None:
            self._desk.metrics.cached_tokens_error.observe(placement.cached_tokens - cached_tokens)
