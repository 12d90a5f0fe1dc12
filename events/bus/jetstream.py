"""A log in a NATS server: a JetStream stream.

Messages are kept as they pass (a stream listens to its subjects), and read with batched direct gets, which need no consumer: a
question, the messages, an end. Source of the formats: NATS architecture decision records 1 (JSON API) and 31 (direct get); batches
need nats-server 2.11.
"""

from __future__ import annotations

import json
import uuid
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from events.bus import NoResponder
from events.bus.answer import NOBODY
from events.bus.log import Kept, Limits, Log, LogError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from nats.aio.msg import Msg

    from events.bus.nats import NatsBus

BATCH_MESSAGES = 4096
BATCH_BYTES = 8 * 1024 * 1024
TIMEOUT_SECONDS = 3.0
_EXISTS = 10058
"""JetStream's error code: the name is in use with another configuration."""
_NANOSECONDS = 1_000_000_000


class JetStreamLog(Log):
    """The stream `name`, which keeps what is published to `pattern`."""

    def __init__(self, bus: NatsBus, name: str, pattern: str, limits: Limits | None = None) -> None:
        self._bus = bus
        self.name = name
        self._pattern = pattern
        self._limits = limits or Limits()

    def __repr__(self) -> str:
        return f"JetStreamLog({self.name!r}, {self._pattern!r}, {self._limits})"

    async def open(self) -> None:
        """Make the stream, or give it these limits.

        :raises LogError: the server keeps no streams (start it with `--jetstream`), or not within these limits.
        :raises BusUnavailable: there is no connection.
        """
        config = self._config()
        reply = await self._ask(f"$JS.API.STREAM.CREATE.{self.name}", config)
        if reply.get("error", {}).get("err_code") == _EXISTS:
            reply = await self._ask(f"$JS.API.STREAM.UPDATE.{self.name}", config)
        self._check(reply)

    async def append(self, subject: str, data: bytes) -> int:
        """Publish, and wait for the server's word.

        :raises LogError: it was refused, or the word did not come; what fails may have been kept nevertheless.
        :raises BusUnavailable: there is no connection.
        """
        headers = {"Nats-Msg-Id": uuid.uuid4().hex}  # what nats-py sends again after a reconnect is kept once
        acknowledgement = self._check(_decoded(await self._first(subject, data, headers)))
        return int(acknowledgement["seq"])

    async def read(self, subject: str, after: int = 0) -> AsyncIterator[Kept]:
        """All messages of a subject beyond a number, in batches.

        :raises LogError: the answer broke off.
        :raises BusUnavailable: there is no connection.
        """
        pending = 1
        while pending:
            request = {"batch": BATCH_MESSAGES, "max_bytes": BATCH_BYTES, "seq": after + 1, "next_by_subj": subject}
            async for message in self._batch(request):
                if (left := _end(message)) is not None:
                    pending = left
                else:
                    after = int(_header(message, "Nats-Sequence"))
                    yield Kept(after, message.data)

    async def last(self) -> int:
        """The number of the stream's last message.

        :raises LogError: there is no such stream.
        :raises BusUnavailable: there is no connection.
        """
        reply = self._check(await self._ask(f"$JS.API.STREAM.INFO.{self.name}", {}))
        return int(reply["state"]["last_seq"])

    async def trim(self, subject: str, before: int) -> None:
        """Purge the messages of a subject before a number.

        :raises LogError: it was refused.
        :raises BusUnavailable: there is no connection.
        """
        self._check(await self._ask(f"$JS.API.STREAM.PURGE.{self.name}", {"filter": subject, "seq": before}))

    def _config(self) -> dict[str, Any]:
        limits = self._limits
        return {
            "name": self.name,
            "subjects": [self._pattern],
            "retention": "limits",
            "discard": "old",
            "storage": "file",
            "max_bytes": limits.max_bytes,
            "max_age": int(limits.max_age_seconds * _NANOSECONDS),
            "num_replicas": limits.replicas,
            "allow_direct": True,
            "duplicate_window": int(min(120.0, limits.max_age_seconds) * _NANOSECONDS),
        }

    async def _batch(self, request: dict[str, Any]) -> AsyncIterator[Msg]:
        """The messages of one direct get, its end included."""
        subject = f"$JS.API.DIRECT.GET.{self.name}"
        with self._named_errors(), self._bus.conversation(subject) as (reply, answer):
            await self._bus.say(subject, json.dumps(request).encode(), reply)
            while True:
                message = await answer.next(TIMEOUT_SECONDS)
                yield message
                if _end(message) is not None:
                    return

    async def _ask(self, subject: str, body: dict[str, Any]) -> dict[str, Any]:
        return _decoded(await self._first(subject, json.dumps(body).encode()))

    async def _first(self, subject: str, data: bytes, headers: dict[str, str] | None = None) -> Msg:
        with self._named_errors(), self._bus.conversation(subject) as (reply, answer):
            await self._bus.say(subject, data, reply, headers)
            return await answer.next(TIMEOUT_SECONDS)

    @contextmanager
    def _named_errors(self) -> Iterator[None]:
        try:
            yield
        except NoResponder as error:
            hint = "; is the server started with --jetstream?" if NOBODY in str(error) else ""
            raise LogError(f"stream {self.name}: {error}{hint}") from error

    def _check(self, reply: dict[str, Any]) -> dict[str, Any]:
        if error := reply.get("error"):
            raise LogError(f"stream {self.name}: {error.get('description', error)}")
        return reply


def _decoded(message: Msg) -> dict[str, Any]:
    try:
        reply = json.loads(message.data)
    except ValueError as error:
        raise LogError(f"{message.subject}: no JSON: {error}") from error
    if not isinstance(reply, dict):
        raise LogError(f"{message.subject}: expected a JSON object")
    return reply


def _header(message: Msg, name: str) -> str:
    value: str | None = (message.headers or {}).get(name)
    if value is None:
        raise LogError(f"a message of a log has no {name}")
    return value


def _end(message: Msg) -> int | None:
    """How many messages are left after the end of a batch; None: it is not the end.

    :raises LogError: the question was refused.
    """
    headers = message.headers or {}
    match headers.get("Status"):
        case None:
            return None
        case "204":
            return int(headers.get("Nats-Num-Pending", "0"))
        case "404":  # nothing (more) of that subject
            return 0
        case status:
            raise LogError(f"a log cannot be read: {status} {headers.get('Description', '')}")
