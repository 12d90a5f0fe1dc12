"""A workload as columns."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from sim.traces.errors import TraceError

if TYPE_CHECKING:
    from numpy.typing import NDArray

ALONE = -1
"""`previous` of a request that waits for no other."""

_DTYPES = {
    "arrival_seconds": np.float64,
    "input_tokens": np.int64,
    "output_tokens": np.int64,
    "blocks": np.uint64,
    "first_block": np.int64,
    "previous": np.int64,
    "delay_seconds": np.float64,
}


@dataclass(frozen=True, eq=False)
class Trace:
    """n requests in order of arrival.

    Request i's content ids are ``blocks[first_block[i]:first_block[i + 1]]``. They name its leading tokens, `block_tokens` each
    (the last may name fewer): equal leading ids are equal leading tokens. Ids beyond the prompt name the output; what no id names
    is the request's own.
    """

    name: str
    arrival_seconds: NDArray[np.float64]
    """Shape (n,), ascending, the first is at or after 0. Of a request that follows another one: when it came in the trace."""
    input_tokens: NDArray[np.int64]
    """Shape (n,), at least 1."""
    output_tokens: NDArray[np.int64]
    """Shape (n,), at least 1."""
    block_tokens: int
    """Tokens that one id names: 512 in Mooncake's traces, 16 in Qwen-Bailian's."""
    blocks: NDArray[np.uint64]
    """Shape (m,): the ids of all requests, one after another."""
    first_block: NDArray[np.int64]
    """Shape (n + 1,)."""
    previous: NDArray[np.int64]
    """Shape (n,): the request after whose end this one is sent, an earlier row; `ALONE`: it is sent at `arrival_seconds`."""
    delay_seconds: NDArray[np.float64]
    """Shape (n,): from that end to the sending."""

    def __post_init__(self) -> None:
        """Have every column in its type, and check them.

        :raises TraceError: a column contradicts the description above; it names the column and the first wrong row.
        """
        for column, dtype in _DTYPES.items():
            object.__setattr__(self, column, np.ascontiguousarray(getattr(self, column), dtype))
        self._check()

    @classmethod
    def open_loop(
        cls,
        name: str,
        arrival_seconds: NDArray[np.float64],
        input_tokens: NDArray[np.int64],
        output_tokens: NDArray[np.int64],
        *,
        block_tokens: int = 512,
        blocks: NDArray[np.uint64] | None = None,
        first_block: NDArray[np.int64] | None = None,
    ) -> Trace:
        """A trace whose requests are all sent at their time; without ids, nothing is shared."""
        rows = len(arrival_seconds)
        return cls(
            name=name,
            arrival_seconds=arrival_seconds,
            input_tokens=input_tokens,
            output_tokens=output_tokens,
            block_tokens=block_tokens,
            blocks=np.zeros(0, np.uint64) if blocks is None else blocks,
            first_block=np.zeros(rows + 1, np.int64) if first_block is None else first_block,
            previous=np.full(rows, ALONE),
            delay_seconds=np.zeros(rows),
        )

    def __len__(self) -> int:
        return len(self.arrival_seconds)

    def __repr__(self) -> str:
        return (
            f"Trace({self.name!r}: {len(self):,} requests in {self.span_seconds:,.0f} s, "
            f"{len(self.blocks):,} ids of {self.block_tokens} tokens)"
        )

    @property
    def span_seconds(self) -> float:
        """From the first arrival to the last."""
        return float(self.arrival_seconds[-1] - self.arrival_seconds[0]) if len(self) else 0.0

    @property
    def block_counts(self) -> NDArray[np.int64]:
        """Ids of each request, shape (n,)."""
        return np.diff(self.first_block)

    @property
    def has_sessions(self) -> bool:
        """Whether any request waits for another one's end."""
        return bool((self.previous != ALONE).any())

    def ids(self, request: int) -> NDArray[np.uint64]:
        """One request's content ids: a view."""
        return self.blocks[self.first_block[request] : self.first_block[request + 1]]

    def with_columns(self, **columns: Any) -> Trace:
        """A copy with other columns (or another name).

        :raises TraceError: see `Trace`.
        """
        return replace(self, **columns)

    def without_sessions(self) -> Trace:
        """The same requests, all sent at their time."""
        return self.with_columns(previous=np.full(len(self), ALONE), delay_seconds=np.zeros(len(self)))

    def take(self, rows: NDArray[np.int64]) -> Trace:
        """These requests alone, in the order of the given ascending rows.

        A request whose predecessor is left out waits for the closest earlier one of its session that is kept, or else becomes one
        that is sent at its time. O(n + m).
        """
        previous = _previous_among(self.previous, rows)
        counts = self.block_counts[rows]
        return self.with_columns(
            arrival_seconds=self.arrival_seconds[rows],
            input_tokens=self.input_tokens[rows],
            output_tokens=self.output_tokens[rows],
            blocks=self.blocks[slices(self.first_block[rows], counts)],
            first_block=offsets(counts),
            previous=previous,
            delay_seconds=np.where(previous == ALONE, 0.0, self.delay_seconds[rows]),
        )

    def _check(self) -> None:
        rows = len(self)
        for column in ("input_tokens", "output_tokens", "previous", "delay_seconds", "arrival_seconds"):
            if getattr(self, column).shape != (rows,):
                raise TraceError(f"has the shape {getattr(self, column).shape}, not {(rows,)}", field=column)
        if self.block_tokens < 1:
            raise TraceError(f"must be at least 1, not {self.block_tokens}", field="block_tokens")
        if (
            self.first_block.shape != (rows + 1,)
            or self.first_block[0] != 0
            or self.first_block[-1] != len(self.blocks)
        ):
            raise TraceError("must go from 0 to the number of blocks, in one step per request", field="first_block")
        arrival = self.arrival_seconds
        self._refuse("first_block", np.diff(self.first_block) < 0, "the next request's is before it")
        self._refuse("arrival_seconds", ~np.isfinite(arrival) | (arrival < 0), "must be at least 0 and finite")
        self._refuse("arrival_seconds", np.diff(arrival, prepend=0.0) < 0, "the request before it comes later")
        self._refuse("input_tokens", self.input_tokens < 1, "must be at least 1")
        self._refuse("output_tokens", self.output_tokens < 1, "must be at least 1")
        late = (self.previous < ALONE) | (self.previous >= np.arange(rows))
        self._refuse("previous", late, "must be an earlier request, or -1")
        delay = self.delay_seconds
        self._refuse("delay_seconds", ~np.isfinite(delay) | (delay < 0), "must be at least 0 and finite")

    def _refuse(self, column: str, wrong: NDArray[np.bool_], reason: str) -> None:
        if wrong.any():
            row = int(np.argmax(wrong))
            raise TraceError(f"is {getattr(self, column)[row]}: {reason}", path=self.name, row=row, field=column)


