"""Several routers over the same workers: each tells the others what it has booked where, and counts what they have.

    own scheduler → observer → `RouterChanges`, a few milliseconds' worth at a time → bus → the others' schedulers

Messages may be lost; what heals is the *statement*: every router names all its requests in flight every second, and whoever
hears it drops what is not in it and adds what is. A router that says nothing for longer is gone, and its bookings with it.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import uuid
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from events import messages, subjects
from events.blocks import NO_HASHES
from events.messages import (
    RequestBooked,
    RequestFreed,
    RequestPrefilled,
    RouterChanges,
    RouterStatement,
    pack_hashes,
    unpack_hashes,
)
from router.core import RoutingRequest, Target

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from events.bus import Bus, Received, Subscription
    from events.messages import RequestChange
    from router.core import Scheduler
    from router.core.load import Booking
    from router.core.states import Elsewhere

logger = logging.getLogger(__name__)

BATCH_SECONDS = 0.002
"""Changes wait so long for company. Two routers are blind to each other for this long and a network's way."""
LAG_SECONDS = BATCH_SECONDS + 0.001
"""From a booking until the others know of it, about."""
STATEMENT_SECONDS = 1.0
EXPIRY_SECONDS = 3.5
"""Three statements lost, and a little more."""
ANSWER_SECONDS = 0.1
"""How soon a router that is new to us hears our statement."""
MESSAGE_BYTES = 256 * 1024
_BOOKING_BYTES = 100  # of a booking but for its hashes, about
STATEMENT_REQUESTS = MESSAGE_BYTES // _BOOKING_BYTES


class ReplicaStatistics(NamedTuple):
    """What this router knows of the others."""

    router_id: str
    others: int
    """Routers heard of within the last seconds."""
    bookings: int
    """Requests they have in flight, as far as known."""
    unheard: float
    """Bookings of theirs that cross one of ours, on average of the last ones."""
    sent: int
    """Messages; so the next."""
    received: int
    misfits: int
    """Messages, or their hashes, that could not be used."""
    healed: int
    """Bookings that a statement had to add, drop or correct: what it knew of them was lost or late."""
    unknown_targets: int
    """Bookings on targets that are not here (yet)."""
    expired: int
    """Routers that fell silent."""


class _Other:
    """Another router, as heard."""

    __slots__ = ("heard_at", "number", "parts")

    def __init__(self) -> None:
        self.heard_at = 0.0
        self.number = -1
        self.parts: dict[int, RouterStatement] = {}


