from __future__ import annotations

import logging
import re
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router.frontend.cuts import GUARD, Cuts, Place, cuts_of
from router.frontend.encoder import Encoder
from tests.router.frontend import zoo
from tests.router.frontend.models import byte_level

if TYPE_CHECKING:
    import tokenizers

PIECES = [
    *(
        "the",
        "end",
        "The",
        "END",
        "e",
        "a",
        "quick",
        "don't",
        "they'll",
        "x1",
        "naïve",
        "Größe",
        "日本語",
        "カ",
        "İ",
        "ſ",
        "K",
    ),
    *(" ", " ", " ", " ", "  ", "\n", "\r\n", "\t", "\r", "\u00a0", "\u3000", "\u2028", "▁", "Ġ", "\0"),
    *("\u0301", "\u0338", "e\u0301", "\u200d", "👩\u200d👩\u200d👧", "🏳️\u200d🌈", "🇩🇪", "ﬁ", "각", "ᄀ", "ᅡ"),
    *(
        "<s>",
        "</s>",
        "<|end|>",
        "[INST]",
        "<unk>",
        "<mask>",
        "<right>",
        "</s",
        "|</s>",
        "|</",
        "<|end",
        "|>",
        "<",
        "<|end|><s>",
        "the end",
    ),
    *("12345", "7", ".", ",", "'", "(", "_", "-", "##", "12 "),
]
texts = st.lists(st.one_of(st.sampled_from(PIECES), st.text(max_size=3)), max_size=25).map("".join)
EXAMPLES = 25
"""Of each kind of tokenizer, so that all together take seconds."""
every_kind = pytest.mark.parametrize("name", [*zoo.AT_WORDS, *zoo.AT_SPECIAL_TOKENS])


def whole(tokenizer: tokenizers.Tokenizer, text: str) -> list[int]:
    return list(tokenizer.encode(text, add_special_tokens=False).ids)


def unchecked(tokenizer: tokenizers.Tokenizer, part_characters: int = 1024) -> Encoder:
    return Encoder(tokenizer, check_every=0, part_characters=part_characters)


@every_kind
@settings(max_examples=EXAMPLES)
@given(pieces=st.lists(texts, min_size=1, max_size=4), least=st.integers(1, 12))
def test_growing_texts_have_the_tokens_of_the_whole(name: str, pieces: list[str], least: int) -> None:
    tokenizer = zoo.tokenizer(name)
    encoder = unchecked(tokenizer, least)
    for size in range(1, len(pieces) + 1):
        text = "".join(pieces[:size])
        assert encoder.encode(text).tolist() == whole(tokenizer, text)
    encoder._cache._check()


@every_kind
@settings(max_examples=EXAMPLES)
@given(text=texts, data=st.data())
def test_a_text_cut_anywhere_and_then_extended(name: str, text: str, data: st.DataObject) -> None:
    tokenizer = zoo.tokenizer(name)
    encoder = unchecked(tokenizer, 1)
    beginning = text[: data.draw(st.integers(0, len(text)))]
    assert encoder.encode(beginning).tolist() == whole(tokenizer, beginning)
    assert encoder.encode(text).tolist() == whole(tokenizer, text)
    assert encoder.encode(text).tolist() == whole(tokenizer, text)


@pytest.mark.parametrize("name", zoo.AT_WORDS)
def test_kinds_that_are_cut_at_words(name: str) -> None:
    tokenizer = zoo.tokenizer(name)
    encoder = Encoder(tokenizer, part_characters=8)
    assert (encoder.cuts.at_words, encoder.cuts.refused) == (True, "")
    text = "one two three four five six seven eight nine ten eleven twelve"
    encoder.encode(text)
    before = encoder.statistics()
    assert encoder.encode(text + " thirteen").tolist() == whole(tokenizer, text + " thirteen")
    after = encoder.statistics()
    assert after.reused_tokens - before.reused_tokens > 2 * (after.new_tokens - before.new_tokens) > 0
    assert (after.mismatches, after.uncut) == (0, 0)


@pytest.mark.parametrize("name", zoo.AT_SPECIAL_TOKENS)
def test_kinds_that_are_cut_at_special_tokens_only(name: str) -> None:
    encoder = Encoder(zoo.tokenizer(name), part_characters=8)
    assert not encoder.cuts.at_words
    assert encoder.cuts.refused
    assert list(encoder.cuts.parts("the end of the day<|end|>and so on and on</s>", 4)) == [
        "the end of the day",
        "<|end|>and so on and on",
        "</s>",
    ]


def test_special_tokens_that_others_hide_are_no_place_to_cut() -> None:
    before = cuts_of(zoo.tokenizer("added with flags")).before
    assert {"<unk>", "[INST]", "<right>", "|</"} <= set(before)
    # flags; "|</" hides the beginning of "</s>"; "<s>" and "<|end|>" are inside "<|end|><s>"; the last two begin or end in no mark
    assert {"<mask>", "</s>", "<s>", "<|end|>", "x1", "  "}.isdisjoint(before)


@given(text=texts, least=st.integers(1, 20))
def test_the_parts_of_a_text_begin_those_of_a_longer_one(text: str, least: int) -> None:
    cuts = cuts_of(zoo.tokenizer("llama3"))
    parts = list(cuts.parts(text, least))
    assert "".join(parts) == text
    assert all(len(part) >= least for part in parts[:-1])
    for size in range(len(text)):
        shorter = list(cuts.parts(text[:size], least))
        assert shorter[:-1] == parts[: len(shorter) - 1]


