"""What a generation looks like to the client: SGLang's own shape, chat, completion; streamed and whole."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Protocol

from sim.worker.reply import event, native_error, openai_error

if TYPE_CHECKING:
    from aiohttp import web

    from sim.worker.generation import Generation


class Shape(Protocol):
    """Turns a generation into bodies and events; one instance per request."""

    def whole(self, generation: Generation) -> dict[str, Any]:
        """The body of a reply that is not streamed."""

    def token(self, generation: Generation) -> bytes:
        """The events after a token (or an abort)."""

    def end(self, generation: Generation) -> bytes:
        """The events before the stream's end mark."""

    def error(self, message: str, status: int = 400) -> web.Response:
        """An error before anything was sent."""

    def error_event(self, message: str, status: int) -> bytes:
        """An error after something was sent."""


class NativeShape:
    """`/generate`: cumulative text and ids in each event, or what is new in each."""

    def __init__(self, *, incremental: bool, with_text: bool) -> None:
        self._incremental = incremental
        self._with_text = with_text
        self._sent_ids = self._sent_text = 0

    def whole(self, generation: Generation) -> dict[str, Any]:
        """See `Shape`."""
        text = {"text": generation.text} if self._with_text else {}
        return text | {"output_ids": generation.output_ids, "meta_info": generation.meta_info()}

    def token(self, generation: Generation) -> bytes:
        """See `Shape`."""
        body = self.whole(generation)
        if self._incremental:
            body["output_ids"] = generation.output_ids[self._sent_ids :]
            self._sent_ids = len(generation.output_ids)
            if self._with_text:
                body["text"] = generation.text[self._sent_text :]
                self._sent_text = len(generation.text)
        return event(body)

    def end(self, generation: Generation) -> bytes:
        """See `Shape`."""
        return b""

    def error(self, message: str, status: int = 400) -> web.Response:
        """See `Shape`."""
        return native_error(message, status)

    def error_event(self, message: str, status: int) -> bytes:
        """See `Shape`."""
        return event({"error": {"message": message, "code": status}})


class OpenAIShape:
    """What chat and completions have in common."""

    OBJECT = STREAM_OBJECT = ""

    def __init__(self, model: str, *, stream_usage: bool, report_cached: bool) -> None:
        self._model = model
        self._stream_usage = stream_usage
        self._report_cached = report_cached
        self._created = int(time.time())
        self._sent_text = 0

    def _envelope(self, generation: Generation, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        head = {"id": generation.request.rid, "object": kind, "created": self._created, "model": self._model}
        return head | {"choices": choices}

    @staticmethod
    def _ending(generation: Generation) -> dict[str, Any]:
        finish = generation.finish
        return {
            "logprobs": None,
            "finish_reason": finish["type"] if finish else None,
            "matched_stop": finish.get("matched") if finish else None,
        }

    def _delta(self, generation: Generation) -> str:
        delta = generation.text[self._sent_text :]
        self._sent_text = max(self._sent_text, len(generation.text))
        return delta

    def end(self, generation: Generation) -> bytes:
        """See `Shape`."""
        if not self._stream_usage:
            return b""
        usage = generation.usage(report_cached=self._report_cached)
        return event(self._envelope(generation, self.STREAM_OBJECT, []) | {"usage": usage})

    def error(self, message: str, status: int = 400) -> web.Response:
        """See `Shape`."""
        return openai_error(message, status)

    def error_event(self, message: str, status: int) -> bytes:
        """See `Shape`."""
        return event({"error": {"object": "error", "message": message, "type": "InternalServerError", "code": status}})

    def _whole(self, generation: Generation, choice: dict[str, Any]) -> dict[str, Any]:
        body = self._envelope(generation, self.OBJECT, [{"index": 0} | choice | self._ending(generation)])
        usage = generation.usage(report_cached=self._report_cached)
        return body | {"usage": usage, "metadata": {"weight_version": "default"}}

    def _chunk(self, generation: Generation, choice: dict[str, Any], *, last: bool) -> bytes:
        ending = self._ending(generation) if last else {"logprobs": None, "finish_reason": None, "matched_stop": None}
        return event(self._envelope(generation, self.STREAM_OBJECT, [{"index": 0} | choice | ending]))


class ChatShape(OpenAIShape):
    """`/v1/chat/completions`."""

    OBJECT = "chat.completion"
    STREAM_OBJECT = "chat.completion.chunk"

    def __init__(self, model: str, *, stream_usage: bool, report_cached: bool) -> None:
        super().__init__(model, stream_usage=stream_usage, report_cached=report_cached)
        self._opened = False

    def whole(self, generation: Generation) -> dict[str, Any]:
        """See `Shape`."""
        message = {"role": "assistant", "content": generation.text, "reasoning_content": None, "tool_calls": None}
        return self._whole(generation, {"message": message})

    def token(self, generation: Generation) -> bytes:
        """See `Shape`."""
        events = b""
        if not self._opened:
            self._opened = True
            opening = {"reasoning_content": None, "role": "assistant", "content": ""}
            events += self._chunk(generation, {"delta": opening}, last=False)
        delta = self._delta(generation)
        if delta:
            events += self._chunk(generation, {"delta": {"reasoning_content": None, "content": delta}}, last=False)
        if generation.finish is not None:
            events += self._chunk(generation, {"delta": {"reasoning_content": None}}, last=True)
        return events


class CompletionShape(OpenAIShape):
    """`/v1/completions`."""

    OBJECT = STREAM_OBJECT = "text_completion"

    def whole(self, generation: Generation) -> dict[str, Any]:
        """See `Shape`."""
        return self._whole(generation, {"text": generation.text})

    def token(self, generation: Generation) -> bytes:
        """See `Shape`."""
        return self._chunk(generation, {"text": self._delta(generation)}, last=generation.finish is not None)
