"""Bodies of `/v1/chat/completions` and `/v1/completions` → `GenerationRequest`, or an error that names the field.

Three kinds of fields: those honoured; those refused, because ignoring them would answer another question than was asked; and all
others, which are ignored and reported in `ignored`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, TypeAlias, TypeVar

import msgspec
from msgspec import Meta

from events.blocks import as_tokens
from router.frontend.errors import invalid, unsupported

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    from numpy.typing import NDArray

    from router.frontend.errors import ApiError

COMPLETIONS_MAX_TOKENS = 16
"""OpenAI's default for `/v1/completions`; for chat it is whatever the context has room for."""

MAX_STOPS = 16
MAX_STOP_LENGTH = 1024
ROLES = frozenset({"system", "developer", "user", "assistant", "tool", "function"})
ENGINE_FIELDS = (
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "frequency_penalty",
    "presence_penalty",
    "repetition_penalty",
    "stop_token_ids",
    "ignore_eos",
    "logit_bias",
)
"""Fields that SGLang's `sampling_params` has under the same name."""

GRAMMARS = ("json_schema", "regex", "ebnf")


Prompt: TypeAlias = "str | NDArray[np.uint32] | tuple[Mapping[str, Any], ...]"
"""A text, tokens, or the messages of a chat."""


@dataclass(frozen=True, slots=True, eq=False)
class GenerationRequest:
    """What a client wants, checked; its prompt not yet in tokens."""

    model: str
    prompt: Prompt
    sampling: Mapping[str, object]
    """SGLang's `sampling_params`, but for `max_new_tokens`."""
    max_tokens: int | None
    """None: as many as the context has room for."""
    stops: tuple[str, ...]
    stream: bool
    include_usage: bool
    cache_salt: str | None
    extra_key: str | None
    adapter: str | None
    """The LoRA adapter in `lora_path`; one may be in the model's name, too."""
    template_arguments: Mapping[str, Any]
    """Further variables for the chat template."""
    constrained: bool
    """The output follows a grammar."""
    ignored: tuple[str, ...]
    """Names of fields that had no effect."""


class _StreamOptions(msgspec.Struct):
    include_usage: bool | None = None


class _JsonSchema(msgspec.Struct):
    schema: dict[str, Any]


class _ResponseFormat(msgspec.Struct):
    type: str
    json_schema: _JsonSchema | None = None


Struct = TypeVar("Struct", bound=msgspec.Struct)
Positive = Annotated[int, Meta(ge=1)]
Token = Annotated[int, Meta(ge=0, le=2**32 - 1)]


class _Body(msgspec.Struct, kw_only=True):
    """The fields that both endpoints have."""

    model: Annotated[str, Meta(min_length=1)]
    stream: bool | None = None
    stream_options: _StreamOptions | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, Meta(gt=0, le=1)] | None = None
    top_k: Annotated[int, Meta(ge=-1)] | None = None
    min_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    frequency_penalty: Annotated[float, Meta(ge=-2, le=2)] | None = None
    presence_penalty: Annotated[float, Meta(ge=-2, le=2)] | None = None
    repetition_penalty: Annotated[float, Meta(gt=0, le=2)] | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[Token] | None = None
    seed: Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)] | None = None
    ignore_eos: bool | None = None
    min_tokens: Annotated[int, Meta(ge=0)] | None = None
    logit_bias: dict[str, Annotated[float, Meta(ge=-100, le=100)]] | None = None
    response_format: _ResponseFormat | None = None
    json_schema: str | None = None
    regex: str | None = None
    ebnf: str | None = None
    cache_salt: str | None = None
    extra_key: str | None = None
    n: Positive | None = None
    lora_path: Annotated[str, Meta(min_length=1)] | None = None
    user: Any = None
    metadata: Any = None
    max_tokens: Positive | None = None


class _ChatBody(_Body, kw_only=True):
    messages: Annotated[list[dict[str, Any]], Meta(min_length=1)]
    max_completion_tokens: Positive | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    tools: Any = None
    functions: Any = None


class _CompletionBody(_Body, kw_only=True):
    prompt: str | list[Any]
    logprobs: int | None = None
    echo: bool | None = None
    suffix: str | None = None
    best_of: Positive | None = None


def parse_chat(body: bytes) -> GenerationRequest:
    """The request in a body of `/v1/chat/completions`. O(size).

    :raises ApiError: it is no such request, or asks for what is not supported; the field is named.
    """
    fields = json_object(body)
    chat = convert(fields, _ChatBody)
    for name in ("tools", "functions"):
        if getattr(chat, name):
            raise unsupported(name, "this router does not parse tool calls yet")
    if chat.logprobs or chat.top_logprobs:
        raise unsupported(
            "logprobs" if chat.logprobs else "top_logprobs", "the router streams tokens, not probabilities"
        )
    messages = tuple(_message(message, f"messages[{index}]") for index, message in enumerate(chat.messages))
    return _request(
        chat,
        fields,
        prompt=messages,
        max_tokens=chat.max_completion_tokens or chat.max_tokens,
        template_arguments=chat.chat_template_kwargs or {},
    )


