"""One attempt of a request at a pair: a prefill worker computes the prompt's KV, a decode worker takes it over and goes on.

Both legs are sent at once, under one room, and live and die together: whatever ends one ends the other, at once, and both bookings.
"""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import TYPE_CHECKING, Self, TypeVar

from router.core import Path
from router.core.paths import decode_request, prefill_request
from router.dispatch.errors import EngineError, EngineTimeout, EngineUnreachable, RendezvousFailed
from router.dispatch.leg import Leg
from router.dispatch.request import Output

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable
    from types import TracebackType

    from router.core import Pair, RoutingRequest, Target
    from router.dispatch.chunks import EngineOutput
    from router.dispatch.engine import EngineClient
    from router.dispatch.errors import Blamed
    from router.dispatch.journey import Journey
    from router.dispatch.leg import Desk, Endpoints
    from router.dispatch.rooms import Rooms

T = TypeVar("T")

SETTLE_SECONDS = 0.25
"""How long the end of an answer waits for its prefill leg's word on what was cached, should that be late."""
COUPLED = "coupled"
"""Why a leg is given up whose other one failed: the label in metrics."""


def meeting(endpoints: Endpoints, prefill: Target, rooms: Rooms) -> tuple[dict[str, object], dict[str, object]]:
    """The fields by which the prefill and the decode side of a request find each other.

    :raises EngineUnreachable: the prefill worker has left since the decision.
    """
    try:
        (host, port), ranks = endpoints.bootstrap(prefill), endpoints.ranks(prefill)
    except KeyError as error:
        raise EngineUnreachable(f"{prefill} has left") from error
    met = {"bootstrap_host": host, "bootstrap_port": port, "bootstrap_room": rooms.take(prefill.rank, ranks)}
    return met, met | ({"disagg_prefill_dp_rank": prefill.rank} if ranks > 1 else {})


async def given_up(task: asyncio.Task[None]) -> None:
    """Cancel a task that nobody waits for any more, if it is not done; what it came to does not matter."""
    task.cancel()
    await asyncio.wait({task})
    if not task.cancelled():
        task.exception()


