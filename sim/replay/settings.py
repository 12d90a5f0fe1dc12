"""What is replayed, and under which conditions."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from router.core.request import Part
from sim.engine import EngineConfig


@dataclass(frozen=True, slots=True)
class Kill:
    """A worker's process dies, and may come back empty."""

    time: float
    """Seconds."""
    worker: int
    restart: float | None = None
    """When another process takes its place, in seconds; None: never."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The fleet, its events, and what goes wrong.

    :raises ValueError: a number is out of range (the message names it).
    """

    workers: int = 8
    """That do all of a request."""
    prefill: int = 0
    decode: int = 0
    """In their place: workers that compute prompts, and workers that take over their KV and go on."""
    transfer_bytes_per_second: float = 64e9
    """Of the link between any two of them; requests do not slow each other down on it."""
    kv_token_bytes: int = 131_072
    """KV of one token: 32 layers, 8 heads of 128 in bfloat16."""
    engine: EngineConfig = field(default_factory=EngineConfig)
    """Of every worker."""
    block_size: int = 64
    """Tokens of a routing block."""
    kv_events: bool = True
    """False: the router predicts what workers hold."""
    event_lag_seconds: float = 0.0
    """From an engine's publication (of cache changes, of its load) to the routers."""
    event_loss: float = 0.0
    """Share of publications that are lost; what was in them comes with the engine's next one, which shows the gap."""
    load_report_interval_seconds: float = 0.0
    """Load is reported at most so often; 0: whenever SGLang does."""
    routers: int = 1
    """Requests come to them in turn."""
    booking_lag_seconds: float | None = None
    """From one router's booking to the others; None: each knows only its own."""
    kills: tuple[Kill, ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the numbers."""
        for name in ("block_size", "routers", "kv_token_bytes"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        if min(self.workers, self.prefill, self.decode) < 0 or not self.parts:
            raise ValueError(f"there must be workers, not {self.workers}, {self.prefill} and {self.decode}")
        if bool(self.prefill) != bool(self.decode):
            raise ValueError("prefill workers need decode workers, and these need those")
        if not self.transfer_bytes_per_second > 0:
            raise ValueError(f"transfer_bytes_per_second must be positive, not {self.transfer_bytes_per_second}")
        for name in ("event_lag_seconds", "load_report_interval_seconds"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"{name} must be at least 0, not {getattr(self, name)}")
        if self.booking_lag_seconds is not None and not 0 <= self.booking_lag_seconds < float("inf"):
            raise ValueError(f"booking_lag_seconds must be at least 0, not {self.booking_lag_seconds}")
        if not 0 <= self.event_loss < 1:
            raise ValueError(f"event_loss must be at least 0 and below 1, not {self.event_loss}")
        for kill in self.kills:
            self._check_kill(kill)

    @property
    def parts(self) -> tuple[Part, ...]:
        """What each worker does, in the order of their numbers."""
        if self.prefill:
            return (Part.PREFILL,) * self.prefill + (Part.DECODE,) * self.decode
        return (Part.WHOLE,) * self.workers

    def transfer_seconds(self, tokens: int) -> float:
        """How long the KV of so many tokens is on its way. O(1)."""
        return tokens * self.kv_token_bytes / self.transfer_bytes_per_second

    def _check_kill(self, kill: Kill) -> None:
        if not 0 <= kill.worker < len(self.parts):
            raise ValueError(f"kill: there is no worker {kill.worker}: they are 0 to {len(self.parts) - 1}")
        if not 0 <= kill.time < float("inf"):
            raise ValueError(f"kill: t must be at least 0, not {kill.time}")
        if kill.restart is not None and not kill.time < kill.restart < float("inf"):
            raise ValueError(f"kill: restart must be after t={kill.time}, not {kill.restart}")

    def summary(self) -> dict[str, Any]:
        """For the report: plain values."""
        return {
            "workers": len(self.parts),
            "prefill": self.prefill,
            "decode": self.decode,
            "transfer_bytes_per_second": self.transfer_bytes_per_second,
            "kv_token_bytes": self.kv_token_bytes,
            "capacity_tokens": self.engine.capacity_tokens,
            "page_size": self.engine.page_size,
            "block_size": self.block_size,
            "kv_events": self.kv_events,
            "event_lag_seconds": self.event_lag_seconds,
            "event_loss": self.event_loss,
            "load_report_interval_seconds": self.load_report_interval_seconds,
            "routers": self.routers,
            "booking_lag_seconds": self.booking_lag_seconds,
            "kills": [[kill.time, kill.worker, kill.restart] for kill in self.kills],
            "timing": repr(self.engine.timing),
        }
