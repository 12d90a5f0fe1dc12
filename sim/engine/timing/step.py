"""Step times linear in what a step computes and reads."""

from __future__ import annotations

from dataclasses import dataclass, fields

from sim.engine.timing import kernels
from sim.engine.timing.model import KernelTiming


@dataclass(frozen=True)
class StepTiming(KernelTiming):
    """A linear model of step times. The defaults are about those of an 8B model (bf16) on one H200.

    With newᵢ tokens computed after prefixᵢ in KV already, for each sequence of a prefill::

        prefill = max(floor, base + token · padded(Σ newᵢ) + pair · Σ newᵢ (prefixᵢ + newᵢ/2)
                             + sequence · sequences + context · Σ (prefixᵢ + newᵢ))
        decode  = base + sequence · sequences + kv_token · tokens in their KV
        request = base + token · prompt tokens

    and all of it divided by `speed`. `padded` is the next size of prefill for which SGLang captured a CUDA graph: in steps of 4
    tokens up to 32, of 16 up to 256, 32 up to 512, 64 up to 1024, 256 up to 4096, and 512 up to `prefill_graph_tokens`.

    >>> timing = StepTiming(speed=2.0)
    >>> round(StepTiming().decode_seconds(8, 8192, 65536) / timing.decode_seconds(8, 8192, 65536), 6)
    2.0
    """

    prefill_floor_seconds: float = 7.6e-3
    prefill_base_seconds: float = 1.8e-3
    prefill_token_seconds: float = 2.25e-5
    prefill_pair_seconds: float = 8.7e-10
    """Per new token and token before it: attention."""
    prefill_sequence_seconds: float = 0.0
    prefill_context_seconds: float = 3.0e-8
    """Per token in KV after the step."""
    prefill_graph_tokens: int = 8192
    """Prefills of up to so many tokens run as CUDA graphs of a captured size; 0: none do."""
    decode_base_seconds: float = 4.9e-3
    decode_sequence_seconds: float = 1.3e-5
    decode_kv_token_seconds: float = 3.0e-8
    request_base_seconds: float = 6.5e-3
    request_token_seconds: float = 1.3e-7
    speed: float = 1.0
    """2: twice as fast."""

    def __post_init__(self) -> None:
        """Check the numbers.

        :raises ValueError: a time is negative, or the speed not positive.
        """
        for item in fields(self):
            value = getattr(self, item.name)
            if not 0 <= value < float("inf"):
                raise ValueError(f"{item.name} must be at least 0, not {value}")
        if self.speed == 0:
            raise ValueError("speed must be positive, not 0")
        super().__post_init__()

    def _numbers(self) -> tuple[int, list[float]]:
        numbers = [
            self.request_base_seconds,
            self.request_token_seconds,
            self.prefill_floor_seconds,
            self.prefill_base_seconds,
            self.prefill_token_seconds,
            self.prefill_pair_seconds,
            self.prefill_sequence_seconds,
            self.prefill_context_seconds,
            self.decode_base_seconds,
            self.decode_sequence_seconds,
            self.decode_kv_token_seconds,
        ]
        return kernels.STEP, [*(number / self.speed for number in numbers), float(self.prefill_graph_tokens)]
