"""Workloads made up: kinds with a few parameters each, or fitted to a given trace. Seeded, and the same on every machine.

===============  ==============================================================
`conversation`   multi-turn chats over system prompts, the context grows
`tool_agent`     agents' tool calls over a few fixed prefixes, between chats
`shared_prompt`  one system prompt or several, and then something of one's own
`uniform`        nothing is shared
`fit`            like a given trace in arrivals, lengths and sharing
`distribution`   what lengths and times are drawn from
`content`        ids from who owns which tokens
===============  ==============================================================
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sim.traces.synthesize.conversation import Conversation
from sim.traces.synthesize.shared_prompt import SharedPrompt
from sim.traces.synthesize.tool_agent import ToolAgent
from sim.traces.synthesize.uniform import Uniform

if TYPE_CHECKING:
    from sim.traces.synthesize.kind import Kind

KINDS: dict[str, type[Kind]] = {
    "conversation": Conversation,
    "tool-agent": ToolAgent,
    "shared-prompt": SharedPrompt,
    "uniform": Uniform,
}

__all__ = ["KINDS", "Conversation", "SharedPrompt", "ToolAgent", "Uniform"]
