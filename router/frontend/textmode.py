"""Text mode: bodies go to the engines' own OpenAI routes as they are, and the answers come back as they are."""

from __future__ import annotations

import asyncio
import logging
import re
import time
from itertools import count
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
import numpy as np

from router.core import NoTarget
from router.core.policy.filters import NO_PART
from router.dispatch.errors import EngineError
from router.dispatch.request import PromptHashes, TextRequest
from router.frontend import http as web
from router.frontend.errors import ApiError, from_dispatch, internal, invalid, unsupported
from router.frontend.known_prompts import KnownPrompts
from router.frontend.middleware import REQUEST_ID_HEADER
from router.frontend.models import NOBODY
from router.frontend.replies import error_event
from router.frontend.requests import plain_messages, plain_prompt
from router.frontend.template import TemplateRefused
from router.frontend.timing import RequestTimer

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

    from router.dispatch.answer import Answer
    from router.dispatch.relay import Relay
    from router.frontend.models import Asked, Models
    from router.frontend.tokenizer import ModelTokenizer
    from router.metrics import Metrics

logger = logging.getLogger(__name__)

WORKER_HEADER = "X-Warmpath-Worker"
FORWARDED = ("Authorization", "traceparent", "tracestate")
"""Headers of the client's that the engine gets, beside the body's own and the request's id."""


MANY_BY_PAIRS = (
    "several answers, or several prompts, in one request need a worker that serves whole requests, and there is none"
)

ABSENT = msgspec.Raw(b"null")
_MANY_PROMPTS = re.compile(rb"\s*\[\s*[\[\"]")


class _UnreadBody(msgspec.Struct):
    """What the router looks at; whether it is right is for the engine to say."""

    model: Any = None
    stream: Any = None
    stream_options: Any = None
    n: Any = None
    prompt: msgspec.Raw = ABSENT

    @property
    def divisible(self) -> bool:
        """Whether it asks for one answer to one prompt, as text or as tokens: a pair of workers has one room for each request."""
        return self.n in (None, 1) and _MANY_PROMPTS.match(self.prompt) is None


class _Body(_UnreadBody):
    """The same, where it tokenizes too: not decoded as long as the prompt is a known one."""

    messages: msgspec.Raw = ABSENT
    tools: msgspec.Raw = ABSENT
    chat_template_kwargs: msgspec.Raw = ABSENT
    cache_salt: msgspec.Raw = ABSENT


class _Prompt(NamedTuple):
    """A body's fields that its prompt depends on, decoded."""

    messages: Any
    prompt: Any
    tools: Any
    chat_template_kwargs: Any
    cache_salt: Any


