"""Before an engine is registered: a prompt that nobody else sends must come back as a cache event, named as routers would name it.

That proves the whole way at once: the event port is this engine's, its pages are as large as it says, and what is decoded and
hashed here is what was sent. It costs a rank the prefill of one block and one token, once a life.
"""

from __future__ import annotations

import asyncio
import logging
import random
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from events.blocks import sequence_hashes
from events.membership import Role
from events.parity import TEXT, hash_vector

from .engine import EngineUnreachable

if TYPE_CHECKING:
    from events.membership import WorkerCard

    from .engine import Engine
    from .relay import RankRelay
    from .subscription import RankSubscription

logger = logging.getLogger(__name__)

EVENT_SECONDS = 5.0
"""An engine publishes a prompt's pages with the batch that prefills it: so long after the answer they are not on their way."""
TOKENS = range(2, 100)
"""Any vocabulary has them, and they mean nothing special in most."""


class ParityProbe:
    """Proves the events of one life of an engine."""

    def __init__(self, engine: Engine, card: WorkerCard) -> None:
        self._engine = engine
        self._card = card

    def __repr__(self) -> str:
        return f"<ParityProbe of {self._card.worker_id}>"

    async def proven(self, ranks: list[tuple[RankRelay, RankSubscription]]) -> WorkerCard:
        """The card with samples of hashes and tokens, and the reason if a probe failed.

        :raises EngineRestarted: another engine publishes.
        """
        card = self._card
        failures: list[str | None] = []
        if ranks and card.role is Role.AGGREGATED and not card.embedding:
            failures = await asyncio.gather(*(self._probe(rank, *pair) for rank, pair in enumerate(ranks)))
        failure = next((failure for failure in failures if failure), None)
        if failure:
            logger.error("worker %s: %s; routers will refuse it", card.worker_id, failure)
        tokens = await self._engine.tokenize(card.model, TEXT)
        vector = hash_vector(card.block_size)
        return msgspec.structs.replace(card, hash_vector=vector, text_tokens=tuple(tokens), parity_failure=failure)

    async def _probe(self, rank: int, relay: RankRelay, subscription: RankSubscription) -> str | None:
        """Why the events of a rank are not what was sent; None: they are, or the engine did not answer."""
        tokens = probe_tokens(self._card, rank)
        expected = sequence_hashes(np.array(tokens, np.uint32), self._card.block_size).tolist()
        before = relay.statistics().decoder.events
        answering = asyncio.create_task(self._answered(tokens, rank))
        following = asyncio.create_task(_follow(relay, subscription, expected))
        try:
            if not await answering:
                return None
            await asyncio.wait({following}, timeout=EVENT_SECONDS)
            if following.done():
                following.result()
                return self._page_objection(relay)
        finally:
            for task in (answering, following):
                task.cancel()
            await asyncio.gather(answering, following, return_exceptions=True)
        events = relay.statistics().decoder.events - before
        came = f"{events} events came, but of other tokens" if events else "no event came"
        return (
            f"a prompt of {len(tokens)} tokens was answered by rank {rank}, and {came} within {EVENT_SECONDS:g} s: "
            f"see the endpoint in its --kv-events-config"
        )

    async def _answered(self, tokens: list[int], rank: int) -> bool:
        body: dict[str, Any] = {"input_ids": tokens, "sampling_params": {"max_new_tokens": 1, "temperature": 0}}
        try:
            await self._engine.answer("/generate", body if self._card.ranks == 1 else body | {"routed_dp_rank": rank})
        except EngineUnreachable as error:
            logger.warning("worker %s: its events could not be probed: %s", self._card.worker_id, error)
            return False
        return True

    def _page_objection(self, relay: RankRelay) -> str | None:
        others = relay.page_sizes - {self._card.page_size}
        if not others:
            return None
        return (
            f"its events come in pages of {max(others)} tokens, and it says that its pages have {self._card.page_size}"
        )


def probe_tokens(card: WorkerCard, rank: int) -> list[int]:
    """Whole pages that fill a block, and one token more, as a last token is always computed; another prompt in every life."""
    pages = -(-card.block_size // card.page_size)
    draw = random.Random(f"{card.worker_id}/{rank}/{card.epoch}")
    return draw.choices(TOKENS, k=pages * card.page_size + 1)


async def _follow(relay: RankRelay, subscription: RankSubscription, expected: list[int]) -> None:
    """Take in what the engine does until the expected blocks are held. Nobody follows the rank yet: nothing is published."""
    while not relay.holds(expected):
        await relay.restore(await subscription.receive())
