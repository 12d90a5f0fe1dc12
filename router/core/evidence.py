"""Whether what is believed of a target's cache comes true: two comparisons that cost a few additions each.

*Traces*: a request leaves blocks in its target's cache, and the target's own events must name them. Events that never name what was
sent come from another world than the requests: another tokenizer, another template, another hash. A request is judged when the next
one ends, as its events may come a little later than its last token.

*Hits*: the cached tokens that a placement counted on, against those that the engine reported for it. Both are means that fade with
`HALF_LIFE_REQUESTS`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from router.core.columns import Columns

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

HALF_LIFE_REQUESTS = 16
_KEEP = 0.5 ** (1 / HALF_LIFE_REQUESTS)


class Evidence(NamedTuple):
    """What speaks for or against the beliefs about one target."""

    untraced_requests: int
    """Requests in a row that left no trace in its events, though they had blocks that were not there before."""
    compared_requests: int
    """Hits compared since the target joined, or `forget`."""
    hit_error: float
    """Expected less actual cached tokens, as a share of the larger: 1, all that was expected was missing; -1, none was expected."""


class BeliefEvidence:
    """The evidence of every target; a slot is a target's number."""

    def __init__(self) -> None:
        self._columns = Columns(untraced=np.int64, compared=np.int64, error_tokens=np.float64, tokens=np.float64)
        self._traces: dict[int, int] = {}
        """Of the request that ended last on each slot, the block to look for."""

    def add_target(self, slot: int) -> None:
        """Make room for a target, with nothing known of it."""
        self._columns.reserve(slot + 1)
        self._columns.reset(slot)
        self._traces.pop(slot, None)

    def ended(self, slot: int, block: int, holds: Callable[[int, int], bool]) -> None:
        """A request ended that must have left this block; `holds` tells whether the one before left its own. O(1)."""
        before = self._traces.get(slot)
        self._traces[slot] = block
        if before is None:
            return
        untraced = self._columns["untraced"]
        untraced[slot] = 0 if holds(slot, before) else untraced[slot] + 1

    def compare(self, slot: int, expected_tokens: int, actual_tokens: int) -> None:
        """An engine told how much it had cached of a prompt. O(1)."""
        larger = max(expected_tokens, actual_tokens)
        if not larger:
            return
        columns = self._columns
        columns["compared"][slot] += 1
        for name, amount in (("error_tokens", expected_tokens - actual_tokens), ("tokens", larger)):
            column: NDArray[np.float64] = columns[name]
            column[slot] = column[slot] * _KEEP + amount

    def forget(self, slot: int) -> None:
        """Begin to compare hits anew. O(1)."""
        for name in ("compared", "error_tokens", "tokens"):
            self._columns[name][slot] = 0

    def of(self, slot: int) -> Evidence:
        """The evidence of one target. O(1)."""
        columns = self._columns
        tokens = columns["tokens"].item(slot)
        return Evidence(
            columns["untraced"].item(slot),
            columns["compared"].item(slot),
            columns["error_tokens"].item(slot) / tokens if tokens else 0.0,
        )

    def __repr__(self) -> str:
        return f"BeliefEvidence({self._columns.slots} slots)"
