"""A bus over NATS core: fast, at most once.

nats-py carries bytes and reconnects; order, queues and their bounds are ours (`events.bus.exchange`), for these reasons:

- its reconnect keeps subscriptions, but a protocol error ends its client for good: a supervisor then starts a new one;
- what it buffers before the first connect is lost when an attempt fails: our outbox holds what is published while disconnected;
- its `flush` that timed out leaves a cancelled future behind, at which the late PONG stops the reading task, silently: we flush
  by a message to ourselves, which proves the same;
- its own buffer is bounded only while disconnected: a broker that is stuck makes `publish` wait for ever unless told otherwise.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from nats import errors
from nats.aio.client import Client

from events.bus import BusUnavailable, NoResponder
from events.bus.answer import NOBODY, failure, frames
from events.bus.delivery import Envelope
from events.bus.exchange import QUEUE_BYTES, Exchange
from events.bus.outbox import Outbox
from events.bus.raw import RawInbox

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Mapping

    from nats.aio.msg import Msg
    from nats.aio.subscription import Subscription

    from events.bus.delivery import Delivery
    from events.bus.raw import RawAnswer

logger = logging.getLogger(__name__)

DEFAULT_URL = "nats://127.0.0.1:4222"
BUFFER_BYTES = 8 * 1024 * 1024

RECONNECT_WAIT_SECONDS = 0.2
CLOSE_SECONDS = 2.0
PERSISTENCE: dict[str, Any] = {
    "allow_reconnect": True,
    "max_reconnect_attempts": -1,
    "reconnect_time_wait": RECONNECT_WAIT_SECONDS,
    "ping_interval": 5.0,
    "max_outstanding_pings": 2,  # a broker that misses these is given up
    "flush_timeout": 1.0,  # how long a publish waits, once, for a connected broker that takes nothing
}
SERVERS = "servers"  # the queue group of all that serve one subject: one of them answers


class NatsBus(Exchange):
    """A bus over one or more NATS servers (of one cluster): a list, or their URLs with commas between them.

    :raises ValueError: a URL is none of nats://, tls://, ws:// or wss://, or names no host.
    """

    def __init__(
        self,
        servers: str | list[str] = DEFAULT_URL,
        name: str = "warmpath",
        connect_timeout_seconds: float = 2.0,
        *,
        wait_for_server: bool = True,
        on_connect: Callable[[], Awaitable[None]] | None = None,
        buffer_bytes: int = BUFFER_BYTES,
        queue_bytes: int = QUEUE_BYTES,
    ) -> None:
        super().__init__(name, queue_bytes, on_connect)
        self.servers = servers.split(",") if isinstance(servers, str) else list(servers)
        self.url = ", ".join(_without_credentials(url) for url in self.servers)
        self._connect_timeout_seconds = connect_timeout_seconds
        self._wait_for_server = wait_for_server
        self._buffer_bytes = buffer_bytes
        self._outbox = Outbox(buffer_bytes)
        self._raw = RawInbox(self._inbox.prefix)
        self._client = Client()
        self._supervisor: asyncio.Task[None] | None = None  # runs while the bus is open
        self._ready = asyncio.Event()  # connected, subscriptions stand, outbox empty
        self._ended = asyncio.Event()  # nats-py gave its client up
        self._bound: dict[Delivery, Subscription] = {}  # what the present client has subscribed
        self._binding = asyncio.Lock()  # a subscription is made once, though two tasks may find it missing
        self._connects = 0
        self._trouble = "no answer"  # the latest error of the connection, for who asks why

    @property
    def connected(self) -> bool:
        """Whether the broker is there, and all subscriptions stand."""
        return self._ready.is_set() and self._client.is_connected

    async def open(self) -> None:
        """Connect, now or (`wait_for_server` False) in the background as soon as there is a server. Idempotent.

        :raises BusUnavailable: no server answered in time.
        """
        if self._supervisor is not None:
            return
        self._start_greeting()
        self._supervisor = asyncio.create_task(self._stay_connected(), name=f"{self.name}: connection")
        if self._wait_for_server:
            await self._wait_until_ready()

    async def close(self) -> None:
        """Send what waits if the broker is there, cancel all subscriptions, disconnect. Idempotent."""
        if self._supervisor is None:
            return
        if self.connected:
            await self._echo_quietly(self._send)
        supervisor, self._supervisor = self._supervisor, None
        self._inbox.fail_all("the bus was closed")
        self._raw.fail_all("the bus was closed")
        await self._stop_greeting()
        await self._cancel_deliveries()
        self._ended.set()  # nats-py may swallow the cancellation while it connects: then this ends the supervisor
        supervisor.cancel()
        await asyncio.wait({supervisor})
        if lost := self._outbox.clear():
            self._counts.drop("closed before the broker came back", lost)

    async def flush(self) -> None:
        """Wait until the broker has taken all that was published: a message to ourselves comes back.

        :raises BusUnavailable: it did not, within the connect timeout.
        """
        await self._echo(self._send)

    async def _echo(self, send: Callable[[Envelope], Awaitable[bool]]) -> None:
        reply, answer = self._inbox.open(f"flush of {self.name} at {self.url}")
        try:
            if not await send(Envelope(reply, b"".join(frames([])))):
                raise BusUnavailable(f"{self.name} cannot send to {self.url}: {self._trouble}")
            async for _ in answer.parts(self._connect_timeout_seconds):
                pass
        except NoResponder as error:
            raise BusUnavailable(f"{error} ({self._trouble})") from None
        finally:
            self._inbox.forget(reply)

    # What NATS itself offers, beyond a bus

    @contextmanager
    def conversation(self, subject: str) -> Iterator[tuple[str, RawAnswer]]:
        """A subject for answers, and the messages that come there as they are; for `say`.

        :raises BusUnavailable: there is no connection.
        """
        if not self.connected:
            raise BusUnavailable(f"{subject}: {self.name} is not connected to {self.url}: {self._trouble}")
        reply, answer = self._raw.open(subject)
        try:
            yield reply, answer
        finally:
            self._raw.forget(reply)

    async def say(self, subject: str, data: bytes, reply: str, headers: Mapping[str, str] | None = None) -> None:
        """Publish now or never: it waits in no buffer of ours.

        :raises BusUnavailable: the client refuses it.
        """
        try:
            await self._client.publish(subject, data, reply, dict(headers) if headers else None)
        except errors.Error as error:
            raise BusUnavailable(f"{subject}: {error}") from error

    # Sending

    async def _send(self, envelope: Envelope) -> bool:
        if self._supervisor is None:
            self._counts.drop("the bus is not open")
            return False
        if len(envelope.data) > self._client.max_payload:
            self._counts.drop(f"a message is larger than the broker's limit of {self._client.max_payload} bytes")
            return False
        if not self.connected:
            return self._keep(envelope)
        if self._client.pending_data_size > self._buffer_bytes:  # it has not gone down in time
            self._counts.drop("the broker takes nothing, and the buffer is full")
            return False
        return await self._hand_over(envelope)

    def _keep(self, envelope: Envelope) -> bool:
        kept = self._outbox.add(envelope)
        if not kept:
            self._counts.drop("not connected, and the buffer is full")
        return kept

    async def _hand_over(self, envelope: Envelope) -> bool:
        try:
            await self._client.publish(envelope.subject, envelope.data, envelope.reply)
        except errors.Error as error:  # it lost the connection meanwhile, and its buffer is full
            self._counts.drop(f"the client refuses them: {error}")
            return False
        return True

    # Receiving

    async def _attach(self, delivery: Delivery) -> None:
        if self.connected:
            try:
                await self._bind(delivery)
            except errors.Error as error:  # lost at this moment: the next connect binds it
                logger.debug("%s: cannot subscribe %s yet: %s", self.name, delivery.pattern.text, error)
            await self._echo_quietly(self._send)  # from here on, what others publish comes

    async def _detach(self, delivery: Delivery) -> None:
        subscription = self._bound.pop(delivery, None)
        if subscription is not None:
            try:
                await subscription.unsubscribe()
            except errors.Error as error:  # the connection is gone, and the subscription with it
                logger.debug("%s: cannot unsubscribe %s: %s", self.name, delivery.pattern.text, error)

    async def _bind(self, delivery: Delivery) -> None:
        async def take(message: Msg) -> None:
            delivery.offer(Envelope(message.subject, message.data, message.reply))

        group = SERVERS if delivery.shared else ""
        async with self._binding:
            client = self._client
            if delivery in self._bound:
                return
            subscription = await client.subscribe(delivery.pattern.text, group, take)
            if client is self._client:
                self._bound[delivery] = subscription
        if delivery not in self._deliveries:  # cancelled meanwhile
            await self._detach(delivery)

    async def _take_answer(self, message: Msg) -> None:
        nobody = message.headers is not None and message.headers.get("Status") == "503"
        if self._raw.take(message.subject, NOBODY if nobody else message):
            return
        self._inbox.take(message.subject, failure(NOBODY) if nobody else message.data)

    # The connection

    async def _stay_connected(self) -> None:
        """Connect; whenever nats-py gives its client up, connect a new one, until the bus is closed."""
        while True:
            self._client = Client()
            self._ended.clear()
            self._bound.clear()
            try:
                await self._connect()
                await self._resume()
                await self._ended.wait()
            finally:
                self._ready.clear()
                await self._shut(self._client)
            if self._supervisor is None:
                return
            self._counts.say(f"the connection to {self.url} ended for good ({self._trouble}); starting a new one")
            await asyncio.sleep(RECONNECT_WAIT_SECONDS)

    async def _connect(self) -> None:
        await self._client.connect(
            servers=self.servers,
            name=self.name,
            error_cb=self._on_error,
            disconnected_cb=self._on_disconnected,
            reconnected_cb=self._resume,
            closed_cb=self._on_closed,
            connect_timeout=self._connect_timeout_seconds,  # type: ignore[arg-type] # a float serves as well
            pending_size=self._buffer_bytes,
            skip_subject_validation=True,  # done before
            **PERSISTENCE,
        )
        await self._client.subscribe(f"{self._inbox.prefix}.*", cb=self._take_answer)

    async def _resume(self) -> None:
        """Connected, for the first time or again: subscribe what is not subscribed yet, then send what waited."""
        try:
            while self._unbound() or self._outbox:  # more of both may come while we are at it
                await self._bind_all()
                await self._send_waiting()
        except errors.Error as error:
            await self._on_error(error)
        if not self._client.is_connected:  # lost again at once; the next connect resumes
            return
        self._connects += 1
        self._counts.reconnects = self._connects - 1
        self._counts.speak_again()
        self._ready.set()
        self._came.set()
        logger.info("%s: connected to %s", self.name, self.url)

    def _unbound(self) -> list[Delivery]:
        return [delivery for delivery in self._deliveries if delivery not in self._bound]

    async def _bind_all(self) -> None:
        if unbound := self._unbound():
            for delivery in unbound:
                await self._bind(delivery)
            await self._echo_quietly(
                self._hand_over
            )  # the broker has them now; what nats-py renews, it waits for itself

    async def _send_waiting(self) -> None:
        while self._outbox:
            await self._client.publish(*self._outbox.first())
            self._outbox.pop()

    async def _on_error(self, error: Exception) -> None:
        self._counts.connection_errors += 1
        self._trouble = str(error) or type(error).__name__
        if isinstance(error, errors.SlowConsumerError):
            self._counts.drop("this process reads too slowly")
        else:
            self._counts.say(f"trouble with {self.url}: {self._trouble}")

    async def _on_disconnected(self) -> None:
        self._ready.clear()
        if self._supervisor is not None:  # not our own doing
            self._inbox.fail_all("the connection was lost")
            self._raw.fail_all("the connection was lost")
            self._counts.say(f"lost the connection to {self.url}")

    async def _on_closed(self) -> None:
        self._ended.set()

    async def _wait_until_ready(self) -> None:
        try:
            async with asyncio.timeout(self._connect_timeout_seconds):
                await self._ready.wait()
        except TimeoutError:
            await self.close()
            raise BusUnavailable(f"no NATS server at {self.url}: {self._trouble}") from None

    async def _echo_quietly(self, send: Callable[[Envelope], Awaitable[bool]]) -> None:
        try:
            await self._echo(send)
        except BusUnavailable as error:
            self._counts.say(str(error))

    @staticmethod
    async def _shut(client: Client) -> None:
        """Close a client, though its broker may be stuck and take nothing more."""
        try:
            async with asyncio.timeout(CLOSE_SECONDS):
                await client.close()
        except TimeoutError:
            transport: Any = client._transport  # noqa: SLF001 - nats-py has no way to give up what it cannot send
            transport._io_writer.transport.abort()  # noqa: SLF001


def _without_credentials(url: str) -> str:
    parts = urlsplit(url if "://" in url else f"nats://{url}")
    if parts.scheme not in ("nats", "tls", "ws", "wss") or not parts.hostname:
        raise ValueError(f"NATS server {url!r}: want nats://host:port (or tls://, ws://, wss://)")
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