async def beside(work: Awaitable[T], prefill: asyncio.Task[None], transfer_seconds: float | None) -> T:
    """The result of `work`, a decode leg's, unless its prefill leg fails before; then `work` is cancelled.

    :param transfer_seconds: how long it may take after the prefill leg is done; None: as long as it likes.
    :raises EngineError: the prefill leg's, or that of `work`.
    :raises EngineTimeout: it took longer.
    """
    task = asyncio.ensure_future(work)
    try:
        await asyncio.wait({task, prefill}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            prefill.result()
            await asyncio.wait({task}, timeout=transfer_seconds)
        if not task.done():
            raise EngineTimeout(f"nothing came {transfer_seconds:g} s after the prefill was done")
        return task.result()
    finally:
        if not task.done():
            task.cancel()
            await asyncio.wait({task})


class PrefillLeg(Leg):
    """The side that computes the prompt. Its one token is the decode side's to deliver."""

    def __init__(self, journey: Journey, routing: RoutingRequest, pair: Pair, desk: Desk) -> None:
        super().__init__(journey, prefill_request(routing), pair.prefill, desk)
        self.met: dict[str, object] = {}
        """Where the sides meet: fields of the body."""

    def open(self) -> tuple[str, dict[str, object]]:
        """See `Leg.open`."""
        url, body = super().open()
        return url, body | self.met

    def take(self, output: EngineOutput) -> Output:
        """Account for the prefill: its end is the end of the leg."""
        now = self._desk.clock()
        if not self.started:
            self.started = True
            self._prefilled(output, now)
        if output.finish_reason is not None and self._booked:
            self._booked = False
            self._desk.scheduler.free(self._routing.request_id, now, failed=False)
        return Output([], self.target, self._journey.cached_tokens or 0, output.finish_reason)

    def _sampling(self) -> dict[str, object]:
        sampling = super()._sampling() | {"max_new_tokens": 1}
        least = sampling.get("min_new_tokens")
        return sampling | {"min_new_tokens": min(least, 1)} if isinstance(least, int) else sampling


class DecodeLeg(Leg):
    """The side that delivers."""

    def __init__(self, journey: Journey, routing: RoutingRequest, pair: Pair, desk: Desk) -> None:
        super().__init__(journey, decode_request(routing), pair.decode, desk)
        self._predicted_seconds = pair.prefill.predicted_ttft_seconds
        self.met: dict[str, object] = {}
        """Where the sides meet: fields of the body."""

    def open(self) -> tuple[str, dict[str, object]]:
        """See `Leg.open`."""
        url, body = super().open()
        return url, body | self.met

    def _first(self, output: EngineOutput) -> None:
        self.started = True
        now = self._desk.clock()
        seconds = now - self._booked_at
        self._desk.paths.first_token(Path.PAIR, self._predicted_seconds, seconds, now)


class PairedLegs:
    """A context manager around one attempt at a pair; used as a `Leg` is.

    :param transfer_seconds: from the prefill leg's answer to the decode leg's first token.
    """

    def __init__(
        self, journey: Journey, routing: RoutingRequest, pair: Pair, desk: Desk, rooms: Rooms, transfer_seconds: float
    ) -> None:
        self.prefill = PrefillLeg(journey, routing, pair, desk)
        self.decode = DecodeLeg(journey, routing, pair, desk)
        self._desk = desk
        self._rooms = rooms
        self._transfer_seconds = transfer_seconds
        self._prefill_error: EngineError | None = None

    def __repr__(self) -> str:
        return f"PairedLegs({self.prefill!r}, {self.decode!r})"

    @property
    def target(self) -> Target:
        """Who delivers."""
        return self.decode.target

    def blame(self, error: EngineError) -> Blamed:
        """See `Leg.blame`: silence before the first token, and what the engines say of each other, is nobody's fault alone."""
        silent = isinstance(error, EngineTimeout) and not self.decode.started
        if silent or isinstance(error, RendezvousFailed):
            return self.prefill.target, self.decode.target
        return (self.prefill.target,) if error is self._prefill_error else (self.decode.target,)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Free both bookings if they still stand, and tell the engines that may still be at work."""
        reason = COUPLED if isinstance(error, EngineError) else "left"
        self.decode.end(None if error is self._prefill_error else error, reason=reason)
        self.prefill.end(self._prefill_error, reason=reason)
        if self._prefill_error is not None and error is not self._prefill_error:
            self._desk.metrics.engine_errors.labels(self._prefill_error.kind).inc()  # the KV was across: no harm done

    async def generate(self, engine: EngineClient) -> AsyncGenerator[EngineOutput]:
        """The decode leg's answer, to be taken by `take`.

        :raises EngineError: one of the legs failed; the other is given up.
        """
        self._meet()
        prefill = asyncio.create_task(self._prefill(engine))
        try:
            async with aclosing(self.decode.generate(engine)) as outputs:
                output = await beside(anext(outputs), prefill, self._transfer_seconds)
                while output.finish_reason is None:
                    yield output
                    output = await anext(outputs)
                await asyncio.wait({prefill}, timeout=SETTLE_SECONDS)
                yield output
        finally:
            await given_up(prefill)

    def take(self, output: EngineOutput) -> Output:
        """See `Leg.take`."""
        return self.decode.take(output)

    def _meet(self) -> None:
        try:
            self.prefill.met, self.decode.met = meeting(self._desk.endpoints, self.prefill.target, self._rooms)
        except EngineUnreachable as error:
            self._prefill_error = error
            raise

    async def _prefill(self, engine: EngineClient) -> None:
        try:
            async with aclosing(self.prefill.generate(engine)) as outputs:
                async for output in outputs:
                    self.prefill.take(output)
        except EngineError as error:
            self._prefill_error = error
            raise
