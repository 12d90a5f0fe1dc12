"""Text → tokens, of which only what was not seen before is tokenized."""

from __future__ import annotations

import itertools
import logging
import threading
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from events.blocks import as_tokens
from router.frontend.cuts import GUARD, Cuts, cuts_of
from router.frontend.token_cache import TokenCache, TokenCacheStatistics

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from tokenizers import Tokenizer

logger = logging.getLogger(__name__)

PART_CHARACTERS = 1024
"""Fewest in a part but the last: small ones waste less of what a longer text changes, large ones cost less to find again."""
CACHE_BYTES = 256 * 1024 * 1024
CHECK_EVERY = 1000
SAMPLES = (
    "The quick brown fox  jumps\n\tover 12 lazy dogs, don't they? I'll see. ",
    " naïve cafe\u0301 \u0301 x \u200d 👩\u200d👩\u200d👧 日本語の 文章 end\r\n\r\n  of it",
    "def f(x):\r\n    return x  # a comment with some words\n\n\n",
)


class EncoderStatistics(NamedTuple):
    """Counters since the start."""

    texts: int
    """Encoded, in parts or whole."""
    uncut: int
    """Of these, longer than a part, and yet of one part: nothing in them allows a cut, or nothing does any more."""
    reused_tokens: int
    new_tokens: int
    """Tokenized, for want of a cached part."""
    checks: int
    """Texts compared with their tokens as a whole."""
    mismatches: int
    """Of these, wrong. After the first, texts are tokenized whole."""
    cache: TokenCacheStatistics


class Encoder:
    """Tokenizes a text part by part, and remembers the parts: a text that extends an earlier one costs its new part.

    The tokens are those of the text as a whole: it is cut only where `cuts` proves that this makes no difference, and one text
    in `check_every` is tokenized whole too, and compared. Thread-safe; lets go of the interpreter while it tokenizes.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        cache_bytes: int = CACHE_BYTES,
        check_every: int = CHECK_EVERY,
        part_characters: int = PART_CHARACTERS,
    ) -> None:
        """`cache_bytes` 0: no text is cut, nothing is kept. `check_every` 0: no text is compared.

        :raises ValueError: one of them is negative, or parts are to be empty.
        """
        if check_every < 0:
            raise ValueError(f"check_every: {check_every} is negative")
        if part_characters < 1:
            raise ValueError(f"part_characters: {part_characters} is not positive")
        self._tokenizer = tokenizer
        self._cache = TokenCache(cache_bytes)
        self._check_every = check_every
        self._part_characters = part_characters
        self._cuts = cuts_of(tokenizer) if cache_bytes else Cuts((), (), False, "the cache has no room")
        self._guard_tokens = len(self._tokenized([GUARD])[0])
        self._turns = itertools.count(1)
        self._lock = threading.Lock()
        self._texts = self._uncut = self._reused_tokens = self._new_tokens = self._checks = self._mismatches = 0
        if self._cuts.places:
            for sample in SAMPLES:
                self._checked(sample, self._in_parts(sample, least=1))
        self._say_cuts()

    def __repr__(self) -> str:
        return f"Encoder({len(self._cuts.before)} special tokens, at_words={self._cuts.at_words}, {self._cache!r})"

    @property
    def cuts(self) -> Cuts:
        """Where texts are cut."""
        return self._cuts

    def encode(self, text: str) -> NDArray[np.uint32]:
        """The tokens of a text, no special tokens added; may be read-only. O(new characters), and O(n) at memory speed."""
        tokens = self._in_parts(text, self._part_characters)
        return self._checked(text, tokens) if self._is_sampled() else tokens

    def statistics(self) -> EncoderStatistics:
        """A snapshot."""
        with self._lock:
            return EncoderStatistics(
                texts=self._texts,
                uncut=self._uncut,
                reused_tokens=self._reused_tokens,
                new_tokens=self._new_tokens,
                checks=self._checks,
                mismatches=self._mismatches,
                cache=self._cache.statistics(),
            )

    def _is_sampled(self) -> bool:
        if not self._check_every or not self._cuts.places:
            return False
        return next(self._turns) % self._check_every == 0

    def _in_parts(self, text: str, least: int) -> NDArray[np.uint32]:
        first, *others = self._cuts.parts(text, least)
        parts = [first, *(GUARD + part for part in others)]
        known = {part: tokens for part in parts if (tokens := self._cache.get(part)) is not None}
        unknown = [part for part in parts if part not in known]
        for part, tokens in zip(unknown, self._tokenized(unknown), strict=True):
            self._cache.put(part, tokens)
            known[part] = tokens
        joined = self._joined([known[part] for part in parts])
        guards = len(unknown) - unknown.count(first)
        new_tokens = sum(len(known[part]) for part in unknown) - guards * self._guard_tokens
        self._count(len(joined), new_tokens, uncut=not others and len(text) > least)
        return joined

    def _joined(self, parts: list[NDArray[np.uint32]]) -> NDArray[np.uint32]:
        """One after the other, without the guard of all but the first."""
        if len(parts) == 1:
            return parts[0]
        return np.concatenate([parts[0], *(part[self._guard_tokens :] for part in parts[1:])])

    def _tokenized(self, texts: list[str]) -> list[NDArray[np.uint32]]:
        """Each as a text of its own. Without offsets, which take a third of the time."""
        encodings = self._tokenizer.encode_batch_fast(texts, add_special_tokens=False) if texts else []
        return [_array(encoding.ids) for encoding in encodings]

    def _count(self, tokens: int, new_tokens: int, uncut: bool) -> None:
        with self._lock:
            self._texts += 1
            self._uncut += uncut
            self._new_tokens += new_tokens
            self._reused_tokens += tokens - new_tokens

    def _checked(self, text: str, tokens: NDArray[np.uint32]) -> NDArray[np.uint32]:
        """The tokens of the text as a whole; if they are others, no text is cut any more."""
        (whole,) = self._tokenized([text])
        wrong = not np.array_equal(whole, tokens)
        with self._lock:
            self._checks += 1
            self._mismatches += wrong
            first = wrong and bool(self._cuts.places)
            if wrong:
                self._cuts = Cuts((), (), False, "tokens of the parts were not those of the whole")
                self._cache.clear()
        if first:
            logger.error("a text in parts had other tokens than as a whole: texts are tokenized whole from now on")
        return whole

    def _say_cuts(self) -> None:
        if not self._cache.statistics().limit_bytes:
            logger.info("the token cache is off: prompts are tokenized whole")
        elif not self._cuts.places:
            logger.warning(
                "prompts are tokenized whole, as nothing proves that cutting is safe: %s", self._cuts.refused
            )
        elif self._cuts.refused:
            logger.info("prompts are cut for the token cache at special tokens only: %s", self._cuts.refused)


def _array(ids: list[int]) -> NDArray[np.uint32]:
    """Read-only, as it is shared."""
    tokens = as_tokens(ids)
    tokens.setflags(write=False)
    return tokens
