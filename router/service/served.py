"""Workers' cards → the models that they serve."""

from __future__ import annotations

import logging
from collections import defaultdict
from typing import TYPE_CHECKING

from events.membership import Role
from router.frontend.models import ServedModel

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from events.membership import WorkerCard

logger = logging.getLogger(__name__)


def served_models(cards: Iterable[WorkerCard]) -> dict[str, ServedModel]:
    """Each model by its name. O(workers)."""
    of_model: defaultdict[str, list[WorkerCard]] = defaultdict(list)
    for card in cards:
        of_model[card.model].append(card)
    return {name: _served(name, workers) for name, workers in of_model.items()}


def longest_prompts(cards: Iterable[WorkerCard]) -> dict[str, int]:
    """Tokens of the longest prompt that is taken, for each model that is served: by a worker that does all of a request, or by a
    prefill and a decode worker together. O(workers).
    """
    longest: defaultdict[tuple[str, Role], int] = defaultdict(int)
    for card in cards:
        longest[card.model, card.role] = max(longest[card.model, card.role], card.context_tokens)
    names = sorted({model for model, _ in longest})
    whole, prefill, decode = ([longest[name, role] for name in names] for role in Role)
    taken = (max(one, min(two, three)) for one, two, three in zip(whole, prefill, decode, strict=True))
    return {name: tokens for name, tokens in zip(names, taken, strict=True) if tokens}


def _served(name: str, workers: list[WorkerCard]) -> ServedModel:
    limits = [card.migration_limit for card in workers if card.migration_limit is not None]
    templates = sorted({card.chat_template for card in workers if card.chat_template is not None})
    return ServedModel(
        name=name,
        embedding=workers[0].embedding,
        passes_chats=next(filter(None, map(passing_reason, workers)), ""),
        passes_all=any(card.engine_tokenizes for card in workers),
        migration_limit=min(limits, default=None),
        chat_template=templates[0] if templates else None,
        adapters=frozenset(adapter for card in workers for adapter in card.adapters),
    )


def passing_reason(card: WorkerCard) -> str:
    """What of a worker only its engine can do to a chat: then chats go to it as they are. Empty: nothing."""
    if card.engine_tokenizes:
        return "--use-sglang-tokenizer"
    if card.tool_call_parser:
        return f"--tool-call-parser {card.tool_call_parser}"
    if card.reasoning_parser:
        return f"--reasoning-parser {card.reasoning_parser}"
    return f"--chat-template {card.named_template}" if card.named_template else ""


def say_differences(before: Mapping[str, ServedModel], after: Mapping[str, ServedModel]) -> None:
    """Log what changes for clients of a model: how their chats are handled."""
    for name, model in after.items():
        reason = model.passes_chats
        if reason and reason != (before[name].passes_chats if name in before else ""):
            logger.warning(
                "model %s: chats go to its engines as they are (text mode), for %s is theirs to do", name, reason
            )
