"""A registry in an etcd cluster."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import TYPE_CHECKING
from urllib.parse import quote

from events import subjects
from events.membership import Registry, RegistryError, RegistryStatistics, card_codec
from events.membership.card_codec import UnreadableCard
from events.membership.etcd.cards import OwnCards
from events.membership.etcd.session import EtcdError, Session
from events.membership.etcd.watch import CardWatch

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from events.membership import Change, WorkerCard
    from events.membership.etcd.access import EtcdAccess

logger = logging.getLogger(__name__)

BEATS_PER_TTL = 3  # two heartbeats may fail before the lease ends
LONGEST_CALL_SECONDS = 2.0


class EtcdRegistry(Registry):
    """The cards of a namespace under `/warmpath/<namespace>/workers/`, each under a lease of its process.

    etcd does not say whether a key was withdrawn or expired: `statistics().expired` stays 0.

    :param ttl_seconds: after so long without a sign of life a card is gone; rounded up to whole seconds, and to etcd's own least
        (2 s by its default election timeout).
    """

    def __init__(self, access: EtcdAccess, namespace: str, ttl_seconds: float = 10.0) -> None:
        self._access = access
        self._prefix = f"/warmpath/{subjects.token(namespace)}/workers/".encode()
        self._ttl_seconds = ttl_seconds
        self._beat_seconds = ttl_seconds / BEATS_PER_TTL
        self._call_seconds = min(LONGEST_CALL_SECONDS, self._beat_seconds)
        self._session = Session(access, self._call_seconds)
        self._own = OwnCards(self._session, ttl_seconds)
        self._lock = asyncio.Lock()  # over the two above
        self._closed = asyncio.Event()
        self._heart: asyncio.Task[None] | None = None
        self._watches: set[CardWatch] = set()
        self._failures = self._unreadable = 0
        self._troubled = False

    async def register(self, card: WorkerCard) -> None:
        """Add or replace a worker's card, and keep it alive until `unregister` or `close`.

        If etcd was there before and is not now, the card is taken all the same, and put as soon as it is back.

        :raises RegistryError: the registry is closed, or etcd cannot be reached, and never was.
        """
        key = self._key(card.worker_id)
        async with self._lock:
            if self._closed.is_set():
                raise RegistryError(f"registry {self._access}: it is closed")
            self._own.add(key, card)
            try:
                await self._own.keep_alive()
            except EtcdError as error:
                self._trouble(error)
                if not self._session.connects:
                    self._own.forget(key)
                    raise RegistryError(f"registry {self._access}: {error}") from error
        if self._heart is None:
            self._heart = asyncio.create_task(self._beat(), name=f"heartbeats in {self._access}")

    async def unregister(self, worker_id: str) -> None:
        """Withdraw a card of ours; others are not touched.

        :raises RegistryError: etcd cannot be reached now (the card goes when it can, or expires).
        """
        async with self._lock:
            self._own.discard(self._key(worker_id))
            try:
                await self._own.keep_alive()
            except EtcdError as error:
                self._trouble(error)
                raise RegistryError(f"registry {self._access}: {error}") from error

    async def cards(self) -> dict[str, WorkerCard]:
        """All living cards by worker id. O(n).

        :raises RegistryError: etcd cannot be reached.
        """
        async with self._lock:
            try:
                listing = await self._session.listing(self._prefix)
            except EtcdError as error:
                self._trouble(error)
                raise RegistryError(f"registry {self._access}: {error}") from error
        found = {}
        for item in listing.items:
            try:
                card = card_codec.decode(item.value)
            except UnreadableCard:
                self._unreadable += 1
            else:
                found[card.worker_id] = card
        return found

    async def watch(self) -> AsyncIterator[Change]:
        """All living cards as `Joined`, `Listed`, then every change, until the registry is closed.

        While etcd is away, they stay as they are.

        :raises RegistryError: etcd cannot be reached at the first look.
        """
        session = Session(self._access, self._call_seconds)  # calls on one session must not overlap
        cards = CardWatch(session, self._prefix, grace_seconds=self._ttl_seconds)
        self._watches.add(cards)
        found: asyncio.Queue[list[Change] | EtcdError | None] = asyncio.Queue()
        follower = asyncio.create_task(_follow(cards, found), name=f"watch of {self._access}")
        closing = asyncio.create_task(self._closed.wait())
        closing.add_done_callback(lambda _: found.put_nowait(None))
        try:
            while (changes := await found.get()) is not None:
                if isinstance(changes, EtcdError):
                    raise RegistryError(f"registry {self._access}: {changes}") from changes
                for change in changes:
                    yield change
        finally:
            for task in (follower, closing):
                task.cancel()
            await asyncio.wait({follower, closing})
            self._retire(cards)
            await session.close()

    async def close(self) -> None:
        """Stop heartbeats, withdraw what this object registered, and end its watches. Idempotent."""
        if self._closed.is_set():
            return
        self._closed.set()
        if self._heart is not None:
            await self._heart
        async with self._lock:
            try:
                await self._own.withdraw()
            except EtcdError as error:
                logger.warning("cards stay until they expire: %s", error)
            await self._session.close()

    def statistics(self) -> RegistryStatistics:
        """Counts since the registry object was made. O(watches)."""
        return RegistryStatistics(
            registered=len(self._own),
            heartbeats=self._own.heartbeats,
            recreated=self._own.recreated,
            superseded=self._own.superseded,
            expired=0,
            unreadable=self._unreadable + sum(cards.unreadable for cards in self._watches),
            failures=self._failures + sum(cards.failures for cards in self._watches),
        )

    def _key(self, worker_id: str) -> bytes:
        return self._prefix + quote(worker_id, safe="").encode()

    async def _beat(self) -> None:
        """Until closed: keep the cards; a beat that failed is repeated soon."""
        while not self._closed.is_set():
            pause = self._beat_seconds / BEATS_PER_TTL if self._troubled else self._beat_seconds
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._closed.wait()
            async with self._lock:
                if not self._closed.is_set():
                    await self._keep_alive()

    async def _keep_alive(self) -> None:
        try:
            await self._own.keep_alive()
        except EtcdError as error:
            self._trouble(error)
        else:
            self._troubled = False

    def _trouble(self, error: EtcdError) -> None:
        self._failures += 1
        if not self._troubled:
            self._troubled = True
            logger.warning("heartbeats fail: %s", error)

    def _retire(self, cards: CardWatch) -> None:
        self._watches.discard(cards)
        self._failures += cards.failures
        self._unreadable += cards.unreadable

    def __repr__(self) -> str:
        return f"<EtcdRegistry {self._access}, {len(self._own)} own cards>"


async def _follow(cards: CardWatch, found: asyncio.Queue[list[Change] | EtcdError | None]) -> None:
    try:
        async for changes in cards.changes():
            if changes:
                found.put_nowait(changes)
    except EtcdError as error:
        found.put_nowait(error)