def offsets(counts: NDArray[np.int64] | NDArray[np.bool_]) -> NDArray[np.int64]:
    """Where each run begins, and the end of the last: shape (n + 1,).

    >>> offsets(np.array([2, 0, 3])).tolist()
    [0, 2, 2, 5]
    """
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(counts, dtype=np.int64)])


def slices(starts: NDArray[np.int64], counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """The indices of many runs, one after another. O(their sum).

    >>> slices(np.array([10, 20]), np.array([3, 2])).tolist()
    [10, 11, 12, 20, 21]
    """
    within = np.arange(int(counts.sum())) - np.repeat(offsets(counts)[:-1], counts)
    return np.repeat(starts, counts) + within


def _previous_among(previous: NDArray[np.int64], rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Predecessors as positions in `rows`: of each row, its nearest ancestor that is kept. O(n · longest run left out)."""
    place = np.full(len(previous) + 1, ALONE)  # the last entry is that of ALONE itself
    place[rows] = np.arange(len(rows))
    ancestor = previous[rows]
    while ((ancestor != ALONE) & (place[ancestor] == ALONE)).any():
        left_out = (ancestor != ALONE) & (place[ancestor] == ALONE)
        ancestor = np.where(left_out, previous[ancestor], ancestor)
    return place[ancestor]
