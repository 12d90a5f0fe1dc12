"""All cards of a namespace, followed: a list, then changes from its revision on; after any break, a list again.

A list after a break costs one request and is right whatever happened meanwhile: compaction, a restart, even an etcd that came back
without its data. When etcd was away, leases may have ended only because nobody could renew them, so who is missing then gets one
time to live to come back before it is said to have left; until then requests decide whether it is alive.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING

from events.membership import Joined, Left, Listed, card_codec
from events.membership.card_codec import UnreadableCard
from events.membership.etcd.session import Compacted, Deleted, EtcdError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable

    from events.membership import Change, WorkerCard
    from events.membership.etcd.session import Item, Listing, Session

logger = logging.getLogger(__name__)

RETRY_SECONDS = 0.5


class CardWatch:
    """One watcher's view. `failures` and `unreadable` count since it began."""

    def __init__(self, session: Session, prefix: bytes, grace_seconds: float) -> None:
        self._session = session
        self._prefix = prefix
        self._grace_seconds = grace_seconds
        self._cards: dict[bytes, WorkerCard] = {}
        """What was said to be there."""
        self._missing: dict[bytes, float] = {}
        """Of those: gone by etcd's word, and when that is to be believed."""
        self._believe_at = 0.0
        self._broken = False
        self._complained: set[bytes] = set()
        self.failures = self.unreadable = 0

    def __repr__(self) -> str:
        return f"<CardWatch {self._prefix.decode()}, {len(self._cards)} cards>"

    async def changes(self) -> AsyncIterator[list[Change]]:
        """All cards as `Joined`, `Listed`, then what changes, without end; lists may be empty.

        :raises EtcdError: etcd cannot be reached at the first look.
        """
        listing = await self._session.listing(self._prefix)
        yield [*self._replace(listing.items), Listed(len(self._cards))]
        while True:
            try:
                async for events in self._session.watch(self._prefix, listing.revision + 1):
                    yield [*self._update(events), *self._given_up()]
            except Compacted as error:
                logger.info("%s: listing again", error)
            except EtcdError as error:
                self._broke(error)
            listing = await self._list_again()
            yield [*self._replace(listing.items), *self._given_up()]

    async def _list_again(self) -> Listing:
        """As soon as etcd answers."""
        while True:
            try:
                listing = await self._session.listing(self._prefix)
            except EtcdError as error:
                self._broke(error)
                await asyncio.sleep(RETRY_SECONDS)
            else:
                if self._broken:
                    self._broken = False
                    self._believe_at = time.monotonic() + self._grace_seconds
                    logger.info("etcd is back: %d cards", len(listing.items))
                return listing

    def _broke(self, error: EtcdError) -> None:
        self.failures += 1
        if not self._broken:
            self._broken = True
            logger.warning("%s; workers stay as they were until it is back", error)

    # ---- what differs

    def _replace(self, items: list[Item]) -> list[Change]:
        """A whole list took the place of all before. O(n)."""
        gone = self._cards.keys() - {item.key for item in items}
        return self._update([*(Deleted(key) for key in gone), *items])

    def _update(self, events: Iterable[Item | Deleted]) -> list[Change]:
        found: list[Change] = []
        for event in events:
            if isinstance(event, Deleted):
                self._complained.discard(event.key)
                self._miss(event.key)
            else:
                found += self._there(event)
        return found

    def _miss(self, key: bytes) -> None:
        if key in self._cards:
            self._missing.setdefault(key, self._believe_at)

    def _there(self, item: Item) -> list[Change]:
        try:
            card = card_codec.decode(item.value)
        except UnreadableCard as error:
            self._complain(item.key, error)
            self._miss(item.key)
            return []
        self._complained.discard(item.key)
        self._missing.pop(item.key, None)
        if self._cards.get(item.key) == card:
            return []
        self._cards[item.key] = card
        return [Joined(card)]

    def _given_up(self) -> list[Change]:
        """Who is missing, and not waited for any longer."""
        now = time.monotonic()
        keys = [key for key, believe_at in self._missing.items() if believe_at <= now]
        for key in keys:
            del self._missing[key]
        return [Left(self._cards.pop(key).worker_id) for key in keys]

    def _complain(self, key: bytes, error: UnreadableCard) -> None:
        self.unreadable += 1
        if key not in self._complained:
            self._complained.add(key)
            logger.warning("card %s is skipped: %s", key.decode(errors="replace"), error)
