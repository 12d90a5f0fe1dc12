"""One answer: tokens → text, finish reason, usage."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from router.dispatch.request import Output
    from router.frontend.detokenizer import Detokenizer
    from router.frontend.stops import StopStrings


class Usage(NamedTuple):
    """What a request cost, tokens."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    """Of the prompt's."""


class Completion:
    """Takes outputs in order, and gives their text; `finish_reason` is set once it is complete."""

    def __init__(self, detokenizer: Detokenizer, stops: StopStrings, prompt_tokens: int) -> None:
        self._detokenizer = detokenizer
        self._stops = stops
        self.usage = Usage(prompt_tokens, 0, 0)
        self.finish_reason: str | None = None

    def __repr__(self) -> str:
        return f"Completion({self.usage}, finish_reason={self.finish_reason!r})"

    def push(self, output: Output) -> str:
        """The text that this output adds, as far as it is certain. A stop string is not shown, nor is a stop token."""
        self.usage = self.usage._replace(
            completion_tokens=self.usage.completion_tokens + len(output.token_ids), cached_tokens=output.cached_tokens
        )
        text = self._stops.push(self._detokenizer.push(_shown(output)))
        if output.finish_reason is not None and self._stops.matched is None:
            text += self._stops.push(self._detokenizer.finish())
            text += self._stops.finish()
        self.finish_reason = "stop" if self._stops.matched is not None else output.finish_reason
        return text


def _shown(output: Output) -> list[int]:
    """The tokens but for the stop token that ended them."""
    tokens = output.token_ids
    ends_in_stop = isinstance(output.matched, int) and tokens and tokens[-1] == output.matched
    return tokens[:-1] if ends_in_stop else tokens
