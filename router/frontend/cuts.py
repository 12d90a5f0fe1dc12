"""Where a text can be cut so that its parts have the tokens of the whole, one after the other, whatever surrounds them.

A tokenizer splits off special tokens, normalizes each part between them, pre-tokenizes it, and runs its model on each pre-token.
So there are two kinds of places:

* *before a special token* that the text is split at wherever it occurs: it is matched on the raw text, it takes no space before
  it, and no other added token can overlap it;
* *between a lowercase ASCII letter and a space*, if every step is proven to keep the two apart: the normalizer works character by
  character there, and the pre-tokenizer always splits there, or else no token of a BPE vocabulary spans the place, and so no merge
  does.

Steps that are not known, or not proven, allow no cut. A part that does not begin its text is tokenized behind `GUARD`, as some
tokenizers treat the beginning of a text apart; the guard's own tokens are then dropped.
"""

from __future__ import annotations

import json
import re
import string
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

from tokenizers import models

from router.frontend.patterns import LETTERS, SPACE, Unprovable, shape_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from tokenizers import AddedToken, Tokenizer

GUARD = "a"
LOWER_BLOCK = "\N{LOWER ONE EIGHTH BLOCK}"
BYTE_LEVEL_SPACE = "\N{LATIN CAPITAL LETTER G WITH DOT ABOVE}"
GPT2_PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
EDGES = frozenset(string.punctuation) - {"_"}

# These work character by character, or compose characters, and no composition begins with a space.
LOCAL_NORMALIZERS = {
    "NFC",
    "NFD",
    "NFKC",
    "NFKD",
    "Lowercase",
    "StripAccents",
    "Nmt",
    "BertNormalizer",
    "Strip",
    "Prepend",
}
SPACE_SPLITTERS = {"WhitespaceSplit", "Whitespace", "BertPreTokenizer"}


class Place(NamedTuple):
    """A kind of place. No pattern begins by looking back or ahead: those are searched for several times as slowly."""

    pattern: re.Pattern[str]
    offset: int = 0
    """Characters from the beginning of a match to the place."""
    longest: int = 1
    """Most characters of a match."""


class Cuts(NamedTuple):
    """The places of one tokenizer."""

    places: tuple[Place, ...]
    """Empty: there are none."""
    before: tuple[str, ...]
    """Special tokens that a text can be cut before."""
    at_words: bool
    """Whether it can be cut between a lowercase letter and a space."""
    refused: str
    """Why not at words; empty if it can."""

    def parts(self, text: str, least: int) -> Iterator[str]:
        """`text` in parts of `least` characters, each then going on to the next place.

        The parts of a text are those of a longer one that begins with it, but for its last. O(n).
        """
        start = 0
        while (end := self._first(text, start + least)) is not None:
            yield text[start:end]
            start = end
        yield text[start:]

    def _first(self, text: str, start: int) -> int | None:
        """The first place from `start` on, of any kind. O(n)."""
        first, end = None, len(text)
        for place in self.places:
            found = place.pattern.search(text, start - place.offset, end + place.longest)
            if found and (first is None or found.start() + place.offset < first):
                first = end = found.start() + place.offset  # of another kind only an earlier one counts
        return first


def cuts_of(tokenizer: Tokenizer) -> Cuts:
    """What can be proven of a tokenizer. O(vocabulary)."""
    if _is_random(tokenizer.model):
        return Cuts((), (), False, "the model draws at random")
    before = tuple(_free_standing(tokenizer.get_added_tokens_decoder().values()))
    try:
        _prove_words(tokenizer)
        refused = ""
    except Unprovable as error:
        refused = str(error)
    return Cuts(_places(before, not refused), before, not refused, refused)


def _places(before: tuple[str, ...], at_words: bool) -> tuple[Place, ...]:
    # Words first: they are near, and a special token further on need not be searched for.
    words = [Place(re.compile(f"[a-z](?={SPACE})"), offset=1)] if at_words else []
    special = [Place(re.compile(_any_of(before)), longest=max(map(len, before)))] if before else []
    return (*words, *special)


def _any_of(texts: Iterable[str]) -> str:
    """A pattern that begins as one of the texts; a tree of their characters, as there may be hundreds."""
    tails: dict[str, list[str]] = {}
    for text in texts:
        if not text:
            return ""
        tails.setdefault(text[0], []).append(text[1:])
    branches = [re.escape(character) + _any_of(tail) for character, tail in tails.items()]
    return branches[0] if len(branches) == 1 else f"(?:{'|'.join(branches)})"


def _is_random(model: Any) -> bool:
    """BPE with dropout, Unigram that samples."""
    return bool(getattr(model, "dropout", None) or getattr(model, "alpha", None) or getattr(model, "nbest_size", None))


# ---- before a special token


def _free_standing(added: Iterable[AddedToken]) -> Iterator[str]:
    """Tokens that are matched wherever they occur in a text."""
    raw = [token for token in added if not token.normalized]
    for token in raw:
        text = token.content
        plain = text and {text[0], text[-1]} <= EDGES and not (token.lstrip or token.single_word)
        if plain and not any(_overlaps(other.content, text) for other in raw):
            yield text


def _overlaps(other: str, text: str) -> bool:
    """Whether `other` can cover the beginning of an occurrence of `text`, and so hide it."""
    if other != text and text in other:
        return True
    return any(other.endswith(text[:size]) for size in range(1, min(len(text), len(other) + 1)))


# ---- between a letter and a space


