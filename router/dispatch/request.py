"""What is carried, and what comes back."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    from numpy.typing import NDArray

    from router.core.request import Target


@dataclass(frozen=True, slots=True, eq=False)
class TokenRequest:
    """A prompt in tokens, and how to go on from it."""

    request_id: str
    """Unique among the requests of this process: it names the booking, and with a suffix the request at the engine."""
    model: str
    prompt: NDArray[np.uint32]
    max_new_tokens: int
    sampling: Mapping[str, object] = field(default_factory=dict)
    """SGLang's `sampling_params`, but for `max_new_tokens`."""
    cache_salt: str | None = None
    extra_key: str | None = None
    adapter: str | None = None
    """A LoRA adapter, by name: its prefixes are its own."""
    excluded: frozenset[Target] = frozenset()
    """Who cannot take it from the start."""
    migration_limit: int | None = None
    """How often it may go on elsewhere; None: as the dispatcher has it."""
    resumable: bool = True
    """False: an output begun cannot be continued elsewhere (a grammar would start afresh)."""

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens must be at least 1, not {self.max_new_tokens}")


class Output(NamedTuple):
    """The next tokens of a request."""

    token_ids: list[int]
    target: Target
    """Who made them."""
    cached_tokens: int
    """Prompt tokens that the request's first worker had in its cache."""
    finish_reason: str | None = None
    matched: int | str | None = None
    """The stop token that ended it, if one did; it is the last of `token_ids`."""


class PromptHashes(NamedTuple):
    """A prompt, as far as its placement depends on it."""

    hashes: NDArray[np.uint64]
    """Sequence hashes of its full blocks, shape (blocks,)."""
    tokens: int
    """Its length."""


@dataclass(slots=True, eq=False)
class TextRequest:
    """A body, and what is known of it."""

    request_id: str
    """Unique among the requests of this process: it names the booking."""
    path: str
    """Of the engine's route."""
    body: bytes
    model: str | None = None
    """None: any."""
    prompt: PromptHashes | None = None
    """To be routed by; None: by load alone."""
    headers: Mapping[str, str] = field(default_factory=dict)
    """Sent along with it alone."""
    reports_usage: bool = False
    """A stream of its ends with the usage."""
    streams: bool = False
    """It asks for a stream."""
    excluded: frozenset[Target] = frozenset()
    """Who cannot take it from the start."""
    names_rank: bool = False
    """Its route reads the rank in the body, not in a header."""
    divisible: bool = True
    """False: a pair of prefill and decode workers cannot take it (several prompts, or several answers)."""
