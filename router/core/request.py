"""What is asked of the scheduler."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class Part(enum.StrEnum):
    """What a target does of a request: all of it, or one side of a pair."""

    WHOLE = "whole"
    PREFILL = "prefill"
    DECODE = "decode"


class Target(NamedTuple):
    """One place that a request can be sent to: a data-parallel rank of a worker."""

    worker_id: str
    rank: int = 0

    def __str__(self) -> str:
        return f"{self.worker_id}/{self.rank}"


@dataclass(slots=True, eq=False)
class RoutingRequest:
    """A request, as far as its placement depends on it. Not to be changed, though not frozen: that would cost a microsecond."""

    request_id: str
    """Unique among the requests in flight."""
    hashes: NDArray[np.uint64]
    """Sequence hashes of the prompt's full blocks, shape (blocks,)."""
    prompt_tokens: int
    expected_output_tokens: int | None = None
    excluded: frozenset[Target] = frozenset()
    """Targets that already failed this request."""
    pinned: Target | None = None
    """The only target that may take it."""
    model: str | None = None
    """Only targets that serve this model may take it. None: any."""
    part: Part = Part.WHOLE
    """Only targets that do this part may take it."""
    opaque: bool = False
    """Nothing is seen of it before it is over: its silence says nothing of its target."""
