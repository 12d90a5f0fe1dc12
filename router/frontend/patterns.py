"""What a pre-tokenizer's regular expression can match around one place: a lowercase ASCII letter and a space after it.

A pattern is read as the automaton of its positions (Glushkov 1961): which characters can begin a match, which can end one, and
whether a letter and a space can stand side by side in one. That overestimates what the engine matches, so "cannot" is certain.
Only the syntax that tokenizers use is read; for all else the answer is `Unprovable`.
"""

from __future__ import annotations

import re
import string
import unicodedata
from functools import reduce
from typing import NamedTuple

LETTERS = frozenset(string.ascii_lowercase)
SPACE = " "
_BOTH_CASES = frozenset(string.ascii_letters)
_ALL = _BOTH_CASES | {SPACE}
_NONE: frozenset[str] = frozenset()

_ESCAPES = {"s": frozenset(SPACE), "S": _BOTH_CASES, "d": _NONE, "D": _ALL, "w": _BOTH_CASES, "W": frozenset(SPACE)}
_CONTROLS = {"r": "\r", "n": "\n", "t": "\t", "f": "\f", "v": "\v"}
_SCRIPTS = {"Latin": _BOTH_CASES, "Han": _NONE, "Hiragana": _NONE, "Katakana": _NONE, "Hangul": _NONE}


class Unprovable(Exception):
    """Nothing certain is known of this tokenizer; the text says why."""


class Shape(NamedTuple):
    """What a pattern can match. The first four never deny what is possible, `takes_letter` never claims what is not."""

    nullable: bool = True
    starts_with_space: bool = False
    ends_with_letter: bool = False
    joins: bool = False
    """A match can hold a letter directly followed by a space."""
    takes_letter: bool = False
    """Where a letter stands, the pattern matches, whatever follows."""


class _Atom(NamedTuple):
    """A character set, a group or a lookahead; `characters` only of a set."""

    shape: Shape
    characters: frozenset[str] | None = None


class _Piece(NamedTuple):
    """An atom with its quantifier, of which `least` is the fewest times."""

    atom: _Atom
    shape: Shape
    least: int
    possessive: bool


def shape_of(pattern: str) -> Shape:
    r"""Of a whole pattern. O(length).

    >>> shape_of(r" ?\p{L}+|\s+(?!\S)|\s+")
    Shape(nullable=False, starts_with_space=True, ends_with_letter=True, joins=False, takes_letter=True)
    >>> shape_of(r"\w+ ?").joins
    True

    :raises Unprovable: it looks behind, is anchored, can match nothing, or uses syntax that is not read here.
    """
    reader = _Reader(pattern)
    shape = reader.alternatives(ignore_case=False)
    if reader.peek():
        raise Unprovable(f"pattern: unexpected {reader.peek()!r}")
    if shape.nullable:
        raise Unprovable("pattern: can match nothing")
    return shape


