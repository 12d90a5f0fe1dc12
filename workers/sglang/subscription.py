"""One rank's event payloads in the engine's order, each exactly once.

SGLang publishes on a PUB socket, which forgets, and keeps its last 10,000 payloads behind a replay socket. So: listen first,
then ask for what was before, then take what both have only once. Where the live stream skips numbers, the replay socket is asked
again.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, NamedTuple, Self

import zmq
import zmq.asyncio
from zmq.utils.monitor import recv_monitor_message

from .engine import EngineGone
from .wire import published_at

if TYPE_CHECKING:
    from types import TracebackType

logger = logging.getLogger(__name__)

END = b"\xff" * 8
LIVE_QUEUE_FRAMES = 100_000  # as many as the engine itself queues
BATCH_FRAMES = 256
CONNECT_TIMEOUT_SECONDS = 3.0
REPLAY_TIMEOUT_SECONDS = 5.0


class Frame(NamedTuple):
    """One payload and its number."""

    seq: int
    payload: bytes


class Lost(NamedTuple):
    """Payloads are missing here, and cannot be had any more."""

    first: int
    last: int


Delivery = Frame | Lost


class EngineRestarted(EngineGone):
    """The numbers began again: another engine publishes now."""


class SubscriptionStatistics(NamedTuple):
    """Counts since the subscription was opened."""

    delivered: int
    replayed: int
    """Of those, how many came from the replay socket."""
    duplicates: int
    """Live payloads that a replay had brought already."""
    gaps: int
    lost: int
    """Payloads that no replay could bring."""
    failed_replays: int
    """Replay requests without an answer, or without its end."""
    malformed: int
    """Messages that are not [topic, number, payload]."""


class RankSubscription:
    """What one rank publishes, as an async context manager; entering it connects."""

    def __init__(
        self,
        context: zmq.asyncio.Context,
        endpoint: str,
        replay_endpoint: str | None,
        topic: str = "",
        *,
        replay_timeout_seconds: float = REPLAY_TIMEOUT_SECONDS,
    ) -> None:
        self._context = context
        self._endpoint = endpoint
        self._replay_endpoint = replay_endpoint
        self._topic = topic
        self._replay_timeout_seconds = replay_timeout_seconds
        self._live = context.socket(zmq.SUB)
        self._next: int | None = None
        """Number of the next payload to deliver; None: whatever comes first."""
        self._newest = 0.0
        """Engine time of the last payload delivered."""
        self._delivered = self._replayed = self._duplicates = 0
        self._gaps = self._lost = self._failed_replays = self._malformed = 0

    def __repr__(self) -> str:
        return f"<RankSubscription {self._endpoint} next={self._next}>"

    async def __aenter__(self) -> Self:
        self._live.set(zmq.IPV6, 1)
        self._live.set(zmq.RCVHWM, LIVE_QUEUE_FRAMES)
        self._live.set(zmq.SUBSCRIBE, self._topic.encode())
        with self._live.get_monitor_socket(zmq.EVENT_HANDSHAKE_SUCCEEDED) as monitor:
            self._live.connect(self._endpoint)
            try:
                await asyncio.wait_for(recv_monitor_message(monitor), CONNECT_TIMEOUT_SECONDS)
            except TimeoutError:
                logger.warning("%s does not accept subscribers (yet); trying on", self._endpoint)
            finally:
                self._live.disable_monitor()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.close(linger=0)

    async def history(self) -> list[Delivery]:
        """All that the engine still has from before; to be taken once, before the first `receive`."""
        if self._replay_endpoint is None:
            logger.warning(
                "%s has no replay endpoint: what the engine cached before now stays unknown, and lost events empty the mirror; "
                'add "replay_endpoint" to its --kv-events-config',
                self._endpoint,
            )
            return []
        frames = await self._replay(0)
        if frames and frames[0].seq:
            logger.warning("%s: its history begins only at event %d", self._endpoint, frames[0].seq)
        if not frames and not self._failed_replays:
            self._next = 0  # the engine answers, and has published nothing yet
        return [delivery for frame in frames for delivery in self._in_order(frame)]

    async def receive(self) -> list[Delivery]:
        """What is there, waiting until something is: in order, without duplicates, with gaps filled or named.

        :raises EngineRestarted: another engine publishes at this endpoint.
        """
        deliveries: list[Delivery] = []
        for frame in await self._waiting():
            deliveries += await self._take(frame)
        return deliveries

    def statistics(self) -> SubscriptionStatistics:
        """Counts since the subscription was opened."""
        return SubscriptionStatistics(
            self._delivered,
            self._replayed,
            self._duplicates,
            self._gaps,
            self._lost,
            self._failed_replays,
            self._malformed,
        )

    async def _waiting(self) -> list[Frame]:
        """The next live message, and those that wait behind it."""
        messages = [await self._live.recv_multipart()]
        try:
            while len(messages) < BATCH_FRAMES:
                messages.append(await self._live.recv_multipart(zmq.NOBLOCK))
        except zmq.Again:
            pass
        return [frame for parts in messages if (frame := self._frame(parts))]

    def _frame(self, parts: list[bytes]) -> Frame | None:
        """The last two parts: before them come a topic, in replays a delimiter and, from 0.5.22 on, a topic."""
        if len(parts) < 3 or len(parts[-2]) != 8:
            if not self._malformed:
                logger.warning("%s sent a message of %d parts that is no event batch", self._endpoint, len(parts))
            self._malformed += 1
            return None
        return Frame(int.from_bytes(parts[-2], "big"), parts[-1])

    async def _take(self, frame: Frame) -> list[Delivery]:
        if self._next is None or frame.seq == self._next:
            return self._in_order(frame)
        if frame.seq > self._next:
            return await self._fill(frame)
        # The number is past: a copy of what a replay brought, or another engine's. The engine's clock tells.
        if published_at(frame.payload) > self._newest:
            raise EngineRestarted(f"{self._endpoint} began again at event {frame.seq}, {self._next} was due")
        self._duplicates += 1
        return []

    def _in_order(self, frame: Frame) -> list[Delivery]:
        """Deliver a payload unless it was, after naming what is missing before it."""
        due = frame.seq if self._next is None else self._next
        if frame.seq < due:
            return []
        self._next = frame.seq + 1
        self._newest = published_at(frame.payload)
        self._delivered += 1
        if frame.seq == due:
            return [frame]
        self._lost += frame.seq - due
        logger.warning("%s: events %d to %d are lost", self._endpoint, due, frame.seq - 1)
        return [Lost(due, frame.seq - 1), frame]

    async def _fill(self, frame: Frame) -> list[Delivery]:
        """A payload that came too early, after those before it as far as the engine has them."""
        assert self._next is not None
        self._gaps += 1
        frames = await self._replay(self._next) if self._replay_endpoint is not None else []
        return [delivery for found in [*frames, frame] for delivery in self._in_order(found)]

    async def _replay(self, start: int) -> list[Frame]:
        """Payloads from `start` on, in order and without a hole, though perhaps not from `start` itself.

        The engine drops replies that a peer is slow to take, so what has a hole is asked for again, as long as that brings more.
        """
        frames: list[Frame] = []
        while True:
            reply, whole = await self._ask(frames[-1].seq + 1 if frames else start)
            more = _unbroken(reply, frames[-1].seq + 1 if frames else None)
            frames += more
            if not more or (whole and len(more) == len(reply)):
                break
        self._replayed += len(frames)
        return frames

    async def _ask(self, start: int) -> tuple[list[Frame], bool]:
        """One replay request: what came, and whether its end did."""
        frames: list[Frame] = []
        with self._context.socket(zmq.DEALER) as socket:
            socket.set(zmq.IPV6, 1)
            socket.set(zmq.LINGER, 0)
            socket.set(zmq.RCVHWM, 0)  # no limit: a slow reader's replies would be dropped
            socket.connect(str(self._replay_endpoint))
            await socket.send_multipart([b"", start.to_bytes(8, "big")])
            try:
                while (parts := await self._reply(socket))[-2:] != [END, b""]:
                    if frame := self._frame(parts):
                        frames.append(frame)
            except TimeoutError:
                self._failed_replays += 1
                logger.warning(
                    "%s did not finish the replay from event %d in time: %d events came",
                    self._replay_endpoint,
                    start,
                    len(frames),
                )
                return frames, False
        return frames, True

    async def _reply(self, socket: zmq.asyncio.Socket) -> list[bytes]:
        return await asyncio.wait_for(socket.recv_multipart(), self._replay_timeout_seconds)


def _unbroken(frames: list[Frame], due: int | None) -> list[Frame]:
    """The first frames that follow each other, from `due` on if that is given."""
    kept: list[Frame] = []
    for frame in frames:
        if due is not None and frame.seq != due:
            break
        kept.append(frame)
        due = frame.seq + 1
    return kept