def parse_completion(body: bytes) -> GenerationRequest:
    """The request in a body of `/v1/completions`. O(size).

    :raises ApiError: it is no such request, or asks for what is not supported; the field is named.
    """
    fields = json_object(body)
    completion = convert(fields, _CompletionBody)
    if completion.logprobs is not None:
        raise unsupported("logprobs", "the router streams tokens, not probabilities")
    if completion.echo:
        raise unsupported("echo", "only the completion is returned")
    if completion.suffix:
        raise unsupported("suffix", "text is only ever appended")
    if completion.best_of not in {None, 1}:
        raise unsupported("best_of", "only 1")
    return _request(
        completion,
        fields,
        prompt=_prompt(completion.prompt),
        max_tokens=completion.max_tokens or COMPLETIONS_MAX_TOKENS,
        template_arguments={},
    )


class _Asked(msgspec.Struct):
    model: Any = None


_ASKED = msgspec.json.Decoder(_Asked)


def asked_model(body: bytes) -> str:
    """The model that a body names; empty where it names none. Nothing else is looked at. O(size)."""
    try:
        model = _ASKED.decode(body).model
    except (msgspec.DecodeError, UnicodeDecodeError):
        return ""
    return model if isinstance(model, str) else ""


class ExplainRequest(NamedTuple):
    """What `/explain` is asked about."""

    model: str | None
    """None: any."""
    prompt: Prompt
    template_arguments: Mapping[str, Any]
    cache_salt: str | None


class _TokensBody(msgspec.Struct):
    input_ids: list[Token]
    model: str | None = None
    cache_salt: str | None = None


def parse_explain(body: bytes) -> ExplainRequest:
    """A body of either endpoint, or {"input_ids": […], "model", "cache_salt"}. O(size).

    :raises ApiError: it is none of them; the field is named.
    """
    fields = json_object(body)
    if "input_ids" in fields:
        tokens = convert(fields, _TokensBody)
        return ExplainRequest(tokens.model, as_tokens(tokens.input_ids), {}, tokens.cache_salt or None)
    request = parse_chat(body) if "messages" in fields else parse_completion(body)
    return ExplainRequest(request.model, request.prompt, request.template_arguments, request.cache_salt)


def plain_messages(messages: object) -> tuple[Mapping[str, Any], ...]:
    """A chat's messages for its template, each content one string. O(n).

    :raises ApiError: they are not messages, or have parts that are not text.
    """
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        raise invalid("messages: expected a list of objects", "messages")
    return tuple(_message(message, f"messages[{index}]") for index, message in enumerate(messages))


def plain_prompt(prompt: object) -> str | NDArray[np.uint32]:
    """A completion's one prompt, as a text or in tokens. O(n).

    :raises ApiError: it is neither, or several.
    """
    if not isinstance(prompt, str | list):
        raise invalid("prompt: expected a string or a list of token ids", "prompt")
    return _prompt(prompt)


def json_object(body: bytes) -> dict[str, Any]:
    """The fields of a body. O(size).

    :raises ApiError: it is no JSON object.
    """
    try:
        fields = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise invalid(f"the body is not JSON: {error}") from error
    if not isinstance(fields, dict):
        raise invalid("the body must be a JSON object")
    return fields


def convert(fields: dict[str, Any], type_: type[Struct]) -> Struct:
    """Fields as a struct, each checked; those that it does not have are left out. O(size).

    :raises ApiError: one is wrong or missing; it is named.
    """
    try:
        return msgspec.convert(fields, type_)
    except msgspec.ValidationError as error:
        raise _named(str(error)) from error


def _named(message: str) -> ApiError:
    """The error in a message of msgspec's, which ends in the path of the field, or names a missing one."""
    reason, _, path = message.partition(" - at `$")
    path = path.removesuffix("`").removeprefix(".")
    missing = re.search(r"missing required field `(\w+)`", reason)
    if missing:
        path = f"{path}.{missing[1]}" if path else missing[1]
        return invalid(f"{path} is required", path)
    return invalid(f"{path}: {reason[:1].lower()}{reason[1:]}" if path else reason, path or None)


