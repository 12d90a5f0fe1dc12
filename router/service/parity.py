"""Whether a worker's events can match this router's prompts at all: compared when it joins, from what its card says."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, NamedTuple

from events.parity import TEXT, hash_vector

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from events.membership import WorkerCard
    from router.metrics import Metrics

logger = logging.getLogger(__name__)


class Objection(NamedTuple):
    """What does not fit."""

    kind: str
    """A few constant words, for a metric's label."""
    reason: str


class Parity:
    """Compares cards with this router's own ways.

    :param tokens_of: this router's tokens of a text, without special ones; None: it does not know the model, or any.
    :param refuse: False: a mismatch is counted and said, and the worker used nevertheless.
    """

    def __init__(
        self,
        block_size: int,
        metrics: Metrics | None = None,
        tokens_of: Callable[[str, str], Sequence[int] | None] = lambda model, text: None,
        *,
        refuse: bool = True,
    ) -> None:
        self._block_size = block_size
        self._metrics = metrics
        self._tokens_of = tokens_of
        self._refuse = refuse
        self._vector = hash_vector(block_size)

    def __repr__(self) -> str:
        return f"Parity(block size {self._block_size})"

    def objection(self, card: WorkerCard) -> str | None:
        """Why a worker whose events are to be followed must not be used; None: nothing speaks against it."""
        objection = self._objection(card)
        if objection is None:
            return None
        if self._metrics is not None:
            self._metrics.parity_failures.labels(objection.kind).inc()
        if self._refuse or objection.kind == "block size":  # blocks of another size are nothing at all
            return objection.reason
        logger.error("worker %s would be refused, but for --no-parity-check: %s", card.worker_id, objection.reason)
        return None

    def _objection(self, card: WorkerCard) -> Objection | None:
        if card.block_size != self._block_size:
            return Objection(
                "block size",
                f"its events come in blocks of {card.block_size} tokens, this router's --block-size is "
                f"{self._block_size}: their hashes can never match; start both with the same",
            )
        if card.parity_failure:
            return Objection("probe", f"its adapter's probe failed: {card.parity_failure}")
        if card.hash_vector and card.hash_vector != self._vector:
            return Objection(
                "hashes",
                f"its adapter hashes the same tokens to {list(card.hash_vector)}, this router to {list(self._vector)}: "
                f"start both from the same version",
            )
        return self._text_objection(card)

    def _text_objection(self, card: WorkerCard) -> Objection | None:
        ours = self._tokens_of(card.model, TEXT) if card.text_tokens else None
        if ours is None or tuple(ours) == card.text_tokens:
            return None
        return Objection(
            "tokens",
            f"its tokenizer makes {list(card.text_tokens)} of {TEXT!r}, this router's {list(ours)}: the router's --model-path is "
            f"not its model's",
        )
