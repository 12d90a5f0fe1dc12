"""Stop strings in text that comes in pieces."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable


class StopStrings:
    r"""Passes text on until a stop string is complete; holds back what may be the beginning of one.

    The match that ends first counts (of several, the longest), so where the text was cut into pieces makes no difference.
    Each piece costs O(len(held + piece) * stops).

    >>> stops = StopStrings(["\nUser:"])
    >>> stops.push("Hello.\nUs"), stops.push("e"), stops.push("r: hi"), stops.matched
    ('Hello.', '', '', '\nUser:')
    """

    def __init__(self, stops: Iterable[str]) -> None:
        self._stops = tuple(stop for stop in stops if stop)
        self._held = ""
        self.matched: str | None = None
        """The stop string that ended the text; None so far."""

    def __repr__(self) -> str:
        return f"StopStrings({list(self._stops)}, held={self._held!r}, matched={self.matched!r})"

    def push(self, piece: str) -> str:
        """The text that is certain to stand before any stop string; nothing once one has matched."""
        if self.matched is not None:
            return ""
        text = self._held + piece
        if not self._stops or not text:
            return text
        found = [(start + len(stop), start, stop) for stop in self._stops if (start := text.find(stop)) >= 0]
        if found:
            _, start, self.matched = min(found)
            self._held = ""
            return text[:start]
        keep = min(_beginning(text, stop) for stop in self._stops)
        self._held = text[keep:]
        return text[:keep]

    def finish(self) -> str:
        """What is still held back, now that nothing follows."""
        held, self._held = self._held, ""
        return held


def _beginning(text: str, stop: str) -> int:
    """Where the longest end of `text` begins that is a beginning of `stop`; len(text) if there is none."""
    position = text.find(stop[0], max(0, len(text) - len(stop) + 1))
    while position >= 0:
        if stop.startswith(text[position:]):
            return position
        position = text.find(stop[0], position + 1)
    return len(text)
