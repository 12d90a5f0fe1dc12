"""Tokenizers of every kind that models come with, trained on a little text, and some that no model should have."""

from __future__ import annotations

import json
from functools import cache
from typing import TYPE_CHECKING, Any

from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

from tests.router.frontend.models import CORPUS

if TYPE_CHECKING:
    from collections.abc import Callable

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
QWEN2 = LLAMA3.replace("{1,3}", "")
POSSESSIVE = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s*[\r\n]|\s+(?!\S)|\s+"
)
GPT4O = "|".join(
    (
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
        r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    )
)
DEEPSEEK = (
    r"\p{N}{1,3}",
    "[一-龥぀-ゟ゠-ヿ]+",
    (
        r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
        r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    ),
)
PROSE = [
    *CORPUS,
    "In the end the end of the day is the end of it, and so on and on, as they say in the old town of the north.",
    "def f(x):\n    return x + 1  # 12345 a comment's end\n\n\nfor i in range(10):\n\tprint(i)\r\n",
]
SPECIAL = ["<unk>", "<s>", "</s>", "<|end|>", "[INST]"]


def _trained(model: Any, trainer: Any, normalizer: Any = None, pre_tokenizer: Any = None, **options: Any) -> Tokenizer:
    tokenizer = Tokenizer(model)
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    if pre_tokenizer is not None:
        tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.train_from_iterator(
        PROSE * 3, trainer(vocab_size=700, special_tokens=SPECIAL, show_progress=False, **options)
    )
    return tokenizer


def byte_bpe(
    *patterns: str, normalizer: Any = None, behavior: str = "isolated", invert: bool = False, prefix_space: bool = False
) -> Tokenizer:
    """BPE over bytes, behind splits by these patterns."""
    splits = [pre_tokenizers.Split(Regex(pattern), behavior, invert) for pattern in patterns]
    bytes_ = pre_tokenizers.ByteLevel(add_prefix_space=prefix_space, use_regex=not patterns)
    return _trained(
        models.BPE(),
        trainers.BpeTrainer,
        normalizer,
        pre_tokenizers.Sequence([*splits, bytes_]),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )


