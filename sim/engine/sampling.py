"""Output tokens: a function of the text so far, so that a run can be repeated, and continued elsewhere.

As with a real model at temperature 0, the next token depends on all tokens before it and on nothing else: a request that is
retracted, or sent on to another engine with its output appended to the prompt, goes on as it would have.
"""

from __future__ import annotations

from typing import TYPE_CHECKING
from zlib import crc32

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

MIXER = 2654435761  # Knuth's multiplicative hash: spreads the checksum's bits


class Sampler:
    """Draws from a vocabulary of token ids.

    >>> import numpy as np
    >>> sampler = Sampler(np.arange(10, 20, dtype=np.uint32), seed=7)
    >>> text = np.array([1, 2, 3], np.uint32)
    >>> state = sampler.read(text)
    >>> token = sampler.next(state)
    >>> sampler.append(state, token) == sampler.read(np.append(text, np.uint32(token)))
    True
    """

    def __init__(self, vocabulary: NDArray[np.uint32], seed: int) -> None:
        self._vocabulary: list[int] = vocabulary.tolist()
        self._seed = seed

    def read(self, tokens: NDArray[np.uint32]) -> int:
        """The state after these tokens. O(n)."""
        return crc32(tokens.astype("<u4", copy=False).tobytes(), self._seed)

    def next(self, state: int) -> int:
        """The token that follows. O(1)."""
        mixed = (state * MIXER & 0xFFFFFFFF) >> 8
        return self._vocabulary[mixed % len(self._vocabulary)]

    def append(self, state: int, token: int) -> int:
        """The state one token later. O(1)."""
        return crc32(token.to_bytes(4, "little"), state)
