"""From the rows of a file to a `Trace`."""

from __future__ import annotations

import logging
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np

from sim.traces.errors import TraceError
from sim.traces.jsonlines import line_of
from sim.traces.session_kernels import fill_times
from sim.traces.trace import ALONE, Trace, offsets, slices

if TYPE_CHECKING:
    from collections.abc import Collection, Hashable, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

log = logging.getLogger(__name__)


class Builder:
    """Takes the rows of a file piece by piece, in the file's order; `build` sorts them by arrival.

    What had to be guessed is counted, and said in the log once.
    """

    def __init__(self, path: Path, block_tokens: int, *, header_lines: int = 0) -> None:
        self.path, self.block_tokens, self.header_lines = path, block_tokens, header_lines
        self._seconds: list[NDArray[np.float64]] = []
        self._input: list[NDArray[np.int64]] = []
        self._output: list[NDArray[np.int64]] = []
        self._counts: list[NDArray[np.int64]] = []
        self._blocks: list[NDArray[np.uint64]] = []
        self._delay: list[NDArray[np.float64]] = []
        self._previous: list[NDArray[np.int64]] = []
        self._latest: dict[Hashable, int] = {}
        self._rows = 0
        self._unknown, self._several = 0, 0

    def __len__(self) -> int:
        return self._rows

    def __repr__(self) -> str:
        return f"<Builder {self.path}: {self._rows} rows>"

    def add(
        self,
        seconds: Sequence[float],
        input_tokens: Sequence[int],
        output_tokens: Sequence[int],
        ids: Sequence[Sequence[int]],
        *,
        keys: Sequence[Hashable | None],
        after: Sequence[Collection[Hashable]],
        delay_seconds: Sequence[float],
    ) -> None:
        """Add rows. An arrival or a delay of NaN is one that the file does not tell.

        A row follows the latest earlier row that has one of the keys in its `after`.

        :raises TraceError: an id is no unsigned 64-bit number.
        """
        counts = np.fromiter(map(len, ids), np.int64, len(ids))
        try:
            self._blocks.append(np.fromiter(chain.from_iterable(ids), np.uint64, int(counts.sum())))
        except OverflowError:
            wrong = np.array([any(not 0 <= one < 2**64 for one in row) for row in ids])
            self._refuse(wrong, "hash_ids", "must be unsigned 64-bit numbers", first_row=self._rows)
        self._counts.append(counts)
        self._seconds.append(np.array(seconds, np.float64))
        self._input.append(np.array(input_tokens, np.int64))
        self._output.append(np.array(output_tokens, np.int64))
        self._delay.append(np.array(delay_seconds, np.float64))
        self._previous.append(self._link(keys, after))
        self._rows += len(counts)

    def build(self) -> Trace:
        """The trace, its first arrival at 0. Requests that arrive at the same time keep the file's order. O(n log n + m).

        :raises TraceError: there are no rows, or a row cannot be part of a trace; it names the line.
        """
        if not self._rows:
            raise TraceError("has no requests", path=self.path)
        seconds, delay = np.concatenate(self._seconds), np.concatenate(self._delay)
        previous = np.concatenate(self._previous)
        self._fill_times(previous, seconds, delay)
        input_tokens, output_tokens = np.concatenate(self._input), self._at_least_one(np.concatenate(self._output))
        self._refuse(input_tokens < 1, "input tokens", "must be at least 1")
        self._refuse(~np.isfinite(seconds), "timestamp", "must be finite")
        self._refuse(~((delay >= 0) & np.isfinite(delay)), "delay", "must be at least 0 and finite")
        self._say_guesses()
        counts = np.concatenate(self._counts)
        order = np.argsort(seconds, kind="stable")
        place = np.empty(self._rows + 1, np.int64)
        place[order], place[ALONE] = np.arange(self._rows), ALONE
        return Trace(
            name=self.path.stem,
            arrival_seconds=np.round(seconds[order] - seconds[order[0]], 9),
            input_tokens=input_tokens[order],
            output_tokens=output_tokens[order],
            block_tokens=self.block_tokens,
            blocks=np.concatenate(self._blocks)[slices(offsets(counts)[:-1][order], counts[order])],
            first_block=offsets(counts[order]),
            previous=place[previous[order]],
            delay_seconds=delay[order],
        )

    def line(self, row: int) -> int:
        """The file's line that a row came from."""
        return line_of(self.path, row + self.header_lines)

    def _link(self, keys: Sequence[Hashable | None], after: Sequence[Collection[Hashable]]) -> NDArray[np.int64]:
        """Each row's predecessor, or `ALONE`."""
        previous = np.full(len(keys), ALONE)
        for row, (key, wanted) in enumerate(zip(keys, after, strict=True)):
            if wanted:
                previous[row] = max(self._latest.get(one, ALONE) for one in wanted)
                self._unknown += bool(previous[row] == ALONE and key not in wanted)
                self._several += len(wanted) > 1
            if key is not None:
                self._latest[key] = self._rows + row
        return previous

    def _fill_times(
        self, previous: NDArray[np.int64], seconds: NDArray[np.float64], delay: NDArray[np.float64]
    ) -> None:
        row = fill_times(previous, seconds, delay)
        if row >= 0:
            alone = previous[row] == ALONE
            reason = "is missing, and there is no earlier turn" if alone else "is before the turn before it"
            raise TraceError(reason, path=self.path, line=self.line(row), field="timestamp")

    def _at_least_one(self, output_tokens: NDArray[np.int64]) -> NDArray[np.int64]:
        """Every request brings a token here: the prefill's."""
        self._refuse(output_tokens < 0, "output tokens", "must be at least 0")
        if empty := int((output_tokens == 0).sum()):
            log.warning("%s: %d requests without output tokens are taken to have one", self.path, empty)
        return np.maximum(output_tokens, 1)

    def _say_guesses(self) -> None:
        if self._unknown:
            log.warning("%s: %d requests follow one that is not there; sent at their time", self.path, self._unknown)
        if self._several:
            log.warning("%s: %d requests wait for several; they follow the latest of them", self.path, self._several)

    def _refuse(self, wrong: NDArray[np.bool_], field: str, reason: str, *, first_row: int = 0) -> None:
        if wrong.any():
            line = self.line(first_row + int(np.argmax(wrong)))
            raise TraceError(reason, path=self.path, line=line, field=field)
