"""What is promised to users."""

from __future__ import annotations

from typing import NamedTuple


class Slo(NamedTuple):
    """A request keeps it when its first token and, on average, its following tokens come in time."""

    ttft_seconds: float = 1.0
    itl_seconds: float = 0.05
