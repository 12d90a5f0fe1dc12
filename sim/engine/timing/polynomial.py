"""The formulas of NVIDIA Dynamo's mock engine, for comparison with its simulator."""

from __future__ import annotations

from dataclasses import dataclass

from sim.engine.timing import kernels
from sim.engine.timing.model import KernelTiming


@dataclass(frozen=True)
class PolynomialTiming(KernelTiming):
    """A prefill by its new tokens alone, a decode by the share of the pool that is in use; not fitted to any engine here.

    ``prefill = 4.209989e-7 n² + 1.518344e-2 n + 16.50142`` ms for n new tokens of all sequences, whatever they had cached;
    ``decode = max(1, -25.74 u² + 54.01 u + 5.74)`` ms, u = tokens in KV / tokens in the pool; both divided by `speed`.
    The coefficients are those of `ai-dynamo-runtime` 1.6.1.

    >>> round(PolynomialTiming().prefill_seconds([1000], [5000]), 6)
    0.032106
    """

    request_base_seconds: float = 0.0
    request_token_seconds: float = 0.0
    speed: float = 1.0
    """2: twice as fast."""

    def __post_init__(self) -> None:
        """Check the numbers.

        :raises ValueError: a time is negative, or the speed not positive.
        """
        for name in ("request_base_seconds", "request_token_seconds"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"{name} must be at least 0, not {getattr(self, name)}")
        if not 0 < self.speed < float("inf"):
            raise ValueError(f"speed must be positive, not {self.speed}")
        super().__post_init__()

    def _numbers(self) -> tuple[int, list[float]]:
        prefill = [4.209989e-10, 1.518344e-5, 16.50142e-3]
        decode = [-25.74e-3, 54.01e-3, 5.74e-3, 1e-3]
        numbers = [self.request_base_seconds, self.request_token_seconds, *prefill, *decode]
        return kernels.POLYNOMIAL, [number / self.speed for number in numbers]
