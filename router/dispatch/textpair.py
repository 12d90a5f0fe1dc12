"""A body that was passed on to a pair: the same to a prefill and a decode worker, but for the fields by which they meet."""

from __future__ import annotations

import asyncio
import uuid
from typing import TYPE_CHECKING

from router.core import Path
from router.core.paths import prefill_id
from router.dispatch.answer import MAX_REPLY_BYTES, Answer, extended
from router.dispatch.errors import EngineError, EngineTimeout, EngineUnreachable, RendezvousFailed
from router.dispatch.pair import COUPLED, beside, meeting
from router.dispatch.textchunks import reply_usage, stream_error, stream_usage

if TYPE_CHECKING:
    from collections.abc import Callable

    from router.core import Pair
    from router.dispatch.engine import EngineClient
    from router.dispatch.errors import Blamed
    from router.dispatch.leg import Desk
    from router.dispatch.request import TextRequest
    from router.dispatch.rooms import Rooms
    from router.dispatch.textchunks import Usage


def heard(task: asyncio.Task[None]) -> None:
    """A task came to its end, and how does not matter any more."""
    if not task.cancelled():
        task.exception()


class PairAnswer(Answer):
    """The decode worker's answer; the prefill worker's goes unread, but for what it says of its cache."""

    def __init__(
        self,
        request: TextRequest,
        pair: Pair,
        desk: Desk,
        engine: EngineClient,
        failed: Callable[[Blamed, EngineError], object],
        rooms: Rooms,
    ) -> None:
        super().__init__(request, pair.decode, desk, engine, failed)
        self._pair = pair
        self._rooms = rooms
        self._rid = uuid.uuid4().hex
        self._prefill_id = prefill_id(request.request_id)
        self._prefill_booked = True
        self._prefill_error: EngineError | None = None
        self._prefill_task: asyncio.Task[None] | None = None
        self._prefill_url = ""
        self._fields: dict[str, object] = {}

    def blame(self, error: EngineError) -> Blamed:
        """See `PairedLegs.blame`."""
        silent = isinstance(error, EngineTimeout) and self._first is not None
        if silent or isinstance(error, RendezvousFailed):
            return self._pair.prefill.target, self.target
        return (self._pair.prefill.target,) if error is self._prefill_error else (self.target,)

    async def begin(self) -> None:
        """See `Answer.begin`; the prefill leg's failure is this one's until the decode leg has begun."""
        body = self._meet()
        self._prefill_task = asyncio.create_task(self._prefill(body))
        patience = self._engine.timeouts.transfer_seconds if self._request.streams else None
        await beside(super().begin(), self._prefill_task, patience)

    def close(self, error: EngineError | None = None) -> None:
        """Free both bookings; an engine that may still be at work is told. Idempotent."""
        booked, begun = self._booked, self._first is None
        super().close(None if error is self._prefill_error else error)
        if self._prefill_task is not None:
            self._prefill_task.cancel()
            self._prefill_task.add_done_callback(heard)
        if self._prefill_booked:
            self._prefill_booked = False
            failed = self._prefill_error is not None or not begun
            self._desk.scheduler.free(self._prefill_id, self._desk.clock(), failed=failed)
            self._abandon(self._prefill_url, error, self._prefill_error)
        if booked and not self._complete:
            self._abandon(self._url, error, None if error is self._prefill_error else error)

    def _given_up(self, error: EngineError | None) -> None:
        """See `_abandon`, which tells both engines."""

    def _abandon(self, url: str, error: EngineError | None, own: EngineError | None) -> None:
        if url and (own is None or isinstance(own, EngineTimeout)):
            base = url.removesuffix(self._request.path)
            self._desk.abandon(base, self._rid, "left" if error is None else COUPLED if own is None else own.kind)

    def _body(self) -> bytes:
        return extended(self._request.body, self._fields)

    def _meet(self) -> bytes:
        """The prefill leg's body."""
        try:
            prefill_fields, decode_fields = meeting(self._desk.endpoints, self._pair.prefill.target, self._rooms)
        except EngineUnreachable as error:
            self._prefill_error = error
            raise
        self._fields = decode_fields | self._rank_field(self.target) | {"rid": self._rid}
        own = prefill_fields | self._rank_field(self._pair.prefill.target)
        return extended(self._request.body, own | {"rid": self._rid})

    async def _prefill(self, body: bytes) -> None:
        try:
            await self._prefill_to_its_end(body)
        except EngineError as error:
            self._prefill_error = error
            raise

    async def _prefill_to_its_end(self, body: bytes) -> None:
        url, headers = self._address(self._pair.prefill.target)
        self._prefill_url = url
        response = await self._engine.post(url, body, headers, self._request.headers)
        try:
            content = await self._engine.read_all(url, response, MAX_REPLY_BYTES)
        finally:
            response.close()
        if error := stream_error(content):
            raise error
        self._prefill_done(reply_usage(content) or stream_usage(content))

    def _prefill_done(self, usage: Usage | None) -> None:
        if not self._prefill_booked:
            return
        self._prefill_booked = False
        now = self._desk.clock()
        self._prefilled(self._prefill_id, self._pair.prefill, usage, now)
        self._desk.scheduler.free(self._prefill_id, now, failed=False)

    def _begun(self, usage: Usage | None) -> None:
        self._first = None
        now = self._desk.clock()
        if self._request.streams:
            predicted_seconds = self._pair.prefill.predicted_ttft_seconds
            self._desk.paths.first_token(Path.PAIR, predicted_seconds, now - self._booked_at, now)
