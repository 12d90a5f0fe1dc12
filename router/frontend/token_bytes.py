"""The bytes that a token stands for, in byte-level tokenizers.

Such a tokenizer writes each byte as a printable character, in the alphabet of GPT-2's `bytes_to_unicode`.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tokenizers import Tokenizer


def _byte_of_character() -> dict[str, int]:
    """GPT-2's alphabet of bytes: the printable ones of Latin-1 are themselves, the others follow from U+0100 on in order."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(0x100) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + at): byte for at, byte in enumerate(others)}


BYTE_OF_CHARACTER = _byte_of_character()


class TokenBytes(dict[int, bytes]):
    """Token → its bytes, for a tokenizer whose texts are its tokens' bytes one after the other; filled as tokens are met.

    Hidden tokens, and numbers that are no token, have none.
    """

    def __init__(self, tokenizer: Tokenizer, hidden: Iterable[int] = ()) -> None:
        """:raises ValueError: the tokenizer decodes otherwise."""
        if not decodes_bytes(tokenizer):
            raise ValueError(f"decoder: {tokenizer.decoder!r} is not of bytes alone")
        super().__init__(dict.fromkeys(hidden, b""))
        self._tokenizer = tokenizer

    def __missing__(self, token: int) -> bytes:
        """Also kept."""
        found = self[token] = _bytes_of(self._tokenizer.id_to_token(token) or "")
        return found


def decodes_bytes(tokenizer: Tokenizer) -> bool:
    """Whether a text is its tokens' bytes one after the other: GPT-2's byte-level decoder, and no other."""
    decoder = tokenizer.decoder
    return decoder is not None and json.loads(decoder.__getstate__())["type"] == "ByteLevel"


def _bytes_of(token: str) -> bytes:
    """Characters out of that alphabet make a token stand for itself, as added tokens may."""
    if any(character not in BYTE_OF_CHARACTER for character in token):
        return token.encode()
    return bytes(BYTE_OF_CHARACTER[character] for character in token)
