"""Tokens → text as they come, never showing half a character."""

from __future__ import annotations

import codecs
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from tokenizers import Tokenizer

BROKEN = "\N{REPLACEMENT CHARACTER}"
MAX_HELD_TOKENS = 16
CHARACTER_BYTES = 4


class Detokenizer(Protocol):
    """Decodes one answer as it comes."""

    def push(self, token_ids: Iterable[int]) -> str:
        """The text that these tokens complete; hidden tokens have none."""

    def finish(self) -> str:
        """The text still held back, broken characters and all, now that nothing follows."""


class ByteDetokenizer:
    """A detokenizer for byte-level tokenizers: a table of bytes, and UTF-8. O(1) a token."""

    def __init__(self, token_bytes: Mapping[int, bytes]) -> None:
        self._token_bytes = token_bytes
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def __repr__(self) -> str:
        return f"ByteDetokenizer({len(self._decoder.getstate()[0])} bytes held)"

    def push(self, token_ids: Iterable[int]) -> str:
        """The text that these tokens complete; hidden tokens have none."""
        token_bytes = self._token_bytes
        return self._decoder.decode(b"".join([token_bytes[token] for token in token_ids]))

    def finish(self) -> str:
        """The text still held back, broken characters and all, now that nothing follows."""
        text = self._decoder.decode(b"", final=True)
        self._decoder.reset()
        return text


class ContextDetokenizer:
    """A detokenizer for any tokenizer. Decodes one answer incrementally: the pieces together are the decoding of the whole.

    New tokens are decoded behind those shown last, their context: a decoder may treat the first token of a text apart. While the
    text ends in a broken character it is held back, as the next token may complete it. O(context + held) a token.

    Exact wherever the decoding of a beginning is a beginning of the decoding. Decoders with byte fallback break that rule in one
    case: a run of byte tokens that is no UTF-8 is broken as a whole, where this shows the valid characters it began with.
    """

    def __init__(self, tokenizer: Tokenizer, hidden: Iterable[int] = ()) -> None:
        self._tokenizer = tokenizer
        self._hidden = frozenset(hidden)
        self._context: list[int] = []
        self._held: list[int] = []

    def __repr__(self) -> str:
        return f"ContextDetokenizer({len(self._held)} tokens held)"

    def push(self, token_ids: Iterable[int]) -> str:
        """The text that these tokens complete; hidden tokens have none."""
        return "".join(self._push(token) for token in token_ids if token not in self._hidden)

    def finish(self) -> str:
        """The text still held back, broken characters and all, now that nothing follows."""
        return self._show(self._decode(self._context + self._held)) if self._held else ""

    def _push(self, token: int) -> str:
        self._held.append(token)
        text = self._decode(self._context + self._held)
        if not text.endswith(BROKEN):
            return self._show(text)
        if len(self._held) > MAX_HELD_TOKENS:
            return self._let_go(text)
        return ""

    def _show(self, text: str) -> str:
        piece = text[len(self._decode(self._context)) :]
        if piece:  # tokens without text of their own are no context: the one before them stays
            self._context, self._held = self._held, []
        return piece

    def _let_go(self, text: str) -> str:
        """Show what no further token can mend: all before the last place where the text falls into two independent parts.

        One of the last four places is such, as no character has more than four bytes.
        """
        for cut in range(len(self._held) - 1, len(self._held) - 1 - CHARACTER_BYTES, -1):
            settled = self._decode(self._context + self._held[:cut])
            if settled + self._decode(self._held[cut:]) == text:
                piece = settled[len(self._decode(self._context)) :]
                self._context, self._held = self._held[cut - 1 : cut], self._held[cut:]
                return piece
        return ""

    def _decode(self, token_ids: list[int]) -> str:
        text: str = self._tokenizer.decode(token_ids, skip_special_tokens=False)
        return text
