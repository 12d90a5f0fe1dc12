"""Subjects (`a.b.c`) and patterns over them: `*` is any one token, a final `>` any one or more."""

from __future__ import annotations

import functools
import re

_TOKEN = re.compile(r"[^\s.*>]+")


@functools.lru_cache(maxsize=4096)  # a publisher uses the same few subjects over and over
def check_subject(subject: str) -> str:
    """The subject itself, if messages can be published to it. O(n).

    :raises ValueError: it is empty, has an empty token, or holds white space or a wildcard.
    """
    if not all(_TOKEN.fullmatch(token) for token in subject.split(".")):
        raise ValueError(f"subject {subject!r}: tokens between the dots must not be empty, nor hold spaces, '*' or '>'")
    return subject


class Pattern:
    """Chooses subjects.

    >>> Pattern("kv.*.0").matches("kv.worker-1.0"), Pattern("kv.>").matches("kv")
    (True, False)

    :raises ValueError: a token is empty, holds white space, or mixes a wildcard with text; or `>` is not the last.
    """

    __slots__ = ("_matches", "text")

    def __init__(self, text: str) -> None:
        *tokens, last = text.split(".")
        expression = [_expression(token, text) for token in tokens] + [".+" if last == ">" else _expression(last, text)]
        self.text = text
        self._matches = re.compile(r"\.".join(expression)).fullmatch

    def matches(self, subject: str) -> bool:
        """Whether the pattern chooses a (valid) subject. O(n)."""
        return self._matches(subject) is not None

    def __repr__(self) -> str:
        return f"Pattern({self.text!r})"


def _expression(token: str, text: str) -> str:
    if token == "*":  # noqa: S105 - a subject's token is no secret
        return r"[^.]+"
    if not _TOKEN.fullmatch(token):
        raise ValueError(f"pattern {text!r}: {token!r} is no token; '*' stands alone, '>' alone and last")
    return re.escape(token)
