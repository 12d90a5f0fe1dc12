"""An answer in OpenAI's words: whole, or in the chunks of a stream. Everything here makes bytes."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, ClassVar

import msgspec

if TYPE_CHECKING:
    from router.frontend.completion import Usage
    from router.frontend.errors import ApiError

DONE = b"data: [DONE]\n\n"


def event(content: object) -> bytes:
    """One server-sent event."""
    return b"data: " + msgspec.json.encode(content) + b"\n\n"


def error_event(error: ApiError) -> bytes:
    """A failure within a stream: its last event, in place of `DONE`."""
    return b"data: " + error.body() + b"\n\n"


def usage_fields(usage: Usage) -> dict[str, object]:
    """OpenAI's `usage`."""
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
    }


class Replies:
    """The reply to one request; subclasses know the words of one endpoint."""

    prefix: ClassVar[str]
    whole: ClassVar[str]
    chunk: ClassVar[str]

    def __init__(self, request_id: str, model: str, *, include_usage: bool = False) -> None:
        self._head = {"id": f"{self.prefix}-{request_id}", "created": int(time.time()), "model": model}
        self._include_usage = include_usage

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._head['id']})"

    def opening(self) -> bytes:
        """What a stream begins with."""
        return b""

    def piece(self, text: str, finish_reason: str | None) -> bytes:
        """A piece of text, then the end if this is it; nothing if there is neither."""
        return (self.delta(text) if text else b"") + (self.delta("", finish_reason) if finish_reason else b"")

    def delta(self, text: str, finish_reason: str | None = None) -> bytes:
        """One chunk."""
        raise NotImplementedError

    def closing(self, usage: Usage) -> bytes:
        """What a complete stream ends with: usage if it was asked for, and `DONE`."""
        if not self._include_usage:
            return DONE
        return event(self._fields(self.chunk, [], usage_fields(usage))) + DONE

    def full(self, text: str, finish_reason: str, usage: Usage) -> bytes:
        """The whole reply."""
        raise NotImplementedError

    def _event(self, choice: dict[str, object]) -> bytes:
        return event(self._fields(self.chunk, [{"index": 0, **choice, "logprobs": None}]))

    def _full(self, choice: dict[str, object], usage: Usage) -> bytes:
        choices = [{"index": 0, **choice, "logprobs": None}]
        return msgspec.json.encode(self._fields(self.whole, choices, usage_fields(usage)))

    def _fields(self, kind: str, choices: list[Any], usage: dict[str, object] | None = None) -> dict[str, object]:
        fields: dict[str, object] = {**self._head, "object": kind, "choices": choices}
        if usage is not None or self._include_usage:
            fields["usage"] = usage
        return fields


class ChatReplies(Replies):
    """`/v1/chat/completions`."""

    prefix = "chatcmpl"
    whole = "chat.completion"
    chunk = "chat.completion.chunk"

    def opening(self) -> bytes:
        """The role."""
        return self._event({"delta": {"role": "assistant", "content": ""}, "finish_reason": None})

    def delta(self, text: str, finish_reason: str | None = None) -> bytes:
        """A `delta` with content; an empty one beside a finish reason."""
        return self._event({"delta": {"content": text} if text else {}, "finish_reason": finish_reason})

    def full(self, text: str, finish_reason: str, usage: Usage) -> bytes:
        """A message."""
        message = {"role": "assistant", "content": text}
        return self._full({"message": message, "finish_reason": finish_reason}, usage)


class CompletionReplies(Replies):
    """`/v1/completions`."""

    prefix = "cmpl"
    whole = "text_completion"
    chunk = "text_completion"

    def delta(self, text: str, finish_reason: str | None = None) -> bytes:
        """A piece of `text`."""
        return self._event({"text": text, "finish_reason": finish_reason})

    def full(self, text: str, finish_reason: str, usage: Usage) -> bytes:
        """The whole `text`."""
        return self._full({"text": text, "finish_reason": finish_reason}, usage)
