from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pytest

from router.frontend.errors import ApiError
from router.frontend.requests import GenerationRequest, parse_chat, parse_completion, parse_explain

MESSAGES = [{"role": "user", "content": "Hi"}]


def chat(**fields: Any) -> GenerationRequest:
    return parse_chat(msgspec.json.encode({"model": "m", "messages": MESSAGES, **fields}))


def completion(**fields: Any) -> GenerationRequest:
    return parse_completion(msgspec.json.encode({"model": "m", "prompt": "Hi", **fields}))


def refusal(parse: Any, body: Any) -> ApiError:
    with pytest.raises(ApiError) as caught:
        parse(body if isinstance(body, bytes) else msgspec.json.encode(body))
    assert caught.value.status == 400
    return caught.value


def test_the_least_chat() -> None:
    request = chat()
    assert (request.model, request.prompt, request.sampling) == ("m", (MESSAGES[0],), {})
    assert (request.max_tokens, request.stops, request.stream, request.include_usage) == (None, (), False, False)
    assert (request.cache_salt, request.extra_key, request.constrained, request.ignored) == (None, None, False, ())


def test_the_least_completion() -> None:
    request = completion()
    assert (request.prompt, request.max_tokens) == ("Hi", 16)


def test_what_the_engine_is_told() -> None:
    request = chat(
        temperature=0,
        top_p=0.5,
        top_k=-1,
        min_p=0.1,
        frequency_penalty=-2,
        presence_penalty=2,
        repetition_penalty=1.5,
        stop_token_ids=[7],
        seed=-3,
        ignore_eos=True,
        min_tokens=4,
        logit_bias={"17": -100},
    )
    assert request.sampling == {
        "temperature": 0,
        "top_p": 0.5,
        "top_k": -1,
        "min_p": 0.1,
        "frequency_penalty": -2,
        "presence_penalty": 2,
        "repetition_penalty": 1.5,
        "stop_token_ids": [7],
        "sampling_seed": -3,
        "ignore_eos": True,
        "min_new_tokens": 4,
        "logit_bias": {"17": -100},
    }


def test_what_the_router_does_itself() -> None:
    request = chat(
        stream=True,
        stream_options={"include_usage": True},
        stop=["a", "b"],
        max_tokens=5,
        cache_salt="s",
        extra_key="k",
        chat_template_kwargs={"enable_thinking": False},
    )
    assert (request.stream, request.include_usage, request.stops, request.max_tokens) == (True, True, ("a", "b"), 5)
    assert (request.cache_salt, request.extra_key) == ("s", "k")
    assert request.template_arguments == {"enable_thinking": False}
    assert chat(stop="x").stops == ("x",)
    assert chat(max_tokens=5, max_completion_tokens=6).max_tokens == 6


def test_null_is_the_same_as_absent() -> None:
    names = ["temperature", "stop", "stream", "n", "logprobs", "tools", "response_format", "seed", "stream_options"]
    request = chat(**dict.fromkeys([*names, "max_tokens", "user", "cache_salt"]))
    assert (request.sampling, request.stops, request.ignored) == ({}, (), ())


def test_unknown_fields_are_reported_not_refused() -> None:
    assert chat(nvext={}, zzz=1, user="u", metadata={}).ignored == ("nvext", "zzz")


def test_text_parts_become_one_string() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert chat(messages=[{"role": "user", "content": parts}]).prompt == ({"role": "user", "content": "a b"},)


def test_an_assistants_message_may_be_empty() -> None:
    called = {"role": "assistant", "tool_calls": [{"id": "1"}]}
    assert chat(messages=[*MESSAGES, called]).prompt == (MESSAGES[0], {**called, "content": None})


@pytest.mark.parametrize("prompt", [[5, 6], [[5, 6]]])
def test_a_prompt_of_tokens(prompt: list[Any]) -> None:
    tokens = completion(prompt=prompt).prompt
    assert isinstance(tokens, np.ndarray)
    assert (tokens.dtype, tokens.tolist()) == (np.uint32, [5, 6])


def test_a_list_of_one_text_is_that_text() -> None:
    assert completion(prompt=["Hi"]).prompt == "Hi"


@pytest.mark.parametrize(
    ("fields", "grammar"),
    [
        ({"response_format": {"type": "json_object"}}, {"json_schema": '{"type": "object"}'}),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "array"}}}},
            {"json_schema": '{"type":"array"}'},
        ),
        ({"regex": "a+"}, {"regex": "a+"}),
        ({"ebnf": "root ::= 'a'"}, {"ebnf": "root ::= 'a'"}),
        ({"json_schema": "{}"}, {"json_schema": "{}"}),
    ],
)
def test_grammars(fields: dict[str, Any], grammar: dict[str, str]) -> None:
    request = chat(**fields)
    assert (request.sampling, request.constrained) == (grammar, True)
    assert not chat(response_format={"type": "text"}).constrained


