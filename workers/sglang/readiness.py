"""Does an engine serve? Asked once a life, before it is registered: never in a loop, as each answer costs it a token."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from events.membership import Role

if TYPE_CHECKING:
    from events.membership import WorkerCard

    from .engine import Engine

TOKEN = 1
"""Any vocabulary has it."""


async def check_serving(engine: Engine, card: WorkerCard) -> None:
    """Return once every rank has answered a request of one token, and the server says that it takes more.

    Prefill and decode workers answer nothing alone; SGLang has had each of their ranks answer a mock before it says so.

    :raises EngineUnreachable: one did not answer, or not with status 200.
    """
    await engine.check_alive()
    if card.role is Role.AGGREGATED:
        await asyncio.gather(*(engine.answer(*_question(card, rank)) for rank in range(card.ranks)))


def _question(card: WorkerCard, rank: int) -> tuple[str, dict[str, Any]]:
    if card.embedding:
        return "/v1/embeddings", {"model": card.model, "input": [TOKEN]}
    body: dict[str, Any] = {"input_ids": [TOKEN], "sampling_params": {"max_new_tokens": 1, "temperature": 0}}
    return "/generate", body if card.ranks == 1 else body | {"routed_dp_rank": rank}
