"""One rank's event payloads in the engine's order, each exactly once.

SGLang publishes on a PUB socket, which forgets, and keeps its last 10,000 payloads behind a replay socket. So: listen first,
then ask for what was before, then take what both have only once. The replay socket is asked again where the live stream skips
numbers, after a broken connection, and whenever it has been quiet for a while: the last payloads before a silence may be lost too,
and no later number would show it.

Numbers begin again with every start of an engine, so a number alone does not say whose it is. The last payloads are therefore
remembered by a hash: a number that comes again with another payload, or an engine whose own history says otherwise, is another
engine. Clocks are not asked: they jump.
"""

from __future__ import annotations

import asyncio
import logging
from array import array
from typing import TYPE_CHECKING, NamedTuple, Self

import xxhash
import zmq
import zmq.asyncio
from zmq.utils.monitor import parse_monitor_message, recv_monitor_message

from .engine import EngineGone

if TYPE_CHECKING:
    from collections.abc import Iterable
    from types import TracebackType

logger = logging.getLogger(__name__)

END = b"\xff" * 8
LIVE_QUEUE_FRAMES = 100_000  # as many as the engine itself queues
BATCH_FRAMES = 256
CONNECT_TIMEOUT_SECONDS = 3.0
REPLAY_TIMEOUT_SECONDS = 5.0
QUIET_SECONDS = 1.0
"""After so long without a payload the engine is asked whether there was one."""
LONGEST_QUIET_SECONDS = 8.0
"""The same towards an engine that does not answer: twice as long each time."""
REPLAY_ATTEMPTS = 3
"""Questions for the same payload before it counts as lost."""
REMEMBERED = 1 << 14
"""Payloads that are told from another engine's: more than an engine keeps."""


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
    late: int
    """Payloads that only a question after a silence or a broken connection brought."""
    disconnects: int


