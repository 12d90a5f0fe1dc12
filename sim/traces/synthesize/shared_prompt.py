"""System prompts that many requests begin with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from sim.traces.draws import Draws
from sim.traces.synthesize.content import content
from sim.traces.synthesize.distribution import lognormal
from sim.traces.synthesize.kind import Kind, poisson
from sim.traces.trace import Trace

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True)
class SharedPrompt(Kind):
    """One of a few system prompts, the first much more often than the last (Zipf), and then a question of one's own."""

    name: ClassVar[str] = "shared-prompt"
    summary: ClassVar[str] = "a few long system prompts, each with a short question"

    system_prompts: int = 16
    system_tokens: int = 4096
    input_tokens: float = 512.0
    """Of the question alone."""
    output_tokens: float = 256.0

    def generate(self, requests: int, per_second: float, seed: int) -> Trace:
        """See `Kind`."""
        draws = Draws(seed)
        arrival = poisson(requests, per_second, draws)
        system = zipf(self.system_prompts, requests, draws)
        prompt = self.system_tokens + lognormal(self.input_tokens, 1.0).tokens(draws, requests)
        output = lognormal(self.output_tokens, 1.0).tokens(draws, requests)
        shared = np.full(requests, self.system_tokens // self.block_tokens)
        blocks, first_block = content(system, shared, np.arange(requests), -(-prompt // self.block_tokens))
        return Trace.open_loop(
            self.name, arrival, prompt, output, block_tokens=self.block_tokens, blocks=blocks, first_block=first_block
        )


def zipf(choices: int, count: int, draws: Draws) -> NDArray[np.int64]:
    """Choices by popularity: the k-th, from 0, has the weight 1 / (k + 1). O(count log choices)."""
    weights = np.cumsum(1.0 / np.arange(1, choices + 1))
    chosen: NDArray[np.int64] = np.searchsorted(weights, draws.uniform(count) * weights[-1], side="right")
    return chosen