class _Reader:
    """Recursive descent over the pattern."""

    def __init__(self, pattern: str) -> None:
        self._pattern = pattern
        self._at = 0

    def peek(self) -> str:
        """The next character; empty at the end."""
        return self._pattern[self._at : self._at + 1]

    def alternatives(self, ignore_case: bool) -> Shape:
        """`branch|branch…`"""
        shape = self._branch(ignore_case)
        while self._taken("|"):
            shape = Shape(*map(max, shape, self._branch(ignore_case)))
        return shape

    def _taken(self, text: str) -> bool:
        found = self._pattern.startswith(text, self._at)
        if found:
            self._at += len(text)
        return found

    def _next(self) -> str:
        character = self.peek()
        if not character:
            raise Unprovable("pattern: ends too early")
        self._at += 1
        return character

    def _branch(self, ignore_case: bool) -> Shape:
        pieces: list[_Piece] = []
        while self.peek() not in ("", "|", ")"):
            pieces.append(self._piece(ignore_case))
        shape = reduce(_then, (piece.shape for piece in pieces), Shape())
        return shape._replace(takes_letter=any(_takes_letter(pieces, at) for at in range(len(pieces))))

    def _piece(self, ignore_case: bool) -> _Piece:
        atom = self._atom(ignore_case)
        least, repeats = self._quantifier()
        possessive = (least, repeats) != (1, False) and self._ending()
        shape = atom.shape
        joins = shape.joins or (repeats and shape.ends_with_letter and shape.starts_with_space)
        return _Piece(atom, shape._replace(nullable=shape.nullable or least == 0, joins=joins), least, possessive)

    def _quantifier(self) -> tuple[int, bool]:
        """(fewest, whether more than one)."""
        for sign, meaning in (("?", (0, False)), ("*", (0, True)), ("+", (1, True))):
            if self._taken(sign):
                return meaning
        if not self._taken("{"):
            return 1, False
        text = self._until("}")
        fewest, comma, most = text.partition(",")
        if not (fewest + most).isdecimal() or self.peek() in ("?", "+", "*"):
            raise Unprovable("pattern: unknown repetition")
        once = most in ("0", "1") if comma else fewest in ("0", "1")
        return int(fewest or 0), not once

    def _ending(self) -> bool:
        """Whether possessive; lazy counts as greedy, as only the set of matches is looked at."""
        if self.peek() in ("+", "?"):
            return self._next() == "+"
        return False

    def _until(self, end: str) -> str:
        stop = self._pattern.find(end, self._at)
        if stop < 0:
            raise Unprovable(f"pattern: no {end!r}")
        text, self._at = self._pattern[self._at : stop], stop + 1
        return text

    def _atom(self, ignore_case: bool) -> _Atom:
        character = self._next()
        if character == "(":
            return self._group(ignore_case)
        if character == "[":
            return _one_of(self._set(ignore_case))
        if character == "\\":
            return _one_of(_cased(self._escape()[0], ignore_case))
        if character == ".":
            return _one_of(_ALL)
        if character in "^$*+?{})]":
            raise Unprovable(f"pattern: {character!r} is not understood")
        return _one_of(_cased(frozenset(character) & _ALL, ignore_case))

    def _group(self, ignore_case: bool) -> _Atom:
        if self._taken("?!") or self._taken("?="):
            atom = self._lookahead(ignore_case)
        elif self._taken("?i:"):
            atom = self._any_case()
        elif self._taken("?:") or self.peek() not in ("?", "*"):
            atom = _Atom(self.alternatives(ignore_case))
        else:
            raise Unprovable("pattern: a group of unknown kind")
        if not self._taken(")"):
            raise Unprovable("pattern: an open group")
        return atom

    def _any_case(self) -> _Atom:
        """Only of ASCII: others can match several letters at once, as ß does ss."""
        start = self._at
        atom = _Atom(self.alternatives(ignore_case=True))
        text = self._pattern[start : self._at]
        if not text.isascii() or "\\u" in text:
            raise Unprovable("pattern: a group of any case with characters other than ASCII")
        return atom

    def _lookahead(self, ignore_case: bool) -> _Atom:
        """One character that is no space: before a space and at the end of the text it says the same."""
        ahead = self._atom(ignore_case)
        if ahead.characters is None or SPACE in ahead.characters:
            raise Unprovable("pattern: looks ahead further than at one character")
        return _Atom(Shape())

    def _escape(self) -> tuple[frozenset[str], str]:
        """(the set, the character if it is a single one)."""
        character = self._next()
        if character in _ESCAPES:
            return _ESCAPES[character], ""
        if character in "pP":
            return self._property(character == "P"), ""
        if character in _CONTROLS:
            return _NONE, _CONTROLS[character]
        if character == "u":
            number = self._pattern[self._at : self._at + 4]
            if len(number) < 4 or not set(number) <= set(string.hexdigits):
                raise Unprovable("pattern: unknown escape \\u")
            self._at += 4
            character = chr(int(number, 16))
        elif character.isalnum():
            raise Unprovable(f"pattern: unknown escape \\{character}")
        return frozenset(character) & _ALL, character

    def _property(self, negated: bool) -> frozenset[str]:
        """A general category, such as L or Lu, or a script."""
        name = self._until("}").removeprefix("{")
        if re.fullmatch("[CLMNPSZ][a-z]?", name):
            members = frozenset(c for c in _ALL if unicodedata.category(c).startswith(name))
        elif name in _SCRIPTS:
            members = _SCRIPTS[name]
        else:
            raise Unprovable(f"pattern: unknown property {name!r}")
        return _ALL - members if negated else members

    def _set(self, ignore_case: bool) -> frozenset[str]:
        """After its `[`, to its `]`."""
        negated = self._taken("^")
        members: frozenset[str] = _NONE
        while not self._taken("]"):
            characters, first = self._member()
            if first and self.peek() == "-" and self._pattern[self._at + 1 : self._at + 2] != "]":
                self._next()
                last = self._member()[1]
                if not last:
                    raise Unprovable("pattern: a range without an end")
                characters = frozenset(c for c in _ALL if first <= c <= last)
            members |= characters
        members = _cased(members, ignore_case)
        return _ALL - members if negated else members

    def _member(self) -> tuple[frozenset[str], str]:
        character = self._next()
        if character == "\\":
            return self._escape()
        if character == "[" or (character == "&" and self.peek() == "&"):
            raise Unprovable("pattern: a set within a set")
        return frozenset(character) & _ALL, character


def _cased(characters: frozenset[str], ignore_case: bool) -> frozenset[str]:
    return characters | {c.swapcase() for c in characters} if ignore_case else characters


def _one_of(characters: frozenset[str]) -> _Atom:
    shape = Shape(
        nullable=False, starts_with_space=SPACE in characters, ends_with_letter=not characters.isdisjoint(LETTERS)
    )
    return _Atom(shape, characters)


def _then(a: Shape, b: Shape) -> Shape:
    """One after the other."""
    return Shape(
        nullable=a.nullable and b.nullable,
        starts_with_space=a.starts_with_space or (a.nullable and b.starts_with_space),
        ends_with_letter=b.ends_with_letter or (b.nullable and a.ends_with_letter),
        joins=a.joins or b.joins or (a.ends_with_letter and b.starts_with_space),
    )


def _takes_letter(pieces: list[_Piece], at: int) -> bool:
    """Whether piece `at` alone can take any letter while the others take nothing.

    Then the engine, which tries every way, finds some match there. A lookahead counts as one that takes something: it might
    forbid the match.
    """
    piece, before, after = pieces[at], pieces[:at], pieces[at + 1 :]
    characters = piece.atom.characters
    if characters is None or not characters >= LETTERS or piece.least > 1:
        return False
    return all(p.least == 0 for p in before + after) and not any(_might_keep_letter(p) for p in before)


def _might_keep_letter(piece: _Piece) -> bool:
    """A possessive piece gives nothing back; of a group it is not known what it takes."""
    characters = _ALL if piece.atom.characters is None else piece.atom.characters
    return piece.possessive and not characters.isdisjoint(LETTERS)