class TextMode:
    """Answers generations by relaying them. `tokenizer_of` None: they are placed by load alone."""

    def __init__(
        self,
        relay: Relay,
        tokenizer_of: Callable[[str], ModelTokenizer] | None,
        metrics: Metrics,
        models: Models,
    ) -> None:
        self._relay = relay
        self._tokenizer_of = tokenizer_of
        self._metrics = metrics
        self._models = models
        self._reader: msgspec.json.Decoder[_UnreadBody] = msgspec.json.Decoder(
            _Body if tokenizer_of is not None else _UnreadBody
        )
        self._known = KnownPrompts()
        self._unrouted = False
        self._numbers = count()
        if tokenizer_of is None:
            logger.warning("no --model-path, so no tokenizer: requests are placed by load alone, not by what is cached")

    def __repr__(self) -> str:
        return f"TextMode({self._relay!r}, {'tokens' if self._tokenizer_of is not None else 'load alone'})"

    async def answer(self, http: web.Request) -> web.Response | web.StreamResponse:
        """Check → tokenize beside it → relay → reply.

        :raises ApiError: what a client is told when there is no answer.
        """
        return await self.carry(http, await self._request(http, await http.read()))

    async def carry(self, http: web.Request, request: TextRequest) -> web.Response | web.StreamResponse:
        """Relay a request, and reply with its answer.

        :raises ApiError: what a client is told when there is no answer.
        """
        timer = RequestTimer(self._metrics)
        self._metrics.requests_in_flight.inc()
        try:
            answer = await self._relay.open(request)
            timer.tokens(1)
            try:
                response = await self._reply(http, answer)
            finally:
                answer.close()
        except (EngineError, NoTarget) as error:
            if isinstance(error, NoTarget) and error.reason == NO_PART and not request.divisible:
                raise unsupported("n", MANY_BY_PAIRS) from error
            raise _reported(http.id, error) from error
        finally:
            self._metrics.requests_in_flight.dec()
        if answer.usage is not None:
            usage = answer.usage
            self._metrics.answered(usage.prompt_tokens, usage.completion_tokens, usage.cached_tokens or 0)
        timer.end()
        return response

    async def _reply(self, http: web.Request, answer: Answer) -> web.Response | web.StreamResponse:
        return await self._stream(http, answer) if answer.streams else _whole(answer)

    async def _stream(self, http: web.Request, answer: Answer) -> web.StreamResponse:
        """Bytes as they come, each piece written at once."""
        headers = {
            "Content-Type": answer.content_type,
            "Cache-Control": "no-cache",
            "X-Accel-Buffering": "no",
            REQUEST_ID_HEADER: http.id,
            WORKER_HEADER: str(answer.target),
        }
        response = web.StreamResponse(headers=headers)
        await response.prepare(http)
        await response.write(answer.body)
        try:
            async for data in answer:
                await response.write(data)
        except EngineError as error:
            await self._break(response, _reported(http.id, error))
        except (ConnectionResetError, asyncio.CancelledError):
            raise  # the client left
        except Exception:
            logger.exception("%r: failed within its stream", answer)
            await self._break(response, internal())
        await response.write_eof()
        return response

    async def _break(self, response: web.StreamResponse, error: ApiError) -> None:
        """End a stream with an error; the blank line ends an event that was cut off."""
        self._metrics.broken_streams.labels(error.code).inc()
        await response.write(b"\n\n" + error_event(error))

    async def _request(self, http: web.Request, body: bytes) -> TextRequest:
        try:
            fields = self._reader.decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise _no_json(error) from error
        name = fields.model if isinstance(fields.model, str) else None
        asked = self._models.generating(name) if name is not None else None
        return TextRequest(
            request_id=f"text-{next(self._numbers)}",
            path=http.path,
            body=body,
            model=None if asked is None else asked.model.name,
            prompt=await self._prompt(fields, asked) if isinstance(fields, _Body) else None,
            headers=forwarded_headers(http),
            reports_usage=_reports_usage(fields.stream_options),
            streams=fields.stream is True,
            excluded=NOBODY if asked is None else self._models.without_adapter(asked),
            divisible=fields.divisible,
        )

    async def _prompt(self, fields: _Body, asked: Asked | None) -> PromptHashes | None:
        """The prompt's hashes; None where they cannot be told here: the engine may still know how."""
        model, adapter = (asked.model.name, asked.adapter) if asked is not None else ("", None)
        raw = (fields.messages, fields.prompt, fields.tools, fields.chat_template_kwargs, fields.cache_salt)
        key, now = self._known.key((f"{model}:{adapter}".encode(), *raw)), time.monotonic()
        prompt = self._known.get(key, now)
        if prompt is None:
            try:
                read = [msgspec.json.decode(field) for field in raw]
            except (msgspec.DecodeError, UnicodeDecodeError) as error:
                raise _no_json(error) from error
            tokens = await self._tokens(_Prompt(*read), model)
            if tokens is not None:
                salt = read[-1] if isinstance(read[-1], str) else None
                prompt = PromptHashes(self._relay.hashes(tokens, salt, adapter), len(tokens))
                self._known.put(key, prompt, now)
        return prompt

    async def _tokens(self, fields: _Prompt, model: str) -> NDArray[np.uint32] | None:
        """The prompt's tokens, at least one."""
        assert self._tokenizer_of is not None
        tokenizer = self._tokenizer_of(model)
        try:
            if fields.messages is not None:
                tokens = await tokenizer.chat(plain_messages(fields.messages), _template_arguments(fields))
            else:
                prompt = plain_prompt(fields.prompt)
                tokens = prompt if isinstance(prompt, np.ndarray) else await tokenizer.text(prompt)
        except (ApiError, TemplateRefused) as error:
            self._metrics.untokenized.inc()
            if not self._unrouted:
                self._unrouted = True
                logger.warning("a request is placed by load alone, and so will be others like it: %s", error)
            return None
        return tokens if len(tokens) else None


def _no_json(error: Exception) -> ApiError:
    return invalid(f"the body is not a JSON object: {error}")


def _whole(answer: Answer) -> web.Response:
    headers = {"Content-Type": answer.content_type, WORKER_HEADER: str(answer.target)}
    return web.Response(body=answer.body, headers=headers)


def _template_arguments(fields: _Prompt) -> Mapping[str, Any]:
    arguments = fields.chat_template_kwargs if isinstance(fields.chat_template_kwargs, dict) else {}
    return {**arguments, "tools": fields.tools} if fields.tools else arguments


def _reports_usage(options: object) -> bool:
    return isinstance(options, dict) and bool(options.get("include_usage"))


def forwarded_headers(http: web.Request) -> dict[str, str]:
    """The client's headers that an engine gets, and the request's id."""
    headers = {name: value for name in FORWARDED if (value := http.headers.get(name)) is not None}
    headers[REQUEST_ID_HEADER] = http.id
    return headers


def _reported(request_id: str, error: EngineError | NoTarget) -> ApiError:
    """What the client is told; the log has the rest."""
    logger.warning("request %s: %s: %s", request_id, type(error).__name__, error)
    return from_dispatch(error)
