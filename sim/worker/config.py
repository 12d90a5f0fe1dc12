"""A fake worker's options."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from sim import tinymodel
from sim.engine import EngineConfig, StepTiming, TransferTiming
from sim.worker.wire import Dialect

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from sim.engine import TimingModel

DEFAULT_CONTEXT_LENGTH = 4096
"""For a model folder that does not say."""


@dataclass(frozen=True, kw_only=True)
class WorkerConfig:
    """SGLang's options under SGLang's names, and the model's."""

    host: str = "127.0.0.1"
    port: int = 0
    """0: any free one."""
    model_path: Path = tinymodel.PATH
    served_model_name: str | None = None
    page_size: int = 16
    max_total_tokens: int = 65_536
    """KV pool of each rank."""
    chunked_prefill_size: int = 8192
    max_running_requests: int | None = None
    schedule_policy: Literal["fcfs", "lpm"] = "fcfs"
    enable_mixed_chunk: bool = False
    disable_overlap_schedule: bool = False
    dp_size: int = 1
    kv_events_port: int | None = None
    """Of rank 0, the next ranks follow; 0: no events; None: any free ones. The same goes for the two ports below."""
    replay_port: int | None = None
    load_port: int | None = None
    topic: str = ""
    decode_log_interval: int = 40
    context_length: int | None = None
    """None: what the model's config says."""
    version: str = "0.5.23"
    event_format: Literal["auto", "array", "map"] = "auto"
    """auto: as `version` has it."""
    incremental_streaming_output: bool = False
    skip_tokenizer_init: bool = False
    enable_cache_report: bool = False
    """Cached tokens in OpenAI's usage."""
    is_embedding: bool = False
    """It makes embeddings, and generates nothing."""
    enable_lora: bool = False
    lora_paths: tuple[str, ...] = ()
    """`NAME=PATH` each: loaded from the start."""
    expert_distribution_recorder_mode: str | None = None
    tool_call_parser: str | None = None
    """Only said, of itself; so the next."""
    reasoning_parser: str | None = None
    enable_hierarchical_cache: bool = False
    """HiCache: a tier in host memory, written through to."""
    hicache_ratio: float = 2.0
    """Its size, in those of the device's."""
    disaggregation_mode: Literal["null", "prefill", "decode"] = "null"
    """Which part of a request it does; null: all of it."""
    disaggregation_bootstrap_port: int | None = None
    """Of a prefill worker: where decode workers ask for KV; None: any free one."""
    disaggregation_decode_enable_radix_cache: bool = False
    """A decode worker keeps prefixes, too."""
    bootstrap_timeout_seconds: float = 300.0
    """SGLANG_DISAGGREGATION_BOOTSTRAP_TIMEOUT: how long a prefill waits for its decode side."""
    waiting_timeout_seconds: float = 300.0
    """SGLANG_DISAGGREGATION_WAITING_TIMEOUT: how long a decode waits for its KV."""
    heartbeat_seconds: float = 10.0
    """How long a decode worker takes to find that a prefill worker is gone: SGLang's interval of 5 s, twice."""
    transfer: TransferTiming = field(default_factory=TransferTiming)
    eos_after_tokens: int | None = None
    seed: int = 0
    timing: TimingModel = field(default_factory=StepTiming)

    def __post_init__(self) -> None:
        """Check what the engine does not.

        :raises ValueError: a value is out of range, the version too old, or the model folder has no config.
        """
        if self.dp_size < 1:
            raise ValueError(f"dp_size must be at least 1, not {self.dp_size}")
        for name in ("port", "kv_events_port", "replay_port", "load_port", "disaggregation_bootstrap_port"):
            if not 0 <= (getattr(self, name) or 0) <= 65_535:
                raise ValueError(f"{name} must be a port, not {getattr(self, name)}")
        if not (self.model_path / "config.json").is_file():
            raise ValueError(f"model_path: no config.json in {self.model_path}")
        for name in ("bootstrap_timeout_seconds", "waiting_timeout_seconds"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be positive, not {getattr(self, name)}")
        if self.hicache_ratio <= 0:
            raise ValueError(f"hicache_ratio must be positive, not {self.hicache_ratio}")
        if self.is_embedding and self.disaggregation_mode != "null":
            raise ValueError(
                f"disaggregation_mode is for generation, and is_embedding is set, not {self.disaggregation_mode}"
            )
        _ = self.dialect
        self.engine(np.arange(3, dtype=np.uint32), 2)

    @property
    def dialect(self) -> Dialect:
        """How this version writes its events."""
        return Dialect.of(self.version, self.event_format)

    @property
    def model_name(self) -> str:
        """The name under which the model is served."""
        if self.served_model_name:
            return self.served_model_name
        return "tinymodel" if self.model_path == tinymodel.PATH else str(self.model_path)

    @property
    def model_config(self) -> dict[str, Any]:
        """The model folder's config.json."""
        content: dict[str, Any] = json.loads((self.model_path / "config.json").read_text(encoding="utf-8"))
        return content

    @property
    def longest_context(self) -> int:
        """Tokens of prompt and output together."""
        return self.context_length or int(self.model_config.get("max_position_embeddings", DEFAULT_CONTEXT_LENGTH))

    @property
    def caches_prefixes(self) -> bool:
        """Whether prompts stay in its cache."""
        return self.disaggregation_mode != "decode" or self.disaggregation_decode_enable_radix_cache

    def engine(self, vocabulary: NDArray[np.uint32], eos_token: int) -> EngineConfig:
        """What each rank's engine is made of.

        :raises ValueError: see `EngineConfig`.
        """
        return EngineConfig(
            capacity_tokens=self.max_total_tokens,
            host_tokens=int(self.hicache_ratio * self.max_total_tokens) if self.enable_hierarchical_cache else 0,
            page_size=self.page_size,
            chunked_prefill_tokens=self.chunked_prefill_size,
            max_running_requests=self.max_running_requests,
            context_length=self.longest_context,
            schedule_policy=self.schedule_policy,
            enable_mixed_chunk=self.enable_mixed_chunk,
            overlap_schedule=not self.disable_overlap_schedule,
            decode_log_interval=self.decode_log_interval,
            version=self.version,
            record_changes=self.kv_events_port != 0,
            timing=self.timing,
            vocabulary=vocabulary,
            eos_token=eos_token,
            eos_after_tokens=self.eos_after_tokens,
            seed=self.seed,
        )
