"""Step logs: what an engine computed, step by step, and how long it took."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import msgspec

from events.command import UsageError
from sim.recordings.lines import content, rows

if TYPE_CHECKING:
    from pathlib import Path

MILLI = 1e-3


class Step(msgspec.Struct, gc=False):
    """One scheduler step; see the package's text."""

    kind: Literal["E", "D", "M"] = msgspec.field(name="m")
    gpu_ms: float | None = msgspec.field(name="g", default=None)
    new_tokens: list[int] = msgspec.field(name="ext", default=[])
    prefix_tokens: list[int] = msgspec.field(name="pre", default=[])
    sequences: int = msgspec.field(name="bs", default=0)
    kv_tokens: int = msgspec.field(name="kv", default=0)
    launched_at: float | None = msgspec.field(name="tl", default=None)
    processed_after: float = msgspec.field(name="td", default=0.0)

    @property
    def seconds(self) -> float:
        """On the GPU."""
        return (self.gpu_ms or 0.0) * MILLI

    @property
    def is_prefill(self) -> bool:
        """Prompts are computed, and nothing else."""
        return self.kind == "E"

    @property
    def is_decode(self) -> bool:
        """One token each is computed."""
        return self.kind == "D"

    def follows_at_once(self, before: Step) -> bool:
        """Whether it was launched before the other one was processed, as far as is known."""
        if self.launched_at is None or before.launched_at is None:
            return True
        return self.launched_at <= before.launched_at + before.processed_after


def read_steps(path: Path) -> list[Step]:
    """All steps with a time, in order.

    :raises UsageError: a line is not a step, or there is none.
    :raises OSError: the file cannot be read.
    """
    steps = [step for step in rows(path, Step, content(path)) if step.gpu_ms]
    for step in steps:
        if step.is_prefill and not 0 < len(step.new_tokens) == len(step.prefix_tokens):
            raise UsageError(f"{path}: a prefill needs ext and pre of equal length, not {step}")
    if not steps:
        raise UsageError(f"{path}: no step with a time (g)")
    return steps
