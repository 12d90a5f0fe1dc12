"""The ZMQ sockets of one rank: KV events, their replay, load."""

from __future__ import annotations

import asyncio
import enum
import logging
import time
from collections import deque
from typing import TYPE_CHECKING, Any, NamedTuple

import zmq
import zmq.asyncio

from sim.worker.wire import END_OF_REPLAY, LOAD_TOPIC, encode_load

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from sim.engine import Change, Load
    from sim.worker.wire import Dialect

logger = logging.getLogger(__name__)

EVENT_HIGH_WATER_MARK = 100_000
LOAD_HIGH_WATER_MARK = 8
REPLAY_BUFFER_BATCHES = 10_000
BIND_ATTEMPTS = 50
HELD_SECONDS = 0.3
"""How long a disturbed batch may be held."""


class PortsTaken(OSError):
    """No run of consecutive free ports was found, or the wanted ones are in use."""


def bind_consecutive(sockets: Sequence[zmq.Socket[Any]], host: str, port: int | None) -> int:
    """Bind each socket to the port after the one before it; returns the first (None: any free run).

    :raises PortsTaken: a wanted port is in use, or no free run was found.
    """
    for _ in range(BIND_ATTEMPTS if port is None else 1):
        bound: list[tuple[zmq.Socket[Any], str]] = []
        try:
            base = port if port is not None else sockets[0].bind_to_random_port(f"tcp://{host}")
            first = [] if port is not None else [(sockets[0], f"tcp://{host}:{base}")]
            bound.extend(first)
            for offset, socket in enumerate(sockets[len(first) :], len(first)):
                socket.bind(f"tcp://{host}:{base + offset}")
                bound.append((socket, f"tcp://{host}:{base + offset}"))
        except zmq.ZMQError as error:
            for socket, address in bound:
                socket.unbind(address)
            logger.debug("ports after %s are taken: %s", port, error)
        else:
            return base
    raise PortsTaken(f"no {len(sockets)} free ports on {host}" + (f" from {port} on" if port else ""))


class Disturbance(enum.StrEnum):
    """What befalls a batch on its way to the subscribers."""

    DROP = "drop"
    """It does not come; a replay has it."""
    LOSE = "lose"
    """It does not come, and no replay has it."""
    DUPLICATE = "duplicate"
    """It comes twice."""
    REORDER = "reorder"
    """It comes after the next one, or `HELD_SECONDS` later."""
    DELAY = "delay"
    """It comes `HELD_SECONDS` later, and all others behind it."""


class PublisherStatistics(NamedTuple):
    """What an event publisher did."""

    batches: int
    """Numbers used."""
    sent_batches: int
    dropped_batches: int
    """On demand: dropped or lost."""
    replayed_batches: int


class EventPublisher:
    """Numbers, sends and remembers event batches, and replays them on request."""

    def __init__(
        self, socket: zmq.Socket[bytes], dialect: Dialect, rank: int, page_size: int, topic: bytes = b""
    ) -> None:
        self._socket = socket
        self._dialect = dialect
        self._rank = rank
        self._page_size = page_size
        self._topic = topic
        self._seq = 0
        self._buffer: deque[tuple[bytes, bytes]] = deque(maxlen=REPLAY_BUFFER_BATCHES)
        self._sent = self._dropped = self._replayed = 0
        self._disturbances: deque[Disturbance] = deque()
        """Of the next batches."""
        self._held: list[list[bytes]] = []
        self._holding = Disturbance.DELAY  # why

    def publish(self, changes: Sequence[Change]) -> None:
        """Send one batch, if there is anything in it. O(tokens)."""
        if not changes:
            return
        payload = self._dialect.encode(changes, self._page_size, self._rank, time.time())
        seq = self._seq.to_bytes(8, "big")
        self._seq += 1
        disturbance = self._disturbances.popleft() if self._disturbances else None
        if disturbance is not None:
            logger.info("rank %d: event batch %d on demand: %s", self._rank, self._seq - 1, disturbance)
        if disturbance is not Disturbance.LOSE:
            self._buffer.append((seq, payload))
        self._carry([self._topic, seq, payload], disturbance)

    def disturb(self, disturbance: Disturbance, count: int) -> None:
        """Let this happen to the next `count` batches, after what was ordered before."""
        self._disturbances.extend([disturbance] * count)

    def leave_alone(self) -> None:
        """Let nothing more happen to further batches."""
        self._disturbances.clear()

    def _carry(self, frames: list[bytes], disturbance: Disturbance | None) -> None:
        match disturbance:
            case Disturbance.DROP | Disturbance.LOSE:
                self._dropped += 1
            case Disturbance.REORDER | Disturbance.DELAY:
                self._hold(frames, disturbance)
            case _ if self._held and self._holding is Disturbance.DELAY:
                self._held.append(frames)
            case _:
                for _ in range(2 if disturbance is Disturbance.DUPLICATE else 1):
                    self._send(frames)
                self._release()

    def _hold(self, frames: list[bytes], disturbance: Disturbance) -> None:
        if not self._held:
            asyncio.get_running_loop().call_later(HELD_SECONDS, self._release)
        self._held.append(frames)
        self._holding = disturbance

    def _release(self) -> None:
        held, self._held = self._held, []
        for frames in held:
            self._send(frames)

    def _send(self, frames: list[bytes]) -> None:
        if not self._socket.closed:  # a held batch may outlive it
            self._socket.send_multipart(frames)
            self._sent += 1

    async def serve_replay(self, router: zmq.asyncio.Socket) -> None:
        """Answer replay requests until cancelled."""
        while True:
            request = await router.recv_multipart()
            if len(request) != 3 or len(request[2]) != 8:
                logger.warning("rank %d: a replay request of %d frames ignored", self._rank, len(request))
                continue
            client, start = request[0], int.from_bytes(request[2], "big")
            for frames in self._replay(start):
                await router.send_multipart([client, b"", *frames])

    def _replay(self, start: int) -> Iterator[list[bytes]]:
        topic = [self._topic] if self._dialect.replay_topic else []
        for seq, payload in list(self._buffer):
            if int.from_bytes(seq, "big") >= start:
                self._replayed += 1
                yield [*topic, seq, payload]
        yield [*([b""] if topic else []), END_OF_REPLAY, b""]

    def statistics(self) -> PublisherStatistics:
        """A snapshot. O(1)."""
        return PublisherStatistics(self._seq, self._sent, self._dropped, self._replayed)


class LoadPublisher:
    """Sends load reports: at once when something changed, and as a heartbeat."""

    def __init__(self, socket: zmq.Socket[bytes], rank: int) -> None:
        self._socket = socket
        self._rank = rank
        self._seq = 0
        self._last: Load | None = None

    def publish(self, load: Load) -> None:
        """Send a report that differs from the last one. O(1)."""
        if load != self._last:
            self._send(load)

    def heartbeat(self, load: Load) -> None:
        """Send a report in any case. O(1)."""
        self._send(load)

    def _send(self, load: Load) -> None:
        self._last = load
        self._socket.send_multipart([LOAD_TOPIC, self._seq.to_bytes(8, "big"), encode_load(load, self._rank)])
        self._seq += 1