def _request(
    body: _Body,
    fields: dict[str, Any],
    *,
    prompt: Prompt,
    max_tokens: int | None,
    template_arguments: Mapping[str, Any],
) -> GenerationRequest:
    if body.n not in {None, 1}:
        raise unsupported("n", "only 1")
    grammar = _grammar(body)
    return GenerationRequest(
        model=body.model,
        prompt=prompt,
        sampling=_sampling(body) | grammar,
        max_tokens=max_tokens,
        stops=_stops(body.stop),
        stream=bool(body.stream),
        include_usage=bool(body.stream_options and body.stream_options.include_usage),
        cache_salt=body.cache_salt or None,
        extra_key=body.extra_key or None,
        adapter=body.lora_path,
        template_arguments=template_arguments,
        constrained=bool(grammar),
        ignored=tuple(sorted(fields.keys() - set(type(body).__struct_fields__))),
    )


def _sampling(body: _Body) -> dict[str, object]:
    if body.top_k == 0:
        raise invalid("top_k: expected -1 (all) or at least 1", "top_k")
    if any(not token.isdigit() for token in body.logit_bias or ()):
        raise invalid("logit_bias: its keys must be token ids", "logit_bias")
    sampling = {name: value for name in ENGINE_FIELDS if (value := getattr(body, name)) is not None}
    if body.min_tokens:
        sampling["min_new_tokens"] = body.min_tokens
    if body.seed is not None:
        sampling["sampling_seed"] = body.seed
    return sampling


def _grammar(body: _Body) -> dict[str, object]:
    """At most one of SGLang's `json_schema`, `regex`, `ebnf`."""
    given: dict[str, object] = {name: value for name in GRAMMARS if (value := getattr(body, name)) is not None}
    schema = _response_schema(body.response_format)
    if len(given) + (schema is not None) > 1:
        raise invalid("only one of response_format, json_schema, regex and ebnf can be given", "response_format")
    return given if schema is None else {"json_schema": schema}


def _response_schema(format_: _ResponseFormat | None) -> str | None:
    """The JSON schema, as text, that a `response_format` asks for."""
    if format_ is None or format_.type == "text":
        return None
    if format_.type == "json_object":
        return '{"type": "object"}'
    if format_.type != "json_schema":
        raise unsupported("response_format.type", "only text, json_object and json_schema")
    if format_.json_schema is None:
        raise invalid("response_format.json_schema is required", "response_format.json_schema")
    return msgspec.json.encode(format_.json_schema.schema).decode()


def _stops(stop: str | list[str] | None) -> tuple[str, ...]:
    stops = (stop,) if isinstance(stop, str) else tuple(stop or ())
    if len(stops) > MAX_STOPS:
        raise invalid(f"stop: at most {MAX_STOPS} strings, not {len(stops)}", "stop")
    if any(not 0 < len(text) <= MAX_STOP_LENGTH for text in stops):
        raise invalid(f"stop: each string must have 1 to {MAX_STOP_LENGTH} characters", "stop")
    return stops


def _prompt(prompt: str | list[Any]) -> str | NDArray[np.uint32]:
    """A text, or tokens; a list that holds just one prompt counts as that prompt."""
    if isinstance(prompt, str):
        return prompt
    if len(prompt) == 1 and isinstance(prompt[0], str | list):
        return _prompt(prompt[0])
    if prompt and all(isinstance(item, str | list) for item in prompt):
        raise unsupported("prompt", "one prompt a request, not a list of them")
    if any(type(item) is not int for item in prompt):
        raise invalid("prompt: expected a string or a list of token ids", "prompt")
    try:
        return as_tokens(prompt)
    except (ValueError, OverflowError) as error:
        raise invalid("prompt: token ids must lie in [0, 2**32)", "prompt") from error


def _message(message: dict[str, Any], path: str) -> dict[str, Any]:
    """A message for the chat template, its content one string."""
    role = message.get("role")
    if role not in ROLES:
        raise invalid(f"{path}.role: expected one of {', '.join(sorted(ROLES))}, got {role!r}", f"{path}.role")
    content = message.get("content")
    if content is None and role != "assistant":
        raise invalid(f"{path}.content is required", f"{path}.content")
    return {**message, "content": _content(content, f"{path}.content")}


def _content(content: object, path: str) -> str | None:
    """Text parts are joined by a space, as SGLang does for templates that take plain text."""
    if content is None or isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise invalid(f"{path}: expected a string or a list of text parts", path)
    return " ".join(_text(part, f"{path}[{index}]") for index, part in enumerate(content))


def _text(part: object, path: str) -> str:
    if not isinstance(part, dict) or part.get("type") not in {"text", "refusal"}:
        kind = part.get("type") if isinstance(part, dict) else part
        raise unsupported(path, f"only parts of type 'text', not {kind!r}")
    text = part.get(part["type"])
    if not isinstance(text, str):
        raise invalid(f"{path}.text: expected a string", f"{path}.text")
    return text