@pytest.mark.parametrize(
    ("fields", "param", "message"),
    [
        ({"model": 7}, "model", "expected `str`"),
        ({"model": ""}, "model", "length >= 1"),
        ({"messages": []}, "messages", "length >= 1"),
        ({"messages": "Hi"}, "messages", "expected `array`"),
        ({"messages": [{"content": "Hi"}]}, "messages[0].role", "expected one of"),
        ({"messages": [{"role": "king", "content": "Hi"}]}, "messages[0].role", "'king'"),
        ({"messages": [*MESSAGES, {"role": "user"}]}, "messages[1].content", "is required"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content", "string or a list"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content[0]", "'image_url'"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content[0].text", "a string"),
        ({"temperature": 2.5}, "temperature", "<= 2.0"),
        ({"temperature": "hot"}, "temperature", "expected `float"),
        ({"temperature": True}, "temperature", "expected `float"),
        ({"top_p": 0}, "top_p", "> 0.0"),
        ({"top_k": 0}, "top_k", "-1 (all)"),
        ({"top_k": -2}, "top_k", ">= -1"),
        ({"min_p": 1.1}, "min_p", "<= 1.0"),
        ({"presence_penalty": 3}, "presence_penalty", "<= 2.0"),
        ({"repetition_penalty": 0}, "repetition_penalty", "> 0.0"),
        ({"max_tokens": 0}, "max_tokens", ">= 1"),
        ({"max_completion_tokens": 1.5}, "max_completion_tokens", "expected `int"),
        ({"seed": 2**63}, "seed", "9223372036854775807"),
        ({"stop": [""]}, "stop", "1 to 1024"),
        ({"stop": ["x"] * 17}, "stop", "at most 16"),
        ({"stop": [1]}, "stop[0]", "expected `str`"),
        ({"stop_token_ids": [-1]}, "stop_token_ids[0]", ">= 0"),
        ({"logit_bias": {"a": 1}}, "logit_bias", "token ids"),
        ({"stream": "yes"}, "stream", "expected `bool"),
        ({"stream_options": {"include_usage": 1}}, "stream_options.include_usage", "expected `bool"),
        ({"n": 2}, "n", "only 1"),
        ({"logprobs": True}, "logprobs", "not supported"),
        ({"top_logprobs": 3}, "top_logprobs", "not supported"),
        ({"tools": [{"type": "function"}]}, "tools", "not supported"),
        ({"functions": [{}]}, "functions", "not supported"),
        ({"lora_path": ""}, "lora_path", "length >= 1"),
        ({"response_format": {"type": "structural_tag"}}, "response_format.type", "not supported"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema", "is required"),
        ({"response_format": {"type": "json_object"}, "regex": "a"}, "response_format", "only one"),
    ],
)
def test_a_wrong_chat_names_the_field(fields: dict[str, Any], param: str, message: str) -> None:
    error = refusal(parse_chat, {"model": "m", "messages": MESSAGES, **fields})
    assert error.param == param
    assert message in error.message
    assert param in error.message


@pytest.mark.parametrize(
    ("fields", "param", "message"),
    [
        ({"prompt": ["a", "b"]}, "prompt", "one prompt a request"),
        ({"prompt": [[1], [2]]}, "prompt", "one prompt a request"),
        ({"prompt": [1, "a"]}, "prompt", "list of token ids"),
        ({"prompt": [1, True]}, "prompt", "list of token ids"),
        ({"prompt": [-1]}, "prompt", "2**32"),
        ({"prompt": [2**70]}, "prompt", "2**32"),
        ({"prompt": 5}, "prompt", "expected"),
        ({"echo": True}, "echo", "not supported"),
        ({"suffix": "x"}, "suffix", "not supported"),
        ({"best_of": 2}, "best_of", "only 1"),
        ({"logprobs": 0}, "logprobs", "not supported"),
    ],
)
def test_a_wrong_completion_names_the_field(fields: dict[str, Any], param: str, message: str) -> None:
    error = refusal(parse_completion, {"model": "m", "prompt": "Hi", **fields})
    assert error.param == param
    assert message in error.message


@pytest.mark.parametrize(("parse", "missing"), [(parse_chat, "messages"), (parse_completion, "prompt")])
def test_a_missing_field_is_named(parse: Any, missing: str) -> None:
    assert refusal(parse, {"model": "m"}).message == f"{missing} is required"
    assert refusal(parse, {missing: MESSAGES if missing == "messages" else "x"}).param == "model"


@pytest.mark.parametrize("body", [b"", b"{", b"\xff\xfe", b"[1]", b'"text"', b"null"])
@pytest.mark.parametrize("parse", [parse_chat, parse_completion, parse_explain])
def test_what_is_no_json_object_is_refused(parse: Any, body: bytes) -> None:
    assert "JSON" in refusal(parse, body).message


def test_explain_takes_all_three() -> None:
    assert parse_explain(msgspec.json.encode({"model": "m", "messages": MESSAGES})).prompt == (MESSAGES[0],)
    assert parse_explain(msgspec.json.encode({"model": "m", "prompt": "Hi"})).prompt == "Hi"
    bare = parse_explain(b'{"input_ids": [1, 2], "cache_salt": "s"}')
    assert (bare.model, bare.cache_salt) == (None, "s")
    assert isinstance(bare.prompt, np.ndarray)
    assert refusal(parse_explain, {"input_ids": ["a"]}).param == "input_ids[0]"
