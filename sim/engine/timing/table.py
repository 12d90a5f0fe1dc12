"""Measured step times, interpolated."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

from sim.engine.timing import kernels
from sim.engine.timing.model import KernelTiming

Axis = tuple[float, ...]
Grid = tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class TableTiming(KernelTiming):
    """Two grids of seconds: a prefill by (new tokens, tokens before them), a decode by (sequences, tokens in KV of each).

    Bilinear between the points and beyond them, and never below a grid's smallest value. A batch of several prompts is taken as
    one with the same new tokens and the same work for attention; a decode batch by the mean of its sequences' lengths.

    >>> timing = TableTiming((0, 1000), (0, 1000), ((0.0, 0.0), (1.0, 2.0)), (1,), (0, 100), ((0.25, 0.75),))
    >>> timing.prefill_seconds([500], [500]), timing.decode_seconds(2, 100, 1000)
    (0.75, 0.5)
    """

    prefill_new_tokens: Axis
    """Ascending, n points."""
    prefill_prefix_tokens: Axis
    """Ascending, m points."""
    prefill_table_seconds: Grid
    """n rows of m."""
    decode_sequences: Axis
    decode_context_tokens: Axis
    decode_table_seconds: Grid
    request_base_seconds: float = 0.0
    request_token_seconds: float = 0.0
    speed: float = 1.0
    """2: twice as fast."""

    def __post_init__(self) -> None:
        """Check the grids.

        :raises ValueError: an axis does not ascend, a grid has another shape than its axes, a time is negative, or the speed not
            positive.
        """
        for name in ("prefill_new_tokens", "prefill_prefix_tokens", "decode_sequences", "decode_context_tokens"):
            _check_axis(name, getattr(self, name))
        shape = (len(self.prefill_new_tokens), len(self.prefill_prefix_tokens))
        _check_grid("prefill_table_seconds", self.prefill_table_seconds, *shape)
        shape = (len(self.decode_sequences), len(self.decode_context_tokens))
        _check_grid("decode_table_seconds", self.decode_table_seconds, *shape)
        _check_grid("request_base_seconds", ((self.request_base_seconds,),), 1, 1)
        _check_grid("request_token_seconds", ((self.request_token_seconds,),), 1, 1)
        if not 0 < self.speed < float("inf"):
            raise ValueError(f"speed must be positive, not {self.speed}")
        super().__post_init__()

    def _numbers(self) -> tuple[int, list[float]]:
        numbers = [self.request_base_seconds / self.speed, self.request_token_seconds / self.speed]
        numbers += self._grid(self.prefill_new_tokens, self.prefill_prefix_tokens, self.prefill_table_seconds)
        numbers += self._grid(self.decode_sequences, self.decode_context_tokens, self.decode_table_seconds)
        return kernels.TABLE, numbers

    def _grid(self, rows: Axis, columns: Axis, values: Grid) -> list[float]:
        return [len(rows), len(columns), *rows, *columns, *(value / self.speed for row in values for value in row)]


def _check_axis(name: str, axis: Axis) -> None:
    if not axis or any(left >= right for left, right in itertools.pairwise(axis)):
        raise ValueError(f"{name} must ascend and have a point, not {list(axis)}")


def _check_grid(name: str, grid: Grid, rows: int, columns: int) -> None:
    if [len(row) for row in grid] != [columns] * rows:
        raise ValueError(f"{name} must have {rows} rows of {columns} values")
    for value in itertools.chain.from_iterable(grid):
        if not 0 <= value < float("inf"):
            raise ValueError(f"{name} must be at least 0, not {value}")
