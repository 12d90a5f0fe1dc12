"""Requests that share nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from sim.traces.draws import Draws
from sim.traces.synthesize.content import content
from sim.traces.synthesize.distribution import uniform
from sim.traces.synthesize.kind import Kind, poisson
from sim.traces.trace import Trace


@dataclass(frozen=True, kw_only=True)
class Uniform(Kind):
    """Lengths between nothing and twice the mean; no prefix is shared, so that no policy can win by its cache."""

    name: ClassVar[str] = "uniform"
    summary: ClassVar[str] = "nothing is shared; lengths are uniform"

    input_tokens: float = 2048.0
    output_tokens: float = 256.0

    def generate(self, requests: int, per_second: float, seed: int) -> Trace:
        """See `Kind`."""
        draws = Draws(seed)
        arrival = poisson(requests, per_second, draws)
        prompt = uniform(1, 2 * self.input_tokens - 1).tokens(draws, requests)
        output = uniform(1, 2 * self.output_tokens - 1).tokens(draws, requests)
        nothing = np.zeros(requests, np.int64)
        blocks, first_block = content(nothing, nothing, np.arange(requests), -(-prompt // self.block_tokens))
        return Trace.open_loop(
            self.name, arrival, prompt, output, block_tokens=self.block_tokens, blocks=blocks, first_block=first_block
        )
