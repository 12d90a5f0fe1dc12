from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st

from router.frontend.detokenizer import BROKEN, MAX_HELD_TOKENS, ByteDetokenizer, ContextDetokenizer, Detokenizer
from router.frontend.token_bytes import TokenBytes, decodes_bytes
from sim import tinymodel
from tests.router.frontend.models import CORPUS, byte_fallback, byte_level

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    TokenizerMaker = Callable[[], tokenizers.Tokenizer]
    DetokenizerMaker = Callable[..., Detokenizer]

texts = st.one_of(
    st.sampled_from(CORPUS),
    st.text(st.sampled_from("abc é日🙂🏳️‍🌈\n"), max_size=30),
    st.text(max_size=20),
)


def stream(detokenizer: Detokenizer, tokens: list[int], sizes: Iterable[int]) -> list[str]:
    """The pieces shown when tokens come in groups of these sizes, then one at a time; the last is what `finish` adds."""
    pieces, position = [], 0
    for size in [*sizes, *[1] * len(tokens)]:
        pieces.append(detokenizer.push(tokens[position : position + size]))
        position += size
    return [*pieces, detokenizer.finish()]


def special_ids(tokenizer: tokenizers.Tokenizer) -> set[int]:
    return {number for number, token in tokenizer.get_added_tokens_decoder().items() if token.special}


def tiny() -> tokenizers.Tokenizer:
    return tokenizers.Tokenizer.from_file(str(tinymodel.PATH / "tokenizer.json"))


@cache
def bytes_of_tokens(tokenizer: tokenizers.Tokenizer, hidden: frozenset[int] = frozenset()) -> TokenBytes:
    return TokenBytes(tokenizer, hidden)


def over_bytes(tokenizer: tokenizers.Tokenizer, hidden: Iterable[int] = ()) -> ByteDetokenizer:
    return ByteDetokenizer(bytes_of_tokens(tokenizer, frozenset(hidden)))


def with_odd_tokens() -> tokenizers.Tokenizer:
    """Byte-level, with added tokens that are, and that are not, written in its alphabet of bytes."""
    tokenizer = tokenizers.Tokenizer.from_str(byte_level().to_str())
    tokenizer.add_tokens(["<|日本|>", "né", "two words", "Ġspaced"])
    return tokenizer


@pytest.mark.parametrize(
    ("make", "make_detokenizer"),
    [
        (byte_level, ContextDetokenizer),
        (byte_fallback, ContextDetokenizer),
        (tiny, ContextDetokenizer),
        (byte_level, over_bytes),
        (tiny, over_bytes),
    ],
)
@given(text=texts, sizes=st.lists(st.integers(0, 5), max_size=5))
def test_the_pieces_of_a_text_are_the_text(
    make: TokenizerMaker, make_detokenizer: DetokenizerMaker, text: str, sizes: list[int]
) -> None:
    tokenizer = make()
    tokens = tokenizer.encode(text, add_special_tokens=False).ids
    pieces = stream(make_detokenizer(tokenizer), tokens, sizes)
    whole = tokenizer.decode(tokens)
    assert "".join(pieces) == whole
    if BROKEN not in whole:
        assert not any(BROKEN in piece for piece in pieces)


@pytest.mark.parametrize("make_detokenizer", [ContextDetokenizer, over_bytes])
@given(tokens=st.lists(st.integers(0, 399), max_size=60), sizes=st.lists(st.integers(0, 20), max_size=5))
def test_any_tokens_over_bytes_decode_as_a_whole(
    make_detokenizer: DetokenizerMaker, tokens: list[int], sizes: list[int]
) -> None:
    tokenizer = byte_level()
    pieces = stream(make_detokenizer(tokenizer, special_ids(tokenizer)), tokens, sizes)
    assert "".join(pieces) == tokenizer.decode(tokens, skip_special_tokens=True)


@given(tokens=st.lists(st.integers(0, 420), max_size=12))
def test_added_tokens_and_numbers_that_are_no_token(tokens: list[int]) -> None:
    tokenizer = with_odd_tokens()
    detokenizer = ByteDetokenizer(TokenBytes(tokenizer))
    assert "".join(stream(detokenizer, tokens, [])) == tokenizer.decode(tokens, skip_special_tokens=False)


def test_only_byte_level_tokenizers_have_a_table_of_bytes() -> None:
    assert [decodes_bytes(make()) for make in (byte_level, tiny, byte_fallback)] == [True, True, False]
    assert not decodes_bytes(tokenizers.Tokenizer(tokenizers.models.BPE()))
    with pytest.raises(ValueError, match="decoder"):
        TokenBytes(byte_fallback())


def test_a_long_run_of_nonsense_is_let_go_and_stays_exact() -> None:
    tokenizer = byte_level()
    stray = tokenizer.encode("é", add_special_tokens=False).ids[-1]
    smile = tokenizer.encode("🙂", add_special_tokens=False).ids
    detokenizer = ContextDetokenizer(tokenizer)
    pieces = []
    broken = [tokenizer.token_to_id(pre) for pre in "ĥ¦"]
    for token in [*broken * 200, *smile, stray, *broken * 50, *smile]:
        pieces.append(detokenizer.push([token]))
        assert len(detokenizer._held) <= MAX_HELD_TOKENS + 1
    shown = "".join(pieces) + detokenizer.finish()
    assert shown == tokenizer.decode([*broken * 200, *smile, stray, *broken * 50, *smile])
    assert shown.count("🙂") == 2


@pytest.mark.parametrize(
    ("make_detokenizer", "held"),
    [(ContextDetokenizer, "ContextDetokenizer(1 tokens held)"), (over_bytes, "ByteDetokenizer(2 bytes held)")],
)
def test_half_a_character_is_held_back(make_detokenizer: DetokenizerMaker, held: str) -> None:
    tokenizer = byte_level()
    smile = tokenizer.encode("🤖", add_special_tokens=False).ids
    assert len(smile) > 1
    detokenizer = make_detokenizer(tokenizer)
    assert detokenizer.push([*tokenizer.encode("a", add_special_tokens=False).ids, smile[0]]) == "a"
    assert repr(detokenizer) == held
    assert detokenizer.push(smile[1:]) == "🤖"
    assert detokenizer.push(smile[:1]) == ""
    assert detokenizer.finish() == BROKEN
    assert detokenizer.finish() == ""