def _prove_words(tokenizer: Tokenizer) -> None:
    """:raises Unprovable: a part of the tokenizer may join what stands on the two sides."""
    space = _normalized_space(_state(tokenizer.normalizer))
    for token in tokenizer.get_added_tokens_decoder().values():
        _prove_apart(token, tokenizer, space)
    if space := _pre_tokenized_space(_state(tokenizer.pre_tokenizer), space):
        _prove_merges_apart(tokenizer, space)


def _state(part: Any) -> dict[str, Any]:
    """A tokenizer's part as its file has it; empty if there is none."""
    if part is None:
        return {}
    try:
        state: dict[str, Any] = json.loads(part.__getstate__())
    except Exception as error:  # the library raises plain exceptions
        raise Unprovable(f"{type(part).__name__}: {error}") from error
    return state


def _prove_apart(token: AddedToken, tokenizer: Tokenizer, space: str) -> None:
    """An added token spans no such place, and none begins behind one: a normalizer would take the space there for a beginning."""
    normalizer = tokenizer.normalizer if token.normalized else None
    for text in (token.content, normalizer.normalize_str(token.content) if normalizer else token.content):
        spans = any(a in string.ascii_letters and b in (SPACE, space) for a, b in pairwise(text))
        if spans or text[-1:] in LETTERS:
            raise Unprovable(f"added token {token.content!r} holds a letter that a space may follow")


def _normalized_space(normalizer: dict[str, Any]) -> str:
    """What a space behind a letter has become."""
    space = SPACE
    for step in _steps(normalizer, "normalizers"):
        if step["type"] == "Replace":
            space = _replaced_space(step, space)
        elif step["type"] not in LOCAL_NORMALIZERS:
            raise Unprovable(f"normalizer {step['type']}")
    return space


def _replaced_space(step: dict[str, Any], space: str) -> str:
    pattern, content = step["pattern"].get("String"), step["content"]
    if pattern == space and content == LOWER_BLOCK:
        return LOWER_BLOCK
    if not pattern or not LETTERS.isdisjoint(pattern) or space in pattern:
        raise Unprovable(f"normalizer Replace of {step['pattern']}")
    return space


def _pre_tokenized_space(pre_tokenizer: dict[str, Any], space: str) -> str:
    """What a space has become where the model may still see it with the letter before it; empty: they are apart for certain."""
    for step in _steps(pre_tokenizer, "pretokenizers"):
        kind = step["type"]
        if kind == "Metaspace":
            space = _metaspace(step, space)
        elif kind == "ByteLevel":
            space = _byte_level(step, space)
        elif kind == "Split":
            space = _split(step, space)
        elif kind in SPACE_SPLITTERS and space == SPACE:
            space = ""
        elif not (kind == "Digits" or (kind == "Punctuation" and step.get("behavior") == "Isolated")):
            raise Unprovable(f"pre-tokenizer {kind}")
        if not space:
            return ""
    return space


def _steps(part: dict[str, Any], members: str) -> Iterator[dict[str, Any]]:
    """A sequence's members, and theirs."""
    if part.get("type") == "Sequence":
        for member in part[members]:
            yield from _steps(member, members)
    elif part:
        yield part


def _metaspace(step: dict[str, Any], space: str) -> str:
    if space not in (SPACE, step["replacement"]):
        raise Unprovable("pre-tokenizer Metaspace after another one")
    return "" if step.get("split", True) else step["replacement"]


def _byte_level(step: dict[str, Any], space: str) -> str:
    if space != SPACE:
        raise Unprovable("pre-tokenizer ByteLevel without spaces")
    return _matched_apart(GPT2_PATTERN, BYTE_LEVEL_SPACE) if step.get("use_regex", True) else BYTE_LEVEL_SPACE


def _split(step: dict[str, Any], space: str) -> str:
    pattern = step["pattern"]
    if pattern == {"String": SPACE} and space == LOWER_BLOCK:
        return space  # matches nothing: there are no spaces
    if space != SPACE or step["behavior"] not in ("Isolated", "Removed"):
        raise Unprovable(f"pre-tokenizer Split, {step['behavior']}")
    if "String" in pattern:
        return _matched_apart(re.escape(pattern["String"]), SPACE) if pattern["String"] != SPACE else ""
    return _matched_apart(pattern["Regex"], SPACE)


def _matched_apart(pattern: str, space: str) -> str:
    """No match spans the place; if each letter is in a match, then nothing between two matches does either."""
    shape = shape_of(pattern)
    if shape.joins:
        raise Unprovable(f"pre-tokenizer: {pattern!r} joins a letter and a space")
    return "" if shape.takes_letter else space


def _prove_merges_apart(tokenizer: Tokenizer, space: str) -> None:
    """BPE over a whole text: what no token spans, no merge spans, and the two sides are merged independently."""
    model = tokenizer.model
    if not isinstance(model, models.BPE) or model.ignore_merges:
        raise Unprovable("the model sees the whole text")
    if model.continuing_subword_prefix or model.end_of_word_suffix:
        raise Unprovable("the model marks the ends of words")
    vocabulary = tokenizer.get_vocab(with_added_tokens=False)
    if not vocabulary.keys() >= LETTERS | {space}:
        raise Unprovable("the vocabulary lacks a letter, or the space")
    spans = re.compile(f"[a-z]{re.escape(space)}")
    joined = next(filter(spans.search, vocabulary), None)
    if joined is not None:
        raise Unprovable(f"token {joined!r} spans a letter and a space")
