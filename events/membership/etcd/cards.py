"""The cards that this process keeps in etcd, all under one lease.

A lease that is lost (this process, or etcd, stood still for longer than the time to live; or etcd lost its data) is granted anew,
and the cards are put anew: nothing is believed to be there because it was put once.
"""

from __future__ import annotations

import contextlib
import logging
import math
from typing import TYPE_CHECKING

from events.membership import card_codec
from events.membership.card_codec import UnreadableCard
from events.membership.etcd.session import LeaseLost

if TYPE_CHECKING:
    from events.membership import WorkerCard
    from events.membership.etcd.session import Item, Session

logger = logging.getLogger(__name__)


class _Own:
    """A card, and the revision at which it was last put; None: not since the lease was granted."""

    __slots__ = ("card", "revision")

    def __init__(self, card: WorkerCard) -> None:
        self.card = card
        self.revision: int | None = None


class OwnCards:
    """Cards under a lease. Not to be called by two tasks at once; every method may raise `EtcdError`, and can be called again."""

    def __init__(self, session: Session, ttl_seconds: float) -> None:
        self._session = session
        self._ttl_seconds = max(1, math.ceil(ttl_seconds))  # etcd counts whole seconds
        self._lease: int | None = None
        self._own: dict[bytes, _Own] = {}
        self._leaving: dict[bytes, int] = {}  # to be deleted as soon as etcd takes it: key, revision
        self.heartbeats = self.recreated = self.superseded = 0

    def __len__(self) -> int:
        return len(self._own)

    def add(self, key: bytes, card: WorkerCard) -> None:
        """Keep a card from now on; `keep_alive` puts it."""
        self._leaving.pop(key, None)
        self._own[key] = _Own(card)

    def forget(self, key: bytes) -> None:
        """Keep it no more, and leave what is there alone."""
        self._own.pop(key, None)

    def discard(self, key: bytes) -> None:
        """Keep it no more; `keep_alive` deletes it, if it is still ours."""
        own = self._own.pop(key, None)
        if own is not None and own.revision is not None:
            self._leaving[key] = own.revision

    async def keep_alive(self) -> None:
        """Delete what is leaving, renew the lease, see that every card is there."""
        await self._leave()
        if not self._own:
            return
        if self._lease is not None and not await self._session.keep_alive(self._lease):
            logger.warning("the lease of %d card(s) was lost", len(self._own))
            self._lease = None
        await self._put_all()

    async def withdraw(self) -> None:
        """Delete all of them, and end the lease."""
        for key in list(self._own):
            self.discard(key)
        await self._leave()
        if self._lease is not None:
            lease, self._lease = self._lease, None
            with contextlib.suppress(LeaseLost):  # it has ended by itself
                await self._session.revoke(lease)

    async def _leave(self) -> None:
        for key, revision in list(self._leaving.items()):
            await self._session.delete(key, over=revision)
            self._leaving.pop(key, None)

    async def _put_all(self) -> None:
        for key, own in list(self._own.items()):
            try:
                await self._keep(key, own)
            except LeaseLost:  # within the last moment: the next beat grants another
                self._lease = None
                raise

    async def _keep(self, key: bytes, own: _Own) -> None:
        if own.revision is None:
            await self._put(key, own, over=None)
            return
        there = await self._session.get(key)
        if there is None:
            if await self._put(key, own, over=0):
                self.recreated += 1
                logger.warning("the card of %s was gone; it is there again", own.card.worker_id)
        elif there.revision != own.revision:
            await self._contend(key, own, there)
        elif there.lease != self._lease:
            await self._put(key, own, over=own.revision)
        self.heartbeats += 1

    async def _contend(self, key: bytes, own: _Own, there: Item) -> None:
        """Somebody else put this worker's card: the later start has the place."""
        try:
            epoch = card_codec.decode(there.value).epoch
        except UnreadableCard:
            epoch = -1
        if epoch >= own.card.epoch:
            self.superseded += 1
            self.forget(key)
            logger.warning(
                "worker %s was registered by another process, with epoch %d: ours withdraws", own.card.worker_id, epoch
            )
        else:
            await self._put(key, own, over=there.revision)

    async def _put(self, key: bytes, own: _Own, over: int | None) -> bool:
        """Put a card, on condition that nobody was quicker (`over`); the next beat looks again if somebody was."""
        if self._lease is None:
            self._lease = await self._session.grant(self._ttl_seconds)
        revision = await self._session.put(key, card_codec.encode(own.card), self._lease, over=over)
        if revision is not None:
            own.revision = revision
        return revision is not None

    def __repr__(self) -> str:
        return f"<OwnCards, {len(self)} under lease {self._lease}>"
