"""Agents that call tools."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from sim.traces.draws import Draws
from sim.traces.merge import merge
from sim.traces.synthesize.content import content
from sim.traces.synthesize.conversation import Conversation
from sim.traces.synthesize.distribution import lognormal, uniform
from sim.traces.synthesize.kind import Kind, poisson
from sim.traces.trace import Trace

PREFIX_BLOCKS = np.array([12, 8, 5])
PREFIX_CHANCES = np.cumsum([0.5, 0.3, 0.2])
FEWEST_OUTPUT_TOKENS, MOST_OUTPUT_TOKENS = 3, 50


@dataclass(frozen=True, kw_only=True)
class ToolAgent(Kind):
    """Calls that begin with one of three fixed prefixes and bring a short output; the other half are chats.

    Made up to the means that Mooncake publishes of its tool-and-agent trace (8,596 tokens in, 182 out) and to its shape; it is not
    that trace.
    """

    name: ClassVar[str] = "tool-agent"
    summary: ClassVar[str] = "tool calls over three fixed prefixes with short outputs, and as many chats"

    input_tokens: float = 1000.0
    """What a call adds to its prefix."""
    calls: float = 0.5
    """Ratio of requests that are calls, below 1."""

    def generate(self, requests: int, per_second: float, seed: int) -> Trace:
        """See `Kind`."""
        calls = min(max(1, round(requests * self.calls)), requests - 1)
        if calls < 1:
            return self._calls(requests, per_second, seed)
        chat = Conversation(
            block_tokens=self.block_tokens, system_prompts=1, system_tokens=512, input_tokens=1600.0, turns=6.0
        )
        chats = chat.generate(requests - calls, per_second * (1 - calls / requests), seed + 1)
        return merge(self.name, [self._calls(calls, per_second * calls / requests, seed), chats])

    def _calls(self, requests: int, per_second: float, seed: int) -> Trace:
        draws = Draws(seed)
        arrival = poisson(requests, per_second, draws)
        tool = np.searchsorted(PREFIX_CHANCES, draws.uniform(requests), side="right")
        prefix = PREFIX_BLOCKS[tool]
        prompt = prefix * self.block_tokens + lognormal(self.input_tokens, 1.0).tokens(draws, requests)
        output = uniform(FEWEST_OUTPUT_TOKENS, MOST_OUTPUT_TOKENS).tokens(draws, requests)
        blocks, first_block = content(tool, prefix, np.arange(requests), -(-prompt // self.block_tokens))
        return Trace.open_loop(
            self.name, arrival, prompt, output, block_tokens=self.block_tokens, blocks=blocks, first_block=first_block
        )
