"""The formulas, compiled. A model is its kind and its numbers; times are seconds.

A prefill step is given by sums over its sequences, which compute newᵢ tokens after prefixᵢ in KV already:
new = Σ newᵢ; pairs = Σ newᵢ (prefixᵢ + newᵢ/2), the pairs that attention computes; context = Σ (prefixᵢ + newᵢ).
"""

from __future__ import annotations

from numba import float64, int64, njit, types

STEP, POLYNOMIAL, TABLE = range(3)

REQUEST_BASE, REQUEST_TOKEN = range(2)
"""Where each kind has its time per request: at the front. The rest follows, per kind."""

(
    PREFILL_FLOOR,
    PREFILL_BASE,
    PREFILL_TOKEN,
    PREFILL_PAIR,
    PREFILL_SEQUENCE,
    PREFILL_CONTEXT,
    DECODE_BASE,
    DECODE_SEQUENCE,
    DECODE_KV_TOKEN,
    PREFILL_GRAPH_TOKENS,
) = range(2, 12)

PREFILL_SQUARE, PREFILL_LINEAR, PREFILL_CONSTANT, DECODE_SQUARE, DECODE_LINEAR, DECODE_CONSTANT, DECODE_FLOOR = range(
    2, 9
)

PREFILL_GRID = 2
"""A grid: its lengths, the two axes, the values row by row. The prefill's grid first, the decode's after it."""

_NUMBERS = types.Array(float64, 1, "C", readonly=True)


@njit(int64(int64, int64), cache=True, nogil=True)
def padded_tokens(new, most):  # type: ignore[no-untyped-def]
    """What a prefill of `new` tokens computes where graphs are captured for up to `most`: SGLang's next captured size."""
    if new > most:
        return new
    step = (
        4
        if new <= 32
        else 16
        if new <= 256
        else 32
        if new <= 512
        else 64
        if new <= 1024
        else 256
        if new <= 4096
        else 512
    )
    return (new + step - 1) // step * step


@njit(float64(_NUMBERS, int64, int64, float64), cache=True, nogil=True)
def _share(numbers, axis, length, value):  # type: ignore[no-untyped-def]
    """Where `value` lies on an axis: the index of the point before it, plus the way to the next; linear beyond the ends."""
    if length == 1:
        return 0.0
    low = 0
    while low < length - 2 and numbers[axis + low + 1] <= value:
        low += 1
    start, end = numbers[axis + low], numbers[axis + low + 1]
    return low + (value - start) / (end - start)


@njit(int64(int64, float64), cache=True, nogil=True)
def _cell(length, share):  # type: ignore[no-untyped-def]
    """The point before a place on an axis."""
    return max(0, min(length - 2, int(share)))


@njit(float64(_NUMBERS, int64, float64, float64), cache=True, nogil=True)
def _bilinear(numbers, grid, row, column):  # type: ignore[no-untyped-def]
    """A grid's value at (row, column): linear in both between points and beyond them, never below the smallest value."""
    rows, columns = int(numbers[grid]), int(numbers[grid + 1])
    row_axis, column_axis = grid + 2, grid + 2 + rows
    values = column_axis + columns
    down, right = _share(numbers, row_axis, rows, row), _share(numbers, column_axis, columns, column)
    upper, left = _cell(rows, down), _cell(columns, right)
    lower, other = min(upper + 1, rows - 1), min(left + 1, columns - 1)
    down -= upper
    right -= left
    above = numbers[values + upper * columns + left] * (1 - right) + numbers[values + upper * columns + other] * right
    below = numbers[values + lower * columns + left] * (1 - right) + numbers[values + lower * columns + other] * right
    least = numbers[values]
    for index in range(1, rows * columns):
        least = min(least, numbers[values + index])
    return max(least, above * (1 - down) + below * down)


@njit(int64(_NUMBERS, int64), cache=True, nogil=True)
def _grid_end(numbers, grid):  # type: ignore[no-untyped-def]
    rows, columns = int(numbers[grid]), int(numbers[grid + 1])
    return grid + 2 + rows + columns + rows * columns


@njit(float64(int64, _NUMBERS, int64, float64, int64, int64), cache=True, nogil=True)
def prefill_seconds(kind, numbers, new, pairs, context, sequences):  # type: ignore[no-untyped-def]
    """A prefill step; see above."""
    if kind == STEP:
        computed = padded_tokens(new, int(numbers[PREFILL_GRAPH_TOKENS]))
        work = numbers[PREFILL_BASE] + numbers[PREFILL_TOKEN] * computed + numbers[PREFILL_PAIR] * pairs
        return max(
            numbers[PREFILL_FLOOR], work + numbers[PREFILL_SEQUENCE] * sequences + numbers[PREFILL_CONTEXT] * context
        )
    if kind == POLYNOMIAL:
        return numbers[PREFILL_SQUARE] * new * new + numbers[PREFILL_LINEAR] * new + numbers[PREFILL_CONSTANT]
    return _bilinear(numbers, PREFILL_GRID, float(new), pairs / new - new / 2)


@njit(float64(int64, _NUMBERS, int64, int64, int64), cache=True, nogil=True)
def decode_seconds(kind, numbers, sequences, kv_tokens, capacity_tokens):  # type: ignore[no-untyped-def]
    """One token for each of the sequences, which have `kv_tokens` in KV together, of `capacity_tokens` in the pool."""
    if kind == STEP:
        return numbers[DECODE_BASE] + numbers[DECODE_SEQUENCE] * sequences + numbers[DECODE_KV_TOKEN] * kv_tokens
    if kind == POLYNOMIAL:
        used = kv_tokens / capacity_tokens
        grown = numbers[DECODE_SQUARE] * used * used + numbers[DECODE_LINEAR] * used + numbers[DECODE_CONSTANT]
        return max(numbers[DECODE_FLOOR], grown)
    return _bilinear(numbers, _grid_end(numbers, PREFILL_GRID), float(sequences), kv_tokens / sequences)


@njit(float64(int64, _NUMBERS, int64), cache=True, nogil=True)
def request_seconds(kind, numbers, prompt_tokens):  # type: ignore[no-untyped-def]
    """What a request takes outside of steps."""
    return numbers[REQUEST_BASE] + numbers[REQUEST_TOKEN] * prompt_tokens
