"""What was published, kept for a while: the one interface, and its implementations.

`JetStreamLog` (a stream of a NATS server) and `MemoryLog` (one process) pass the same suite, `tests/events/test_log.py`. A log
keeps every message that anybody publishes to its subjects; publishers need not know of it, and no message waits for it.
"""

from __future__ import annotations

import abc
from typing import TYPE_CHECKING, NamedTuple

from events.bus import BusError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


class LogError(BusError):
    """The log cannot be used; the text says which, and why."""


class Kept(NamedTuple):
    """A message in a log."""

    number: int
    """Its place in the log, from 1 on, over all subjects; never used twice."""
    data: bytes


class Limits(NamedTuple):
    """What a log keeps: the oldest messages go first."""

    max_bytes: int = 1024**3
    max_age_seconds: float = 3600.0
    replicas: int = 1
    """Servers of a cluster that keep a copy; 3 survive the loss of one."""


class Log(abc.ABC):
    """Messages of some subjects, in order of arrival."""

    @abc.abstractmethod
    async def open(self) -> None:
        """Begin to keep messages, within the limits; what is kept already stays. Idempotent.

        :raises LogError: the broker keeps no logs, or not within these limits.
        :raises BusUnavailable: it cannot be reached.
        """

    @abc.abstractmethod
    async def append(self, subject: str, data: bytes) -> int:
        """Publish, and wait until it is kept; its number. What fails may have been kept nevertheless.

        :raises LogError: it was refused, or nobody said that it is kept.
        :raises BusUnavailable: the broker cannot be reached.
        """

    @abc.abstractmethod
    def read(self, subject: str, after: int = 0) -> AsyncIterator[Kept]:
        """All that is kept now of one subject, beyond number `after`, in order.

        :raises LogError: the answer broke off.
        :raises BusUnavailable: the broker cannot be reached.
        """

    @abc.abstractmethod
    async def last(self) -> int:
        """The number of the last message; 0: there never was one.

        :raises LogError: there is no such log.
        :raises BusUnavailable: the broker cannot be reached.
        """

    @abc.abstractmethod
    async def trim(self, subject: str, before: int) -> None:
        """Forget the messages of a subject before a number.

        :raises LogError: it was refused.
        :raises BusUnavailable: the broker cannot be reached.
        """
