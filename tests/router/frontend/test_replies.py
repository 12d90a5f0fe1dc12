from __future__ import annotations

from typing import Any

import msgspec
import pytest

from router.core import Target
from router.dispatch.request import Output
from router.frontend.completion import Completion, Usage
from router.frontend.detokenizer import ContextDetokenizer
from router.frontend.errors import ApiError
from router.frontend.replies import ChatReplies, CompletionReplies, Replies, error_event
from router.frontend.stops import StopStrings
from tests.router.frontend.models import byte_level

USAGE = Usage(prompt_tokens=10, completion_tokens=4, cached_tokens=8)
OPENAI_USAGE = {
    "prompt_tokens": 10,
    "completion_tokens": 4,
    "total_tokens": 14,
    "prompt_tokens_details": {"cached_tokens": 8},
}


def events(data: bytes) -> list[Any]:
    parts = data.removesuffix(b"\n\n").split(b"\n\n") if data else []
    assert all(part.startswith(b"data: ") for part in parts)
    return [part[6:] if part == b"data: [DONE]" else msgspec.json.decode(part[6:]) for part in parts]


def test_a_chat_in_chunks() -> None:
    replies = ChatReplies("7", "m")
    wire = replies.opening() + replies.piece("Hé", None) + replies.piece("", None) + replies.piece("!", "stop")
    *chunks, done = events(wire + replies.closing(USAGE))
    assert done == b"[DONE]"
    assert [chunk["choices"][0]["delta"] for chunk in chunks] == [
        {"role": "assistant", "content": ""},
        {"content": "Hé"},
        {"content": "!"},
        {},
    ]
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None, None, None, "stop"]
    assert {(chunk["id"], chunk["object"], chunk["model"]) for chunk in chunks} == {
        ("chatcmpl-7", "chat.completion.chunk", "m")
    }
    assert all("usage" not in chunk for chunk in chunks)


@pytest.mark.parametrize("kind", [ChatReplies, CompletionReplies])
def test_usage_comes_last_if_it_was_asked_for(kind: type[Replies]) -> None:
    replies = kind("7", "m", include_usage=True)
    *chunks, last, done = events(replies.opening() + replies.piece("a", "length") + replies.closing(USAGE))
    assert (last["choices"], last["usage"], done) == ([], OPENAI_USAGE, b"[DONE]")
    assert all(chunk["usage"] is None for chunk in chunks)


def test_whole_replies() -> None:
    chat = msgspec.json.decode(ChatReplies("7", "m").full("Hi", "stop", USAGE))
    assert chat["choices"] == [
        {"index": 0, "message": {"role": "assistant", "content": "Hi"}, "finish_reason": "stop", "logprobs": None}
    ]
    assert (chat["object"], chat["usage"]) == ("chat.completion", OPENAI_USAGE)
    text = msgspec.json.decode(CompletionReplies("7", "m").full("Hi", "length", USAGE))
    assert text["choices"] == [{"index": 0, "text": "Hi", "finish_reason": "length", "logprobs": None}]
    assert (text["object"], text["id"]) == ("text_completion", "cmpl-7")


def test_an_error_within_a_stream() -> None:
    (event,) = events(error_event(ApiError(502, "gone", "upstream_error", "upstream_error")))
    assert event == {"error": {"message": "gone", "type": "upstream_error", "param": None, "code": "upstream_error"}}


def complete(
    text: str, stops: list[str], matched: int | None = None, tail: list[int] | None = None
) -> tuple[str, Completion]:
    tokenizer = byte_level()
    tokens = tokenizer.encode(text).ids + (tail or [])
    completion = Completion(ContextDetokenizer(tokenizer, {2}), StopStrings(stops), prompt_tokens=5)
    shown = ""
    for position, token in enumerate(tokens):
        last = position == len(tokens) - 1
        shown += completion.push(Output([token], Target("w"), 3, "stop" if last else None, matched if last else None))
        if completion.finish_reason is not None:
            break
    return shown, completion


def test_a_completion_counts_and_ends() -> None:
    shown, completion = complete("The quick brown fox", [], matched=2, tail=[2])
    assert (shown, completion.finish_reason) == ("The quick brown fox", "stop")
    assert completion.usage == Usage(5, len(byte_level().encode("The quick brown fox").ids) + 1, 3)


def test_a_stop_token_is_not_shown_whatever_it_spells() -> None:
    (dot,) = byte_level().encode(".").ids
    assert complete("fox", [], matched=dot, tail=[dot])[0] == "fox"
    assert complete("fox", [], matched=None, tail=[dot])[0] == "fox."


def test_a_stop_string_ends_it_early() -> None:
    shown, completion = complete("The quick brown fox jumps over", ["fox j"])
    assert (shown, completion.finish_reason) == ("The quick brown ", "stop")
    assert completion.usage.completion_tokens < len(byte_level().encode("The quick brown fox jumps over").ids)


def test_what_was_held_back_comes_at_the_end() -> None:
    assert complete("The fox", ["foxes"])[0] == "The fox"
    half = byte_level().encode("🤖").ids[:1]
    assert complete("fox", [], tail=half)[0] == "fox\N{REPLACEMENT CHARACTER}"