class Replicas:
    """Keeps this router's bookings known to the others, and theirs to its scheduler. It is the scheduler's observer.

    `clock` must be the one whose times the scheduler is given everywhere else.
    """

    def __init__(
        self,
        bus: Bus,
        scheduler: Scheduler,
        *,
        namespace: str,
        clock: Callable[[], float],
        router_id: str | None = None,
    ) -> None:
        self.router_id = router_id or uuid.uuid4().hex
        self._bus = bus
        self._scheduler = scheduler
        self._namespace = namespace
        self._clock = clock
        self._subject = subjects.router(namespace, self.router_id)
        self._own: dict[str, RequestBooked] = {}
        """In flight, without hashes: what a statement says."""
        self._waiting: list[RequestChange] = []
        self._others: dict[str, _Other] = {}
        self._numbers = itertools.count()
        self._wake = asyncio.Event()
        self._sending = asyncio.Lock()  # a statement is not mixed with changes
        self._state_at = 0.0
        self._tasks: list[asyncio.Task[None]] = []
        self._subscription: Subscription | None = None
        self._sent = self._received = self._misfits = 0
        self._healed = self._unknown_targets = self._expired = 0

    def __repr__(self) -> str:
        return f"<Replicas {self.router_id}, {len(self._others)} others, {len(self._own)} own bookings>"

    async def open(self) -> None:
        """Listen, say hello, and go on telling."""
        pattern = subjects.every(self._namespace, "router")
        self._subscription = await self._bus.subscribe(pattern, self._hear)
        self._scheduler.observers.append(self)
        self._tasks = [
            asyncio.create_task(self._tell(), name="bookings to other routers"),
            asyncio.create_task(self._state(), name="statements to other routers"),
        ]

    async def close(self) -> None:
        """Tell the others that all is over; idempotent."""
        if self._subscription is None:
            return
        self._scheduler.observers.remove(self)
        for task in self._tasks:
            task.cancel()
        await self._subscription.cancel()
        self._subscription = None
        await self._send(RouterStatement(self.router_id, next(self._numbers), 0, 1, [], leaving=True))

    def statistics(self) -> ReplicaStatistics:
        """Counts since the start, and sizes now."""
        scheduler = self._scheduler.statistics()
        return ReplicaStatistics(
            router_id=self.router_id,
            others=len(self._others),
            bookings=scheduler.requests_elsewhere,
            unheard=scheduler.unheard_bookings,
            sent=self._sent,
            received=self._received,
            misfits=self._misfits,
            healed=self._healed,
            unknown_targets=self._unknown_targets,
            expired=self._expired,
        )

    # ---- telling

    def booked(self, target: Target, booking: Booking) -> None:
        """A request of ours was placed."""
        said = RequestBooked(
            booking.request_id,
            target.worker_id,
            target.rank,
            booking.prompt_tokens,
            booking.uncached_tokens,
            prefilling=booking.prefilling,
        )
        self._own[booking.request_id] = said
        if self._others:
            self._say(msgspec.structs.replace(said, hashes=pack_hashes(booking.hashes)))

    def prefilled(self, request_id: str, cached_tokens: int | None) -> None:
        """A request of ours has its first token."""
        said = self._own.get(request_id)
        if said is not None:
            self._own[request_id] = msgspec.structs.replace(said, prefilling=False)
            self._say(RequestPrefilled(request_id, cached_tokens))

    def freed(self, request_id: str, *, failed: bool) -> None:
        """A request of ours is over."""
        if self._own.pop(request_id, None) is not None:
            self._say(RequestFreed(request_id, failed))

    def state_soon(self) -> None:
        """Let everybody hear a statement at once, e.g. after the bus was away."""
        self._state_at = 0.0

    def _say(self, change: RequestChange) -> None:
        if self._others:  # nobody listens, otherwise; who comes hears a statement first
            self._waiting.append(change)
            self._wake.set()

    async def _tell(self) -> None:
        """Until cancelled: what waits, in batches; statements when they are due."""
        while True:
            await self._wake.wait()
            await asyncio.sleep(BATCH_SECONDS)
            self._wake.clear()
            async with self._sending:
                await self._send_waiting()

    async def _state(self) -> None:
        """Until cancelled: a statement every second, or earlier when somebody needs one; and see who fell silent."""
        while True:
            now = self._clock()
            if now >= self._state_at:
                self._state_at = now + STATEMENT_SECONDS
                await self._send_statement()
            self._expire(now)
            await asyncio.sleep(ANSWER_SECONDS)

    async def _send_statement(self) -> None:
        """All requests in flight at this moment. What changes while its parts are sent is told after the last of them."""
        async with self._sending:
            await self._send_waiting()
            booked, number = list(self._own.values()), next(self._numbers)
            parts = [booked[start : start + STATEMENT_REQUESTS] for start in range(0, len(booked), STATEMENT_REQUESTS)]
            for index, part in enumerate(parts or [[]]):
                await self._send(RouterStatement(self.router_id, number, index, max(1, len(parts)), part))

    async def _send_waiting(self) -> None:
        waiting, self._waiting = self._waiting, []
        for changes in _batches(waiting):
            await self._send(RouterChanges(self.router_id, changes))

    async def _send(self, message: RouterChanges | RouterStatement) -> None:
        self._sent += 1
        await self._bus.publish(self._subject, messages.encode(message))

    # ---- hearing

    async def _hear(self, received: Received) -> None:
        try:
            message = messages.decode(received.data)
        except msgspec.DecodeError as error:
            self._misfit(error)
            return
        if not isinstance(message, RouterChanges | RouterStatement) or message.router_id == self.router_id:
            return
        self._received += 1
        other = self._heard(message.router_id)
        if isinstance(message, RouterChanges):
            for change in message.changes:
                self._apply(message.router_id, change)
        elif message.leaving:
            self._forget(message.router_id, "left")
        else:
            self._take_part(other, message)

    def _misfit(self, error: Exception) -> None:
        if not self._misfits:
            logger.warning("another router's message cannot be used: %s; further ones are only counted", error)
        self._misfits += 1

    def _heard(self, router_id: str) -> _Other:
        other = self._others.get(router_id)
        if other is None:
            other = self._others[router_id] = _Other()
            logger.info("router %s is there, too", router_id)
            self._stand()
            self.state_soon()
        other.heard_at = self._clock()
        return other

    def _stand(self) -> None:
        """Tell the scheduler how many decide, and which of them it is: by id, so that no two take the same place."""
        rank = sum(router_id < self.router_id for router_id in self._others)
        self._scheduler.share(rank, len(self._others) + 1, LAG_SECONDS)

    def _apply(self, router_id: str, change: RequestChange) -> None:
        key, now = _key(router_id, change.request_id), self._clock()
        match change:
            case RequestBooked():
                self._book(router_id, change, just_now=True)
            case _ if not self._scheduler.is_booked(key):
                return  # lost, or its target has left: nothing to correct
            case RequestPrefilled():
                self._scheduler.first_token(key, change.cached_tokens, now)
            case RequestFreed():
                self._scheduler.free(key, now, failed=change.failed)

    def _book(self, router_id: str, said: RequestBooked, *, just_now: bool) -> bool:
        key, now = _key(router_id, said.request_id), self._clock()
        target = Target(said.worker_id, said.rank)
        try:
            request = RoutingRequest(key, unpack_hashes(said.hashes), said.prompt_tokens)
            booked = self._scheduler.book_elsewhere(
                router_id, request, target, said.uncached_tokens, now, just_now=just_now
            )
        except ValueError as error:  # a router with another block size: its load is load all the same
            self._misfit(error)
            request = RoutingRequest(key, NO_HASHES, said.prompt_tokens)
            booked = self._scheduler.book_elsewhere(
                router_id, request, target, said.uncached_tokens, now, just_now=just_now
            )
        self._unknown_targets += not booked and not self._scheduler.is_booked(key)
        if booked and not said.prefilling and self._scheduler.is_prefilling(key):
            self._scheduler.first_token(key, None, now)
        return booked

    def _take_part(self, other: _Other, part: RouterStatement) -> None:
        """A statement counts when all its parts are there; a later one takes the place of one that never was complete."""
        if part.number != other.number:
            other.number, other.parts = part.number, {}
        other.parts[part.index] = part
        if len(other.parts) == part.count:
            self._reconcile(part.router_id, [said for each in other.parts.values() for said in each.booked])
            other.parts = {}

    def _reconcile(self, router_id: str, stated: list[RequestBooked]) -> None:
        """Hold exactly what a router says that it has."""
        held, now = self._scheduler.booked_elsewhere(router_id), self._clock()
        for said in stated:
            key = _key(router_id, said.request_id)
            known = held.get(key)
            if known is not None and _same(known, said):
                del held[key]
                if known.prefilling and not said.prefilling:
                    self._healed += 1
                    self._scheduler.first_token(key, None, now)
        for key in held:  # freed, or sent elsewhere since, and the word of it lost
            self._healed += 1
            self._scheduler.free(key, now)
        for said in stated:
            if not self._scheduler.is_booked(_key(router_id, said.request_id)):
                self._healed += self._book(router_id, said, just_now=False)

    def _expire(self, now: float) -> None:
        for router_id in [name for name, other in self._others.items() if now - other.heard_at > EXPIRY_SECONDS]:
            self._expired += 1
            self._forget(router_id, f"has said nothing for {EXPIRY_SECONDS:g} s")

    def _forget(self, router_id: str, reason: str) -> None:
        del self._others[router_id]
        self._stand()
        held = self._scheduler.booked_elsewhere(router_id)
        for key in held:
            self._scheduler.free(key, self._clock())
        logger.info("router %s %s: its %d bookings are freed", router_id, reason, len(held))


def _same(known: Elsewhere, said: RequestBooked) -> bool:
    """Whether both speak of one booking: a request that migrates keeps its id."""
    where = Target(said.worker_id, said.rank)
    return (known.target, known.prompt_tokens, known.uncached_tokens) == (
        where,
        said.prompt_tokens,
        said.uncached_tokens,
    )


def _key(router_id: str, request_id: str) -> str:
    """Another router's request among ours."""
    return f"{router_id}/{request_id}"


def _batches(changes: list[RequestChange]) -> Iterator[list[RequestChange]]:
    """In order, as many at a time as a message has room for."""
    batch: list[RequestChange] = []
    room = MESSAGE_BYTES
    for change in changes:
        size = _BOOKING_BYTES + (len(change.hashes) if isinstance(change, RequestBooked) else 0)
        if batch and size > room:
            yield batch
            batch, room = [], MESSAGE_BYTES
        batch.append(change)
        room -= size
    if batch:
        yield batch
