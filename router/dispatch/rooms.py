"""Rooms: the numbers under which a prefill and a decode worker find each other's KV.

SGLang's rules: a room is an integer in [0, 2**63); without another word the prefill rank is `room % ranks`; a request that the
engine splits itself takes the room and those after it.
"""

from __future__ import annotations

import itertools
import secrets

_STRIDE_BITS = 12
_COUNT_BITS = 24
_OWNER_BITS = 63 - _STRIDE_BITS - _COUNT_BITS
STRIDE = 1 << _STRIDE_BITS
"""Rooms that one request has for itself: for the rank's remainder, and for what an engine adds."""


class Rooms:
    """Gives out rooms. Those of one process never meet while fewer than 2**24 are in use; those of two processes only if both drew
    the same 27 bits.

    >>> rooms = Rooms(owner=1)
    >>> rooms.take(rank=2, ranks=3) % 3
    2
    """

    def __init__(self, owner: int | None = None) -> None:
        self._owner = secrets.randbits(_OWNER_BITS) if owner is None else owner
        self._counter = itertools.count()

    def take(self, rank: int, ranks: int) -> int:
        """A room of the prefill rank `rank` of `ranks`. O(1)."""
        count = next(self._counter) % (1 << _COUNT_BITS)
        first = ((self._owner << _COUNT_BITS) | count) << _STRIDE_BITS
        return first + (rank - first) % ranks

    def __repr__(self) -> str:
        return f"Rooms(owner={self._owner})"
