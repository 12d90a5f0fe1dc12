"""How long a step takes."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence


class TimingModel(Protocol):
    """Seconds from the shape of a step."""

    def prefill_seconds(self, new_tokens: Sequence[int], prefix_tokens: Sequence[int]) -> float:
        """A prefill of `new_tokens[i]` tokens after `prefix_tokens[i]` in KV already, per sequence."""

    def decode_seconds(self, sequences: int, kv_tokens: int) -> float:
        """One token for each sequence, `kv_tokens` in their KV together."""


@dataclass(frozen=True)
class StepTiming:
    """A linear model of step times. The defaults are about those of an 8B model (bf16) on one H200.

    ``prefill = max(floor, base + new / rate + context · Σ newᵢ (prefixᵢ + newᵢ / 2))``;
    ``decode = base + per sequence · sequences + per token · kv_tokens``; both divided by `speed`.

    >>> timing = StepTiming(speed=2.0)
    >>> round(StepTiming().decode_seconds(8, 8192) / timing.decode_seconds(8, 8192), 6)
    2.0
    """

    prefill_floor_seconds: float = 7.6e-3
    prefill_base_seconds: float = 0.7e-3
    prefill_tokens_per_second: float = 44_000.0
    prefill_context_seconds: float = 8.5e-10
    """Per new token and token before it: attention."""
    decode_base_seconds: float = 4.9e-3
    decode_sequence_seconds: float = 1.3e-5
    decode_kv_token_seconds: float = 3.0e-8
    speed: float = 1.0
    """2: twice as fast."""

    def __post_init__(self) -> None:
        """Check the numbers.

        :raises ValueError: a rate is not positive, or a time negative.
        """
        for item in fields(self):
            value = getattr(self, item.name)
            rate = item.name in ("prefill_tokens_per_second", "speed")
            if value < 0 or (rate and value == 0):
                raise ValueError(f"{item.name} must be {'positive' if rate else 'at least 0'}, not {value}")

    def prefill_seconds(self, new_tokens: Sequence[int], prefix_tokens: Sequence[int]) -> float:
        """See `TimingModel`. O(sequences)."""
        pairs = sum(new * (prefix + new / 2) for new, prefix in zip(new_tokens, prefix_tokens, strict=True))
        work = sum(new_tokens) / self.prefill_tokens_per_second + self.prefill_context_seconds * pairs
        return max(self.prefill_floor_seconds, self.prefill_base_seconds + work) / self.speed

    def decode_seconds(self, sequences: int, kv_tokens: int) -> float:
        """See `TimingModel`. O(1)."""
        grown = self.decode_sequence_seconds * sequences + self.decode_kv_token_seconds * kv_tokens
        return (self.decode_base_seconds + grown) / self.speed
