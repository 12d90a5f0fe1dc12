"""What the router reads in an engine's OpenAI answers, which it passes on unread otherwise."""

from __future__ import annotations

from typing import Any, NamedTuple

import msgspec

from router.dispatch.chunks import END, refused_or_failed
from router.dispatch.errors import EngineFailed, EngineRefused
from router.dispatch.sse import EventTooLong, SseDecoder

ERROR_STARTS = (b'data: {"error"', b'data:{"error"')


class Usage(NamedTuple):
    """Tokens, as the engine counts them."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int | None
    """Of the prompt's; None: the engine does not say (it does with `--enable-cache-report`)."""


class _Details(msgspec.Struct):
    cached_tokens: int | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int = 0
    completion_tokens: int | None = 0
    prompt_tokens_details: _Details | None = None


class _Meta(msgspec.Struct):
    """What `/generate` says of itself in place of a usage."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int | None = None
    finish_reason: Any = None


class _Reply(msgspec.Struct):
    usage: _Usage | None = None
    meta_info: _Meta | None = None


class _Delta(msgspec.Struct):
    content: str | None = None
    reasoning_content: str | None = None
    tool_calls: Any = None


class _Choice(msgspec.Struct):
    delta: _Delta | None = None
    text: str | None = None
    finish_reason: str | None = None


class _Chunk(msgspec.Struct):
    choices: list[_Choice] = []
    usage: _Usage | None = None
    meta_info: _Meta | None = None


class _Error(msgspec.Struct):
    message: str = "no reason given"
    code: int | str | None = None


class _ErrorEvent(msgspec.Struct):
    error: _Error


_REPLY = msgspec.json.Decoder(_Reply)
_CHUNK = msgspec.json.Decoder(_Chunk)
_ERROR = msgspec.json.Decoder(_ErrorEvent)


def reply_usage(body: bytes) -> Usage | None:
    """The usage in a whole reply, if it has one. O(n).

    >>> reply_usage(b'{"usage": {"prompt_tokens": 5, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 4}}}')
    Usage(prompt_tokens=5, completion_tokens=2, cached_tokens=4)
    """
    try:
        reply = _REPLY.decode(body)
        return _usage(reply.usage, reply.meta_info)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None


def stream_usage(tail: bytes) -> Usage | None:
    """The last usage in the end of a stream, if it is there. O(n)."""
    for line in reversed(tail.split(b"\n")):
        if (
            line.startswith(b"data:")
            and (b'"usage"' in line or b'"meta_info"' in line)
            and (usage := reply_usage(line[5:]))
        ):
            return usage
    return None


def stream_error(start: bytes) -> EngineRefused | EngineFailed | None:
    """The error that a stream begins with instead of an answer, if it does: engines send some under status 200."""
    if not start.startswith(ERROR_STARTS):
        return None
    payload = start[5:].partition(b"\n")[0]
    try:
        error = _ERROR.decode(payload).error
    except (msgspec.DecodeError, UnicodeDecodeError):
        return EngineFailed("malformed error in the stream")
    return refused_or_failed(error.code if isinstance(error.code, int) else None, error.message, EngineFailed)


class FirstContent:
    """Looks for the first event of a stream that has content, or an end: the engine's first token."""

    def __init__(self) -> None:
        self._events = SseDecoder()
        self.usage: Usage | None = None
        """In that event, if there."""

    def __repr__(self) -> str:
        return f"FirstContent({self._events!r})"

    def feed(self, data: bytes) -> bool:
        """Whether it is in these bytes. O(n)."""
        try:
            payloads = self._events.feed(data)
        except EventTooLong:
            return True
        return any(self._is_content(payload) for payload in payloads)

    def _is_content(self, payload: bytes) -> bool:
        if payload == END:
            return True
        try:
            chunk = _CHUNK.decode(payload)
        except (msgspec.DecodeError, UnicodeDecodeError):
            return False  # not ours to judge: the client gets it as it is
        self.usage = _usage(chunk.usage, chunk.meta_info)
        meta = chunk.meta_info
        if meta is not None:
            return meta.completion_tokens > 0 or meta.finish_reason is not None
        return any(_has_content(choice) for choice in chunk.choices)


def _has_content(choice: _Choice) -> bool:
    delta = choice.delta
    return bool(
        choice.text
        or choice.finish_reason
        or (delta is not None and (delta.content or delta.reasoning_content or delta.tool_calls))
    )


def _usage(usage: _Usage | None, meta: _Meta | None) -> Usage | None:
    if meta is not None:
        return Usage(meta.prompt_tokens, meta.completion_tokens, meta.cached_tokens)
    if usage is None:
        return None
    cached_tokens = usage.prompt_tokens_details.cached_tokens if usage.prompt_tokens_details is not None else None
    return Usage(usage.prompt_tokens, usage.completion_tokens or 0, cached_tokens)
