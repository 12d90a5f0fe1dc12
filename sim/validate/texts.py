"""Prompts from a trace's content ids: equal ids, equal tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from sim.traces import Trace

OUTPUT_IDS = np.arange(2**32 - 100_000, 2**32, dtype=np.uint32)
"""Token ids that outputs are made of: in no prompt."""


class Texts:
    """A trace's prompts. What no id names is the request's own."""

    def __init__(self, trace: Trace) -> None:
        self._trace = trace
        names, self._blocks = np.unique(trace.blocks, return_inverse=True)
        self._own = len(names)
        """The next id that nothing has."""

    def prompt(self, request: int, tokens: int) -> NDArray[np.uint32]:
        """The first `tokens` tokens of a request, shape (tokens,). O(tokens)."""
        size = self._trace.block_tokens
        first, last = self._trace.first_block[request : request + 2]
        ids = self._blocks[first:last]
        missing = -(-tokens // size) - len(ids)
        if missing > 0:
            ids = np.concatenate([ids, np.arange(self._own, self._own + missing)])
            self._own += missing
        text = ids[: -(-tokens // size), None] * size + np.arange(size)
        return text.ravel()[:tokens].astype(np.uint32)

    def __repr__(self) -> str:
        return f"<Texts of {self._trace!r}>"