def sentence_bpe(normalizer: Any, pre_tokenizer: Any, words: bool = True) -> Tokenizer:
    """BPE over characters with bytes for the rest; trained on words, or on whole lines so that tokens span spaces."""
    trained = _trained(
        models.BPE(),
        trainers.BpeTrainer,
        None,
        pre_tokenizers.Metaspace() if words else pre_tokenizers.Metaspace(split=False),
    )
    vocabulary = trained.get_vocab()
    fallback = {f"<0x{byte:02X}>": len(vocabulary) + byte for byte in range(256)}
    merges = _merges(trained)
    tokenizer = Tokenizer(
        models.BPE({**vocabulary, **fallback}, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    )
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    if pre_tokenizer is not None:
        tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.add_special_tokens(SPECIAL)
    return tokenizer


def _merges(tokenizer: Tokenizer) -> list[tuple[str, str]]:
    return [tuple(merge) for merge in json.loads(tokenizer.to_str())["model"]["merges"]]


def _with(tokenizer: Tokenizer, *added: AddedToken) -> Tokenizer:
    tokenizer.add_tokens(list(added))
    return tokenizer


def _llama2(words: bool = True) -> Tokenizer:
    steps = [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    return sentence_bpe(normalizers.Sequence(steps), None, words)


def _metaspace(scheme: str, split: bool = True) -> Tokenizer:
    return sentence_bpe(None, pre_tokenizers.Metaspace(prepend_scheme=scheme, split=split))


def _unigram(pre_tokenizer: Any) -> Tokenizer:
    return _trained(models.Unigram(), trainers.UnigramTrainer, normalizers.NFKC(), pre_tokenizer, unk_token="<unk>")


def _wordpiece() -> Tokenizer:
    return _trained(
        models.WordPiece(unk_token="<unk>"),
        trainers.WordPieceTrainer,
        normalizers.BertNormalizer(),
        pre_tokenizers.BertPreTokenizer(),
    )


def _unsplit(tokenizer: Tokenizer) -> Tokenizer:
    """The model sees whole texts."""
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return tokenizer


AT_WORDS: dict[str, Callable[[], Tokenizer]] = {
    "gpt2": byte_bpe,
    "gpt2 prefix space": lambda: byte_bpe(prefix_space=True),
    "llama3": lambda: byte_bpe(LLAMA3),
    "qwen2": lambda: byte_bpe(QWEN2, normalizer=normalizers.NFC()),
    "possessive": lambda: byte_bpe(POSSESSIVE),
    "gpt4o": lambda: byte_bpe(GPT4O),
    "gpt4o removed": lambda: byte_bpe(GPT4O, behavior="removed", invert=True),
    "deepseek": lambda: byte_bpe(*DEEPSEEK),
    "lowercase nfkd": lambda: byte_bpe(
        LLAMA3,
        normalizer=normalizers.Sequence([normalizers.NFKD(), normalizers.StripAccents(), normalizers.Lowercase()]),
    ),
    "bytes, unsplit": lambda: _unsplit(byte_bpe()),
    "llama2": _llama2,
    "gemma": lambda: sentence_bpe(normalizers.Replace(" ", "▁"), pre_tokenizers.Split(" ", "merged_with_previous")),
    "metaspace always": lambda: _metaspace("always"),
    "metaspace first": lambda: _metaspace("first"),
    "metaspace never": lambda: _metaspace("never"),
    "metaspace first, unsplit": lambda: _metaspace("first", split=False),
    "unigram words": lambda: _unigram(pre_tokenizers.Metaspace()),
    "bert": _wordpiece,
    "added with flags": lambda: _with(
        byte_bpe(LLAMA3, normalizer=normalizers.NFC()),
        AddedToken("<mask>", lstrip=True, special=True, normalized=False),
        AddedToken("<right>", rstrip=True, special=True, normalized=False),
        AddedToken("x1", single_word=True, normalized=False),
        AddedToken("  ", normalized=True),
        AddedToken("<|end|><s>", special=True, normalized=False),
        AddedToken("|</", special=True, normalized=False),
    ),
}
"""Cut between words, and before special tokens."""

AT_SPECIAL_TOKENS: dict[str, Callable[[], Tokenizer]] = {
    "words with what follows": lambda: byte_bpe(r"\w+\s?|\s+|[^\w\s]+"),
    "lines": lambda: byte_bpe(r"[^\n]+|\n"),
    "letters in no match": lambda: byte_bpe(r"\p{N}+"),
    "looks behind": lambda: byte_bpe(r"(?<=e) |\p{L}+|\s+"),
    "merged with next": lambda: byte_bpe(r"\p{L}+", behavior="merged_with_next"),
    "llama2 over words": lambda: _llama2(words=False),
    "unigram over words": lambda: _unigram(pre_tokenizers.Metaspace(split=False)),
    "replaced words": lambda: byte_bpe(LLAMA3, normalizer=normalizers.Replace("e ", "f")),
    "replaced by pattern": lambda: byte_bpe(LLAMA3, normalizer=normalizers.Replace(Regex(r"\w+ "), "x")),
    "scripts": lambda: _trained(models.BPE(), trainers.BpeTrainer, None, pre_tokenizers.UnicodeScripts()),
    "added over words": lambda: _with(byte_bpe(LLAMA3), AddedToken("the end")),
    "added over words, normalized": lambda: _with(
        byte_bpe(LLAMA3, normalizer=normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])),
        AddedToken("ＥＮＤ 1", normalized=True),
    ),
    "added before a beginning": lambda: _with(_llama2(), AddedToken("end", normalized=False)),
    "bytes, unsplit, over words": lambda: _unsplit(byte_bpe("[^\n]+")),
    "added takes the space": lambda: _with(byte_bpe(LLAMA3), AddedToken("end", rstrip=True)),
}
"""Cut before special tokens only."""


@cache
def tokenizer(name: str) -> Tokenizer:
    """By its name in one of the tables."""
    return {**AT_WORDS, **AT_SPECIAL_TOKENS}[name]()
