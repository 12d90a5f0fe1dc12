"""What is asked of the engine, and what comes out of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from sim.engine.cache import Node


class Namespace(NamedTuple):
    """Prefixes under different keys, salts or adapters are never shared."""

    extra_key: str | None = None
    cache_salt: str | None = None
    lora_name: str | None = None


DEFAULT_NAMESPACE = Namespace()


@dataclass(frozen=True, slots=True, eq=False)
class Request:
    """One generation request."""

    rid: str
    prompt: NDArray[np.uint32]
    """Token ids, shape (n,), n >= 1."""
    max_new_tokens: int | None = None
    """None: as many as fit."""
    ignore_eos: bool = False
    """Also ignores `stop_token_ids`, as SGLang does."""
    stop_token_ids: frozenset[int] = frozenset()
    namespace: Namespace = DEFAULT_NAMESPACE
    session_id: str | None = None


class Finish(NamedTuple):
    """Why a request ended."""

    type: Literal["length", "stop", "abort"]
    matched: int | None = None
    """The stop token, if one ended it."""


class Output(NamedTuple):
    """What one step brought one request."""

    rid: str
    token: int | None
    """None for an abort: it brings no token."""
    cached_tokens: int
    """Prompt tokens found in the cache when the request was first admitted."""
    retractions: int
    finish: Finish | None
    queue_seconds: float
    """From submission to first admission."""
    host_tokens: int = 0
    """Of the cached ones, those that were loaded from host memory."""


@dataclass(slots=True, eq=False)
class Sequence:
    """A request inside the scheduler, with the memory it holds.

    The first `cached` tokens of KV belong to the cache (locked through `node`), the rest to `private_pages` of its own.
    """

    request: Request
    max_new_tokens: int
    submitted_at: float = 0.0
    queue_seconds: float = 0.0
    output: list[int] = field(default_factory=list)
    sampler_state: int = 0
    node: Node | None = None
    cached: int = 0
    """Tokens of KV in the cache, a multiple of the page size."""
    computed: int = 0
    """Tokens of KV in all."""
    private_pages: int = 0
    loaded: int = 0
    """Tokens of KV that were loaded back from host memory at the first admission."""
    loading: int = 0
    """Of them, those that the next prefill waits for."""
    extend: int = 0
    """Tokens to compute in the prefill at hand."""
    first_match: int | None = None
    last_match: int = 0
    """Cached tokens seen when admission was last tried."""
    retractions: int = 0
    aborted: bool = False

    @property
    def length(self) -> int:
        """Prompt and output tokens so far."""
        return len(self.request.prompt) + len(self.output)

    @property
    def ends_next(self) -> bool:
        """Whether its next token is its last by length."""
        return len(self.output) + 1 >= self.max_new_tokens

    def tokens(self, count: int) -> NDArray[np.uint32]:
        """The first `count` tokens of prompt and output. O(count)."""
        prompt = self.request.prompt
        if count <= len(prompt):
            return prompt[:count]
        return np.concatenate([prompt, np.array(self.output[: count - len(prompt)], np.uint32)])

    def __repr__(self) -> str:
        return (
            f"<Sequence {self.request.rid}: {len(self.request.prompt)} + {len(self.output)} tokens, "
            f"{self.cached} cached, {self.computed} computed>"
        )
