"""How far a request has come, over all workers that had a part in it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from events.blocks import as_tokens, salt_seed, sequence_hashes

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from router.core.request import Target
    from router.dispatch.errors import EngineError
    from router.dispatch.request import TokenRequest


class Journey:
    """A request's tokens so far, and the targets that failed it."""

    def __init__(self, request: TokenRequest, block_size: int) -> None:
        self.request = request
        self.generated: list[int] = []
        self.excluded: set[Target] = set(request.excluded)
        self.failures = 0
        self.error: EngineError | None = None
        """The last failure."""
        self.cached_tokens: int | None = None
        """As the first worker reported it: usage counts the prompt once."""
        self._block_size = block_size
        self._seed = salt_seed(request.cache_salt, request.adapter)

    def __repr__(self) -> str:
        return (
            f"Journey({self.request.request_id}, {len(self.request.prompt)} + {len(self.generated)} tokens, "
            f"{self.failures} failures)"
        )

    @property
    def remaining_tokens(self) -> int:
        """Tokens that may still be generated."""
        return self.request.max_new_tokens - len(self.generated)

    def tokens(self) -> NDArray[np.uint32]:
        """Prompt and output so far: what the next worker is asked to continue. O(n)."""
        if not self.generated:
            return self.request.prompt
        return np.concatenate([self.request.prompt, as_tokens(self.generated)])

    def hashes(self, tokens: NDArray[np.uint32]) -> NDArray[np.uint64]:
        """Sequence hashes of all full blocks of `tokens`, in the request's namespace. O(n)."""
        return sequence_hashes(tokens, self._block_size, self._seed)

    def extended(self, hashes: NDArray[np.uint64]) -> NDArray[np.uint64]:
        """`hashes`, those of a prefix, and the full blocks that output made since. O(n).

        The last token generated is left out: it was sampled, but never went through the model, so no cache holds it.
        """
        tokens = self.tokens()[:-1] if self.generated else self.tokens()
        parent = int(hashes[-1]) if len(hashes) else None
        rest = tokens[len(hashes) * self._block_size :]
        return np.concatenate([hashes, sequence_hashes(rest, self._block_size, self._seed, parent)])

    def fail(self, error: EngineError, targets: frozenset[Target]) -> None:
        """Note a failure, and whom to avoid from now on."""
        self.error = error
        self.failures += 1
        self.excluded |= targets