class Fingerprints:
    """The last payloads, by a hash of each."""

    def __init__(self) -> None:
        self._ring = array("Q", bytes(8 * REMEMBERED))

    def remember(self, frame: Frame) -> None:
        """Note a payload under its number. O(size)."""
        self._ring[frame.seq % REMEMBERED] = xxhash.xxh3_64_intdigest(frame.payload)

    def know(self, frame: Frame) -> bool:
        """Whether this payload, and no other, was noted under its number lately. O(size)."""
        return self._ring[frame.seq % REMEMBERED] == xxhash.xxh3_64_intdigest(frame.payload)


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
        quiet_seconds: float = QUIET_SECONDS,
    ) -> None:
        self._context = context
        self._endpoint = endpoint
        self._replay_endpoint = replay_endpoint
        self._topic = topic
        self._replay_timeout_seconds = replay_timeout_seconds
        self._quiet_seconds = self._patience = quiet_seconds
        self._live = context.socket(zmq.SUB)
        self._monitor = self._live.get_monitor_socket(zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED)
        self._next = 0
        """Number of the next payload to deliver."""
        self._known = Fingerprints()
        self._delivered = self._replayed = self._duplicates = 0
        self._gaps = self._lost = self._failed_replays = self._malformed = self._late = self._disconnects = 0

    def __repr__(self) -> str:
        return f"<RankSubscription {self._endpoint} next={self._next}>"

    async def __aenter__(self) -> Self:
        self._live.set(zmq.IPV6, 1)
        self._live.set(zmq.RCVHWM, LIVE_QUEUE_FRAMES)
        self._live.set(zmq.SUBSCRIBE, self._topic.encode())
        self._live.connect(self._endpoint)
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_SECONDS):  # not wait_for, which can lose a cancellation
                await recv_monitor_message(self._monitor)
        except TimeoutError:
            logger.warning("%s does not accept subscribers (yet); trying on", self._endpoint)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.disable_monitor()
        self._monitor.close(linger=0)
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
        frames, _ = await self._replay(0)
        return self._in_order_all(frames)

    async def receive(self) -> list[Delivery]:
        """What is there, waiting until something is: in order, without duplicates, with gaps filled or named.

        May be empty: the engine was asked after a silence, and has nothing new.

        :raises EngineRestarted: another engine publishes at this endpoint.
        """
        if not await self._live.poll(1000 * self._patience):
            return await self._look_for_late_ones()
        frames = await self._waiting()
        deliveries = await self._after_disconnect() if await self._was_disconnected() else []
        for frame in frames:
            deliveries += await self._take(frame)
        return deliveries

    async def whole(self) -> list[Delivery]:
        """All that was delivered so far once more, from the engine's first payload on; what it has no more is named.

        :raises EngineRestarted: another engine answers.
        """
        frames, answered = await self._replay(0) if self._replay_endpoint is not None else ([], False)
        if answered and self._next:
            self._check_engine(frames)
        return _named((frame for frame in frames if frame.seq < self._next), self._next)

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
            self._late,
            self._disconnects,
        )

    async def _waiting(self) -> list[Frame]:
        """The live messages that wait, at least one."""
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
        if frame.seq == self._next:
            return self._in_order(frame)
        if frame.seq > self._next:
            self._gaps += 1
            return self._in_order_all([*(await self._resume() or ()), frame])
        if frame.seq < self._next - REMEMBERED or not self._known.know(frame):
            raise EngineRestarted(f"{self._endpoint} began again at event {frame.seq}, {self._next} was due")
        self._duplicates += 1
        return []

    def _in_order_all(self, frames: list[Frame]) -> list[Delivery]:
        return [delivery for frame in frames for delivery in self._in_order(frame)]

    def _in_order(self, frame: Frame) -> list[Delivery]:
        """Deliver a payload unless it was, after naming what is missing before it."""
        due = self._next
        if frame.seq < due:
            return []
        self._next = frame.seq + 1
        self._known.remember(frame)
        self._delivered += 1
        if frame.seq == due:
            return [frame]
        self._lost += frame.seq - due
        logger.warning("%s: events %d to %d are lost", self._endpoint, due, frame.seq - 1)
        return [Lost(due, frame.seq - 1), frame]

    # asking the engine for what did not come

    async def _look_for_late_ones(self) -> list[Delivery]:
        """After a silence: was there anything?"""
        if self._replay_endpoint is None:
            return []
        frames = await self._resume()
        self._patience = self._quiet_seconds if frames is not None else min(2 * self._patience, LONGEST_QUIET_SECONDS)
        return self._late_ones(frames or [])

    def _late_ones(self, frames: list[Frame]) -> list[Delivery]:
        self._late += len(frames)
        return self._in_order_all(frames)

    async def _was_disconnected(self) -> bool:
        """Whether the connection broke since the last time this was asked."""
        broke = 0
        try:
            while True:
                event = parse_monitor_message(await self._monitor.recv_multipart(zmq.NOBLOCK))
                broke += event["event"] == zmq.EVENT_DISCONNECTED
        except zmq.Again:
            self._disconnects += broke
            return broke > 0

    async def _after_disconnect(self) -> list[Delivery]:
        """The next payload may be another engine's, though its number follows.

        :raises EngineRestarted: it is, or nobody can tell, as no replay endpoint answers.
        """
        frames = await self._resume()
        if frames is None:
            raise EngineRestarted(f"{self._endpoint} was away, and no replay endpoint tells what was missed")
        return self._late_ones(frames)

    async def _resume(self) -> list[Frame] | None:
        """Payloads from the one that is due on, as far as the engine has them, and is still the one that was followed.

        None: it does not answer.

        :raises EngineRestarted: it is another one.
        """
        if self._replay_endpoint is None:
            return None
        frames, answered = await self._replay(max(0, self._next - 1))
        if not answered or not self._next:
            return frames if answered else None
        self._check_engine(frames)
        return [frame for frame in frames if frame.seq >= self._next]

    def _check_engine(self, frames: list[Frame]) -> None:
        """Whether whoever replays this published the last payload that was delivered.

        :raises EngineRestarted: it did not.
        """
        last = self._next - 1
        if not frames or any(frame.seq == last and not self._known.know(frame) for frame in frames):
            raise EngineRestarted(f"{self._endpoint} is another engine: it has not published event {last}")

    async def _replay(self, start: int) -> tuple[list[Frame], bool]:
        """Payloads from `start` on, in order and without a hole but those that the engine confirms; whether it answered at all.

        The engine drops replies that a peer is slow to take: what is missing is asked for again, a few times if need be. What is
        missing then has left its memory.
        """
        frames: list[Frame] = []
        attempts, answered = 0, False
        while attempts < REPLAY_ATTEMPTS:
            due = frames[-1].seq + 1 if frames else start
            reply, whole = await self._ask(due)
            answered = answered or whole or bool(reply)
            attempts += 1
            more = _unbroken(reply, due if attempts < REPLAY_ATTEMPTS else None)
            attempts = 0 if more else attempts
            frames += more
            if not reply or (whole and len(more) == len(reply)):
                break
        self._replayed += sum(frame.seq >= self._next for frame in frames)
        return frames, answered

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
                    if not len(frames) % BATCH_FRAMES:
                        await asyncio.sleep(0)  # replies that are there already let nobody else run
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
        async with asyncio.timeout(self._replay_timeout_seconds):
            return await socket.recv_multipart()


def _named(frames: Iterable[Frame], end: int) -> list[Delivery]:
    """These of the payloads 0 to `end` - 1, in order, and the name of what is not among them."""
    deliveries: list[Delivery] = []
    due = 0
    for frame in frames:
        if frame.seq > due:
            deliveries.append(Lost(due, frame.seq - 1))
        deliveries.append(frame)
        due = frame.seq + 1
    return deliveries if due >= end else [*deliveries, Lost(due, end - 1)]


def _unbroken(frames: list[Frame], due: int | None) -> list[Frame]:
    """The first frames that follow each other, from `due` on if that is given, else from wherever they begin."""
    kept: list[Frame] = []
    for frame in frames:
        if due is not None and frame.seq != due:
            break
        kept.append(frame)
        due = frame.seq + 1
    return kept