def test_a_wrong_cut_is_found_at_the_start_and_ends_all_cutting(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    wrong = Cuts((Place(re.compile("(?<=[a-z]) ")),), (), at_words=True, refused="")
    monkeypatch.setattr("router.frontend.encoder.cuts_of", lambda tokenizer: wrong)
    tokenizer = zoo.tokenizer("words with what follows")
    encoder = Encoder(tokenizer, part_characters=1)
    assert encoder.statistics().mismatches == 1
    assert encoder.cuts.places == ()
    assert [record.levelname for record in caplog.records if "other tokens" in record.message] == ["ERROR"]
    assert encoder.encode("the end of it").tolist() == whole(tokenizer, "the end of it")


def test_a_wrong_cut_is_found_by_samples_later(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    never_in_samples = Cuts((Place(re.compile("(?<=q)q")),), (), at_words=True, refused="")
    monkeypatch.setattr("router.frontend.encoder.cuts_of", lambda tokenizer: never_in_samples)
    tokenizer = zoo.byte_bpe()
    tokenizer.add_tokens(["qq"])
    text = "qq quick qq"
    encoder = Encoder(tokenizer, part_characters=1, check_every=3)
    right = whole(tokenizer, text)
    assert [encoder.encode(text).tolist() == right for _ in range(4)] == [False, False, True, True]
    statistics = encoder.statistics()
    assert statistics.mismatches == 1
    assert statistics.cache.entries == 1  # emptied, then the last text
    assert len([record for record in caplog.records if record.levelno == logging.ERROR]) == 1


def test_what_is_counted() -> None:
    encoder = Encoder(byte_level(), check_every=2, part_characters=10)
    start = encoder.statistics()
    text = "the quick brown fox jumps over the lazy dog"
    tokens = len(encoder.encode(text))
    once = encoder.statistics()
    assert (once.texts - start.texts, once.new_tokens - start.new_tokens) == (1, tokens)
    assert (once.reused_tokens, once.checks) == (start.reused_tokens, start.checks)
    encoder.encode(text)
    encoder.encode("日本語" * 10)
    twice = encoder.statistics()
    assert (twice.reused_tokens - once.reused_tokens, twice.checks - once.checks, twice.uncut) == (tokens, 1, 1)
    assert repr(encoder).startswith("Encoder(4 special tokens, at_words=True, TokenCache(")


def test_without_room_nothing_is_cut(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    encoder = Encoder(byte_level(), cache_bytes=0, part_characters=1)
    assert encoder.encode("a b c").tolist() == whole(byte_level(), "a b c")
    assert encoder.statistics().cache.entries == 0
    assert "the token cache is off" in caplog.text


def test_little_room_evicts_and_stays_right() -> None:
    encoder = Encoder(byte_level(), cache_bytes=20_000, part_characters=16)
    for number in range(60):
        text = f"text number {number} of some length and some more of it " * 4
        assert encoder.encode(text).tolist() == whole(byte_level(), text)
        encoder._cache._check()
    assert encoder.statistics().cache.evictions > 0


def test_a_model_that_draws_at_random_is_never_cut() -> None:
    tokenizer = zoo.byte_bpe()
    tokenizer.model.dropout = 0.5
    assert cuts_of(tokenizer) == Cuts((), (), False, "the model draws at random")


def test_what_cannot_be_cut_is_said(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    Encoder(zoo.tokenizer("lines"))
    assert "at special tokens only: pre-tokenizer: '[^\\\\n]+|\\\\n' joins a letter and a space" in caplog.text
    tokenizer = zoo.byte_bpe("[^\n]+")
    tokenizer.model.dropout = 0.1
    Encoder(tokenizer)
    assert "tokenized whole, as nothing proves that cutting is safe: the model draws at random" in caplog.text


def test_many_threads() -> None:
    tokenizer = byte_level()
    encoder = Encoder(tokenizer, cache_bytes=30_000, part_characters=16)
    shared = [f"the system prompt of tenant {number % 3} goes on and on, turn {number} " * 5 for number in range(40)]
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(encoder.encode, shared * 5))
    assert [tokens.tolist() for tokens in found] == [whole(tokenizer, text) for text in shared] * 5
    encoder._cache._check()
    assert encoder.statistics().mismatches == 0


def test_tokens_are_shared_read_only() -> None:
    encoder = unchecked(byte_level())
    tokens = encoder.encode("hello")
    assert tokens.dtype == np.uint32
    with pytest.raises(ValueError, match="read-only"):
        tokens[0] = 1


@pytest.mark.parametrize(
    ("options", "field"),
    [({"cache_bytes": -1}, "limit_bytes"), ({"check_every": -1}, "check_every"), ({"part_characters": 0}, "part_char")],
)
def test_bad_options_are_named(options: dict[str, int], field: str) -> None:
    with pytest.raises(ValueError, match=field):
        Encoder(byte_level(), **options)


def test_the_guard_is_a_letter_that_may_stand_before_a_cut() -> None:
    assert re.fullmatch("[a-z]", GUARD)
