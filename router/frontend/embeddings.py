"""Embeddings, rankings and classifications: checked here, placed by load alone, answered by an engine's own route."""

from __future__ import annotations

import base64
import logging
from itertools import count
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import numpy as np
from msgspec import Meta

from router.core import NoTarget
from router.dispatch.errors import EngineError
from router.dispatch.request import TextRequest
from router.frontend import http as web
from router.frontend.errors import ApiError, from_dispatch, invalid
from router.frontend.requests import convert, json_object
from router.frontend.textmode import WORKER_HEADER, forwarded_headers

if TYPE_CHECKING:
    from router.dispatch.answer import Answer
    from router.dispatch.relay import Relay
    from router.frontend.models import Models
    from router.metrics import Metrics

logger = logging.getLogger(__name__)

Text = Annotated[str, Meta(min_length=1)]
Texts: Any = Text | Annotated[list[Text], Meta(min_length=1)]
Tokens = Annotated[list[Annotated[int, Meta(ge=0, le=2**32 - 1)]], Meta(min_length=1)]


class _Body(msgspec.Struct, kw_only=True):
    model: Annotated[str, Meta(min_length=1)] | None = None


class _Embeddings(_Body, kw_only=True):
    input: Any
    dimensions: Annotated[int, Meta(ge=1)] | None = None
    encoding_format: str | None = None


class _Rerank(_Body, kw_only=True):
    query: str | list[Any]
    documents: Annotated[list[Any], Meta(min_length=1)]
    top_n: Annotated[int, Meta(ge=1)] | None = None
    return_documents: bool | None = None


class _Classify(_Body, kw_only=True):
    input: Any


class _Vector(msgspec.Struct):
    embedding: list[float] | str
    index: int = 0
    object: str = "embedding"


class _Reply(msgspec.Struct):
    data: list[_Vector]
    model: str = ""
    object: str = "list"
    usage: Any = None


class Embeddings:
    """The handlers of models that make embeddings."""

    def __init__(self, relay: Relay, metrics: Metrics, models: Models) -> None:
        self._relay = relay
        self._metrics = metrics
        self._models = models
        self._numbers = count()

    def __repr__(self) -> str:
        return f"Embeddings({self._relay!r})"

    def routes(self) -> list[web.Route]:
        """What to add to the application."""
        return [
            web.post("/v1/embeddings", self.embeddings),
            web.post("/v1/rerank", self.rerank),
            web.post("/v1/classify", self.classify),
        ]

    async def embeddings(self, http: web.Request) -> web.Response:
        """`POST /v1/embeddings`: a text, several, token ids, or several lists of them."""
        body = await http.read()
        asked = convert(json_object(body), _Embeddings)
        if asked.model is None:
            raise invalid("model is required", "model")
        if asked.encoding_format not in (None, "float", "base64"):
            raise invalid(
                f"encoding_format: expected float or base64, got {asked.encoding_format!r}", "encoding_format"
            )
        _check_input(asked.input)
        answer = await self._answer(http, body, asked.model)
        return _response(answer, _reshaped(answer.body, asked))

    async def rerank(self, http: web.Request) -> web.Response:
        """`POST /v1/rerank`: documents by how well they answer a query."""
        body = await http.read()
        asked = convert(json_object(body), _Rerank)
        if not asked.query:
            raise invalid("query: must not be empty", "query")
        answer = await self._answer(http, body, asked.model)
        return _response(answer, answer.body)

    async def classify(self, http: web.Request) -> web.Response:
        """`POST /v1/classify`: the probability of each label."""
        body = await http.read()
        asked = convert(json_object(body), _Classify)
        _check_input(asked.input)
        answer = await self._answer(http, body, asked.model)
        return _response(answer, answer.body)

    async def _answer(self, http: web.Request, body: bytes, name: str | None) -> Answer:
        """An engine's whole reply, from whichever worker has the least to do."""
        asked = self._models.embedding(name or self._models.only_embedding())
        request = TextRequest(
            request_id=f"embed-{next(self._numbers)}",
            path=http.path,
            body=body,
            model=asked.model.name,
            headers=forwarded_headers(http),
            excluded=self._models.without_adapter(asked),
            divisible=False,
        )
        try:
            with self._metrics.requests_in_flight.track_inprogress():
                answer = await self._relay.open(request)
        except (EngineError, NoTarget) as error:
            logger.warning("request %s: %s: %s", http.id, type(error).__name__, error)
            raise from_dispatch(error) from error
        answer.close()
        if answer.usage is not None:
            self._metrics.answered(answer.usage.prompt_tokens, 0, answer.usage.cached_tokens or 0)
        return answer


def _response(answer: Answer, body: bytes) -> web.Response:
    return web.Response(body=body, headers={"Content-Type": answer.content_type, WORKER_HEADER: str(answer.target)})


def _check_input(value: object) -> None:
    """A text, texts, token ids, or lists of token ids; none of them may be empty.

    :raises ApiError: it is something else.
    """
    try:
        if isinstance(value, list) and value and not isinstance(value[0], str):
            msgspec.convert(value, list[Tokens] if isinstance(value[0], list) else Tokens)
        else:
            msgspec.convert(value, Texts)
    except msgspec.ValidationError as error:
        raise invalid(
            f"input: expected a text, texts, token ids, or lists of token ids, none of them empty: {error}", "input"
        ) from error


def _reshaped(body: bytes, asked: _Embeddings) -> bytes:
    """The reply in the encoding that was asked for: not every version of the engine knows base64. O(size).

    :raises ApiError: the vectors are of another length than was asked for.
    """
    if asked.encoding_format != "base64" and asked.dimensions is None:
        return body
    try:
        reply = msgspec.json.decode(body, type=_Reply)
    except msgspec.DecodeError as error:
        raise ApiError(
            502, f"the engine's embeddings cannot be read: {error}", "upstream_error", "upstream_error"
        ) from error
    if any(
        isinstance(v.embedding, list) and len(v.embedding) != (asked.dimensions or len(v.embedding)) for v in reply.data
    ):
        raise ApiError(
            *(400, "dimensions is not supported: the engine ignores it"),
            code="unsupported_parameter",
            param="dimensions",
        )
    if asked.encoding_format != "base64" or all(isinstance(vector.embedding, str) for vector in reply.data):
        return body
    for vector in reply.data:
        if isinstance(vector.embedding, list):
            vector.embedding = base64.b64encode(np.array(vector.embedding, "<f4").tobytes()).decode()
    return msgspec.json.encode(reply)
