"""The special tokens that a tokenizer puts around a plain prompt."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from tokenizers import Tokenizer

SAMPLES = ("a", "b c 12", "")


class Framing(NamedTuple):
    """Tokens before and after those of any text."""

    before: NDArray[np.uint32]
    after: NDArray[np.uint32]

    def around(self, tokens: NDArray[np.uint32]) -> NDArray[np.uint32]:
        """A prompt of these tokens. O(n)."""
        if len(self.before) or len(self.after):
            return np.concatenate([self.before, tokens, self.after])
        return tokens


def framing_of(tokenizer: Tokenizer) -> Framing | None:
    """What samples agree on; None if nothing: then the tokens added depend on the text."""
    added: list[int] = tokenizer.encode("").ids  # the tokens before and those after, without any between
    for split in range(len(added) + 1):
        before, after = added[:split], added[split:]
        if all(_frames(tokenizer, sample, before, after) for sample in SAMPLES):
            return Framing(np.array(before, np.uint32), np.array(after, np.uint32))
    return None


def _frames(tokenizer: Tokenizer, text: str, before: list[int], after: list[int]) -> bool:
    plain = tokenizer.encode(text, add_special_tokens=False).ids
    framed: list[int] = tokenizer.encode(text).ids
    return framed == [*before, *plain, *after]
