from __future__ import annotations

import pytest
from hypothesis import given, reject, settings
from hypothesis import strategies as st
from tokenizers import Regex
from tokenizers.pre_tokenizers import Split

from router.frontend.patterns import Unprovable, shape_of
from tests.router.frontend import zoo


@pytest.mark.parametrize("pattern", [zoo.GPT2, zoo.LLAMA3, zoo.QWEN2, zoo.POSSESSIVE, zoo.GPT4O, zoo.DEEPSEEK[-1]])
def test_patterns_of_models_split_before_a_space(pattern: str) -> None:
    shape = shape_of(pattern)
    assert (shape.joins, shape.takes_letter) == (False, True)


@pytest.mark.parametrize("pattern", zoo.DEEPSEEK[:2])
def test_patterns_that_leave_letters_alone(pattern: str) -> None:
    shape = shape_of(pattern)
    assert (shape.joins, shape.takes_letter) == (False, False)


@pytest.mark.parametrize(
    "pattern",
    [
        r"\w+\s?",
        "[^\n]+",
        "a b",
        "(?:a|b )+",
        r"\p{L}\r? ",
        "(?i:X) ",
        "e(?:x|y)* ",
        r"[a-f\s]{2,}",
        r"(\p{L}| )+",
        ".{1,}",
        r"[\u0020-\u007e]+",
        r"\P{N}+",
    ],
)
def test_patterns_that_can_join(pattern: str) -> None:
    assert shape_of(pattern).joins


@pytest.mark.parametrize(
    "pattern",
    [
        "[a-y]",
        r"\p{L}{2,}",
        r"\p{L}{2}",
        r"\p{L}x",
        r"\p{L}(?!\S)",
        r"(?!\S)?x\p{L}",
        r"\w?+\p{L}",
        r"(?:\w)?+\p{L}",
        r"(?:(?!x)y*)\p{L}",
        r"\p{Lu}+",
        r"\p{L}++x|\d",
    ],
)
def test_patterns_that_may_leave_a_letter_out(pattern: str) -> None:
    assert not shape_of(pattern).takes_letter


@pytest.mark.parametrize(
    ("pattern", "reason"),
    [
        ("(?<=a)b", "group"),
        ("(?<!a)b", "group"),
        ("(?>a)b", "group"),
        ("(?i:ß)", "ASCII"),
        (r"(?i:[\u00df])", "ASCII"),
        ("(?i)a", "group"),
        ("^a", "'\\^'"),
        ("a$", "'\\$'"),
        (r"a\b", "escape"),
        (r"(a)\1", "escape"),
        (r"\x41", "escape"),
        (r"\u00", "escape"),
        (r"\p{Emoji}", "property"),
        ("[a&&b]", "set"),
        ("[[:alpha:]]", "set"),
        (r"[a-\s]", "range"),
        ("a*", "nothing"),
        ("", "nothing"),
        ("a(?=bc)", "open group"),
        (r"a(?!\s)", "ahead"),
        (r"a(?=(?:b))", "ahead"),
        ("a{x}", "repetition"),
        ("a{}", "repetition"),
        ("a{1,2}+", "repetition"),
        ("a{1", "no '}'"),
        ("(a", "open group"),
        ("a)", "unexpected"),
        ("[a", "too early"),
        ("a\\", "too early"),
    ],
)
def test_what_is_not_understood_is_not_proven(pattern: str, reason: str) -> None:
    with pytest.raises(Unprovable, match=reason):
        shape_of(pattern)


atoms = st.sampled_from(
    [
        "a",
        "b",
        " ",
        "x",
        r"\s",
        r"\S",
        r"\p{L}",
        "[a-c]",
        "[^ab]",
        "[ x]",
        r"(?!\S)",
        "(?=a)",
        r"\p{N}",
        ".",
        r"[^\s\p{L}]",
    ]
)
patterns = st.recursive(
    st.tuples(
        atoms, st.sampled_from(["", "", "?", "*", "+", "?+", "++", "*+", "+?", "{2}", "{1,2}", "{0,1}", "{1,}"])
    ).map("".join),
    lambda inner: st.one_of(
        st.lists(inner, min_size=2, max_size=3).map("".join),
        st.lists(inner, min_size=2, max_size=3).map("|".join).map("(?:{})".format),
        inner.map("(?i:{})".format),
    ),
    max_leaves=5,
)


@settings(max_examples=500)
@given(pattern=patterns, text=st.text("aabcxA1  .\n", max_size=12))
def test_the_engine_does_what_was_proven(pattern: str, text: str) -> None:
    """What it matches never joins a letter and a space; if letters are always taken, it splits there."""
    try:
        Regex(pattern)
    except Exception:  # the library raises plain exceptions
        reject()
    try:
        shape = shape_of(pattern)
    except Unprovable:
        return
    if shape.joins:
        return
    found = [span for _, span in Split(Regex(pattern), "removed").pre_tokenize_str(text)]
    gaps = {place for start, stop in found for place in range(start + 1, stop)}
    kept = [span for _, span in Split(Regex(pattern), "removed", invert=True).pre_tokenize_str(text)]
    matched = {place for start, stop in kept for place in range(start + 1, stop)}
    places = {at for at in range(1, len(text)) if text[at - 1] in "abcx" and text[at] == " "}
    assert not places & matched
    if shape.takes_letter:
        assert not places & gaps
