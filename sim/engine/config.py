"""What an engine is made of: SGLang's options, under SGLang's meaning."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import numpy as np

from sim.engine.timing import StepTiming

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from sim.engine.timing import TimingModel

RESERVED_INPUT_TOKENS = 5
"""SGLang keeps so many tokens of the longest sequence from the input."""

FIXED_LENGTHS_KNOWN = (0, 5, 22)
"""Since this version the scheduler uses what it knows of lengths: a request whose token in flight is its last by length is not
decoded once more, one that ignores EOS reserves its whole output, and prefixes that the queue waits for are refreshed."""

LEAVING_NOTICED_AT_ONCE = (0, 5, 23)
"""Since this version a request that left opens admission at once; before, at the next decode step that was planned."""


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """SGLang's options, under SGLang's meaning."""

    capacity_tokens: int = 262_144
    page_size: int = 16
    chunked_prefill_tokens: int = 8192
    max_prefill_tokens: int = 16_384
    host_tokens: int = 0
    """Of a second tier in host memory, HiCache's; 0: none."""
    load_back_token_seconds: float = 2.5e-6
    """From there to the device: 128 KiB a token of an 8B model over 52 GB/s, PCIe 5 as measured on an H100."""
    max_running_requests: int | None = None
    """None: half the capacity in tokens, at most 2048."""
    context_length: int = 131_072
    schedule_policy: Literal["fcfs", "lpm"] = "fcfs"
    """The order of the queue: as they came, or the longest cached prefix first."""
    enable_mixed_chunk: bool = False
    """Running requests decode along with a prefill instead of waiting for it."""
    overlap_schedule: bool = False
    """A step is planned and launched while the one before it runs: with the requests and the memory of that moment."""
    decode_log_interval: int = 40
    """Cache changes are published every so many decode steps."""
    load_interval: int = 15
    """Load is reported after so many decode steps without a report."""
    prefill_decode_interval: int = 0
    """Decode steps to run between two prefills; 0: a prefill stalls all decodes."""
    version: str = "0.5.23"
    """Whose scheduler this is: see `FIXED_LENGTHS_KNOWN` and `LEAVING_NOTICED_AT_ONCE`."""
    record_changes: bool = True
    timing: TimingModel = field(default_factory=StepTiming)
    vocabulary: NDArray[np.uint32] = field(default_factory=lambda: np.arange(1000, 2000, dtype=np.uint32))
    """Token ids that outputs are drawn from."""
    eos_token: int = 2
    eos_after_tokens: int | None = None
    """Outputs end by themselves after so many tokens; None: never."""
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the numbers.

        :raises ValueError: a number is out of range (the message names it).
        """
        for name in ("page_size", "max_prefill_tokens", "decode_log_interval", "load_interval"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.chunked_prefill_tokens < self.page_size:
            raise ValueError(f"chunked_prefill_tokens must be at least one page, not {self.chunked_prefill_tokens}")
        if self.capacity_tokens < self.page_size:
            raise ValueError(f"capacity_tokens must be at least one page, not {self.capacity_tokens}")
        for name in ("host_tokens", "load_back_token_seconds"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be at least 0, not {getattr(self, name)}")
        if self.max_running_requests is not None and self.max_running_requests < 1:
            raise ValueError(f"max_running_requests must be at least 1, not {self.max_running_requests}")
        if self.eos_after_tokens is not None and self.eos_after_tokens < 1:
            raise ValueError(f"eos_after_tokens must be at least 1, not {self.eos_after_tokens}")
        if self.schedule_policy not in ("fcfs", "lpm"):
            raise ValueError(f"schedule_policy must be fcfs or lpm, not {self.schedule_policy!r}")
        if self.max_input_tokens < 1:
            raise ValueError("capacity_tokens and context_length leave no room for a prompt")
        _ = self.release

    @property
    def release(self) -> tuple[int, ...]:
        """The version's numbers.

        :raises ValueError: it has none.
        """
        try:
            return tuple(int(part) for part in self.version.split(".")[:3])
        except ValueError:
            raise ValueError(f"version must be like 0.5.23, not {self.version!r}") from None

    @property
    def running_limit(self) -> int:
        """Requests that may decode at once."""
        if self.max_running_requests is not None:
            return self.max_running_requests
        return max(1, min(2048, self.capacity_tokens // 2))

    @property
    def max_sequence_tokens(self) -> int:
        """Prompt and output together are shorter than this."""
        pool_tokens = self.capacity_tokens // self.page_size * self.page_size
        return min(self.context_length, pool_tokens) - 1

    @property
    def max_input_tokens(self) -> int:
        """A prompt must be shorter than this."""
        return self.max_sequence_tokens - RESERVED_INPUT_TOKENS
