"""What a timing model answers, and what all of them share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import numpy as np

from sim.engine.timing import kernels

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray


class TimingModel(Protocol):
    """Seconds from the shape of a step."""

    def prefill_seconds(self, new_tokens: Sequence[int], prefix_tokens: Sequence[int]) -> float:
        """A prefill of `new_tokens[i]` tokens after `prefix_tokens[i]` in KV already, per sequence."""

    def decode_seconds(self, sequences: int, kv_tokens: int, capacity_tokens: int) -> float:
        """One token for each sequence, `kv_tokens` in their KV together, of `capacity_tokens` in the pool."""

    def request_seconds(self, prompt_tokens: int) -> float:
        """What a request takes outside of steps, before the scheduler sees it."""

    def parameters(self) -> tuple[int, NDArray[np.float64]]:
        """The model as `kernels` take it: its kind, and its numbers, shape (k,), read-only."""


class KernelTiming:
    """A `TimingModel` whose formulas are the kernels'."""

    def _numbers(self) -> tuple[int, list[float]]:
        raise NotImplementedError

    def __post_init__(self) -> None:
        """Lay the numbers out for the kernels."""
        kind, numbers = self._numbers()
        array = np.array(numbers, np.float64)
        array.flags.writeable = False
        object.__setattr__(self, "_laid_out", (kind, array))  # the models are frozen dataclasses

    def parameters(self) -> tuple[int, NDArray[np.float64]]:
        """See `TimingModel`. O(1)."""
        laid_out: tuple[int, NDArray[np.float64]] = self._laid_out  # type: ignore[attr-defined]
        return laid_out

    def prefill_seconds(self, new_tokens: Sequence[int], prefix_tokens: Sequence[int]) -> float:
        """See `TimingModel`. O(sequences)."""
        pairs = sum(new * (prefix + new / 2) for new, prefix in zip(new_tokens, prefix_tokens, strict=True))
        new, context = sum(new_tokens), sum(new_tokens) + sum(prefix_tokens)
        return float(kernels.prefill_seconds(*self.parameters(), new, pairs, context, len(new_tokens)))

    def decode_seconds(self, sequences: int, kv_tokens: int, capacity_tokens: int) -> float:
        """See `TimingModel`. O(1)."""
        return float(kernels.decode_seconds(*self.parameters(), sequences, kv_tokens, capacity_tokens))

    def request_seconds(self, prompt_tokens: int) -> float:
        """See `TimingModel`. O(1)."""
        return float(kernels.request_seconds(*self.parameters(), prompt_tokens))
