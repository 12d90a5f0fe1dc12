"""What a scheduler reports of itself: on its load socket, or asked for at `/v1/loads`. Both say the same in other words."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import msgspec
import zmq
import zmq.asyncio

from events.messages import WorkerLoad

if TYPE_CHECKING:
    from types import TracebackType

    from events.membership import WorkerCard

logger = logging.getLogger(__name__)

TOPIC = "load"


class LoadError(ValueError):
    """A load report that cannot be read."""


class LoadReport(msgspec.Struct):
    """One rank's load, by SGLang's names. The first five are in every version; None: this one does not say."""

    num_running_reqs: int
    num_waiting_reqs: int
    num_used_tokens: int
    max_total_num_tokens: int
    dp_rank: int
    num_waiting_uncached_tokens: int | None = None
    num_total_tokens: int | None = None
    max_running_requests: int | None = None
    total_prefill_uncached_tokens: int | None = None
    total_prefill_busy_us: int | None = None

    def as_worker_load(self, card: WorkerCard, rank: int, now: float) -> WorkerLoad:
        """The same as routers take it. O(1)."""
        busy_us = self.total_prefill_busy_us
        return WorkerLoad(
            worker_id=card.worker_id,
            rank=rank,
            epoch=card.epoch,
            running_requests=self.num_running_reqs,
            waiting_requests=self.num_waiting_reqs,
            used_tokens=self.num_used_tokens,
            capacity_tokens=self.max_total_num_tokens,
            waiting_uncached_tokens=self.num_waiting_uncached_tokens,
            max_running_requests=self.max_running_requests,
            total_prefill_uncached_tokens=self.total_prefill_uncached_tokens,
            total_prefill_busy_seconds=None if busy_us is None else busy_us / 1e6,
            reported_at=now,
        )


class LoadStat(LoadReport, array_like=True, tag="LoadStat"):
    """The same as an array, as the load socket sends it: it may end early, or go on."""


_DECODER = msgspec.msgpack.Decoder(LoadStat)


def from_message(payload: bytes) -> LoadReport:
    """A load socket's payload. O(1).

    >>> from_message(msgspec.msgpack.encode(["LoadStat", 2, 1, 48, 2048, 0])).num_used_tokens
    48

    :raises LoadError: it is no `LoadStat`, or shorter than every version's.
    """
    try:
        return _DECODER.decode(payload)
    except msgspec.DecodeError as error:
        raise LoadError(f"no load report: {error}") from error


def from_loads(reply: dict[str, Any]) -> list[LoadReport]:
    """The reports in a reply of `/v1/loads`, one a rank. O(ranks).

    :raises LoadError: it has none, or one lacks what every version has.
    """
    try:
        return msgspec.convert(reply["loads"], list[LoadReport])
    except (KeyError, msgspec.ValidationError) as error:
        raise LoadError(f"no load reports: {error}") from error


class LoadStatistics(NamedTuple):
    """Counts since the subscription was opened."""

    reports: int
    malformed: int


class LoadSubscription:
    """One rank's load socket, as an async context manager; entering it connects."""

    def __init__(self, context: zmq.asyncio.Context, endpoint: str) -> None:
        self._endpoint = endpoint
        self._socket = context.socket(zmq.SUB)
        self._reports = self._malformed = 0

    def __repr__(self) -> str:
        return f"<LoadSubscription {self._endpoint}>"

    async def __aenter__(self) -> Self:
        self._socket.set(zmq.IPV6, 1)
        self._socket.set(zmq.SUBSCRIBE, TOPIC.encode())
        self._socket.connect(self._endpoint)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.close(linger=0)

    async def newest(self) -> LoadReport:
        """The latest report, waiting until one comes; older ones that wait before it are passed over."""
        while True:
            parts = await self._socket.recv_multipart()
            try:
                while True:
                    parts = await self._socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                pass
            try:
                report = from_message(parts[-1])
            except LoadError as error:
                self._refuse(error)
                continue
            self._reports += 1
            return report

    def statistics(self) -> LoadStatistics:
        """Counts since the subscription was opened."""
        return LoadStatistics(self._reports, self._malformed)

    def _refuse(self, error: LoadError) -> None:
        if not self._malformed:
            logger.warning("%s: %s", self._endpoint, error)
        self._malformed += 1
