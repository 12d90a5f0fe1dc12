"""The HTTP interface: OpenAI's routes, and the router's own."""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import msgspec
import numpy as np

from router.core import NoTarget, Target
from router.dispatch.errors import EngineError
from router.dispatch.request import TokenRequest
from router.frontend import http as web
from router.frontend.completion import Completion
from router.frontend.embeddings import Embeddings
from router.frontend.errors import (
    context_length_exceeded,
    from_dispatch,
    internal,
    invalid,
    no_target,
    unsupported,
)
from router.frontend.middleware import REQUEST_ID_HEADER, Outermost
from router.frontend.models import Models, ModelsOfFleet
from router.frontend.native import Native
from router.frontend.replies import ChatReplies, CompletionReplies, error_event
from router.frontend.requests import asked_model, parse_chat, parse_completion, parse_explain
from router.frontend.stops import StopStrings
from router.frontend.template import TemplateRefused
from router.frontend.textmode import TextMode
from router.frontend.timing import RequestTimer
from router.metrics import CONTENT_TYPE

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping

    from numpy.typing import NDArray

    from router.core.paths import PathDecision
    from router.dispatch.dispatcher import Dispatcher
    from router.dispatch.relay import Relay
    from router.dispatch.request import Output
    from router.frontend.admin import Administration
    from router.frontend.errors import ApiError
    from router.frontend.models import Asked
    from router.frontend.replies import Replies
    from router.frontend.requests import GenerationRequest, Prompt
    from router.frontend.tokenizer import ModelTokenizer
    from router.metrics import Metrics

logger = logging.getLogger(__name__)

WORKER_HEADER = "X-Warmpath-Worker"
MAX_BODY_BYTES = 32 * 1024 * 1024
STREAM_HEADERS = {
    "Content-Type": "text/event-stream; charset=utf-8",
    "Cache-Control": "no-cache",
    "X-Accel-Buffering": "no",  # else nginx would collect the stream
}


class Fleet(ModelsOfFleet, Protocol):
    """The workers, as far as clients see them."""

    def workers(self) -> list[dict[str, Any]]:
        """What is known of each worker, fit for JSON; one that gets no requests at all says why under `refused`."""

    def blocks(self, target: Target) -> dict[str, list[int]] | None:
        """What a target is believed to hold, per tier; None: it is not there."""


class Frontend:
    """The handlers, and what they work with.

    `tokenizer_of` gives a model's tokenizer. In text mode it may be None, and all generations pass through the `relay`; else those
    do of models that need it. Without a relay none do, and there are no embeddings. `admit` is awaited before any request for a
    model is looked at.
    """

    def __init__(
        self,
        fleet: Fleet,
        dispatcher: Dispatcher,
        tokenizer_of: Callable[[str], ModelTokenizer] | None,
        metrics: Metrics,
        relay: Relay | None = None,
        *,
        text_mode: bool = True,
        administration: Administration | None = None,
        admit: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        self._fleet = fleet
        self._dispatcher = dispatcher
        self._tokenizer_of = tokenizer_of
        self._metrics = metrics
        self._started_at = int(time.time())
        self._models = models = Models(fleet)
        self._text_mode = text_mode
        self._administration = administration
        self._admit = admit
        self._text: TextMode | None = None
        self._passed: list[web.Route] = []
        if relay is not None:
            self._text = TextMode(relay, tokenizer_of, metrics, models)
            native = Native(self._text, relay, tokenizer_of, models)
            self._passed = [*Embeddings(relay, metrics, models).routes(), web.post("/generate", native.generate)]

    def __repr__(self) -> str:
        return f"Frontend({self._models!r})"

    def application(self, max_body_bytes: int = MAX_BODY_BYTES) -> Outermost:
        """All routes; serve them with `server.listen`."""
        routes = web.Routes(
            [
                self._admitted(web.post("/v1/chat/completions", self.chat_completions)),
                self._admitted(web.post("/v1/completions", self.completions)),
                web.get("/v1/models", self.models),
                web.get("/v1/models/{model:.+}", self.model),
                web.get("/health", self.health),
                web.get("/live", self.live),
                web.get("/metrics", self.metrics),
                web.get("/workers", self.workers),
                web.get("/workers/{worker:.+}/{rank:[0-9]+}/blocks", self.blocks),
                web.post("/explain", self.explain),
                *(self._admitted(route) for route in self._passed),
                *(self._administration.routes() if self._administration is not None else ()),
            ]
        )
        return Outermost(routes, self._metrics, web.Limits(body_bytes=max_body_bytes))

    def _admitted(self, route: web.Route) -> web.Route:
        """The route, its requests waiting for admission."""
        admit, handler = self._admit, route.handler
        if admit is None:
            return route

        async def admitted(http: web.Request) -> web.Response | web.StreamResponse:
            await admit()
            return await handler(http)

        return route._replace(handler=admitted)

    # ---- OpenAI's routes

    async def chat_completions(self, http: web.Request) -> web.Response | web.StreamResponse:
        """`POST /v1/chat/completions`."""
        body = await http.read()
        if self._text is not None and self._passes(body, chat=True):
            return await self._text.answer(http)
        return await self._generate(http, parse_chat(body), ChatReplies)

    async def completions(self, http: web.Request) -> web.Response | web.StreamResponse:
        """`POST /v1/completions`."""
        body = await http.read()
        if self._text is not None and self._passes(body, chat=False):
            return await self._text.answer(http)
        return await self._generate(http, parse_completion(body), CompletionReplies)

    def _passes(self, body: bytes, *, chat: bool) -> bool:
        """Whether a body goes to an engine as it is."""
        if self._text_mode:
            return True
        return self._models.some_pass() and self._models.passes(asked_model(body), chat=chat)

    async def models(self, http: web.Request) -> web.Response:
        """`GET /v1/models`."""
        return _json({"object": "list", "data": [self._model(name) for name in self._models.names()]})

    async def model(self, http: web.Request) -> web.Response:
        """`GET /v1/models/{model}`."""
        return _json(self._model(http.match_info["model"]))

    # ---- the router's own

    async def health(self, http: web.Request) -> web.Response:
        """`GET /health`: 200 as long as the router works, with workers or without."""
        workers = sum("refused" not in worker for worker in self._fleet.workers())
        status = "ok" if workers else "no workers"
        return _json({"status": status, "workers": workers, "models": self._fleet.models()})

    async def live(self, http: web.Request) -> web.Response:
        """`GET /live`: the process answers."""
        return _json({"status": "alive"})

    async def metrics(self, http: web.Request) -> web.Response:
        """`GET /metrics`: Prometheus' text format."""
        return web.Response(body=self._metrics.exposition(), headers={"Content-Type": CONTENT_TYPE})

    async def workers(self, http: web.Request) -> web.Response:
        """`GET /workers`: what the router believes of each."""
        return _json({"workers": self._fleet.workers()})

    async def blocks(self, http: web.Request) -> web.Response:
        """`GET /workers/{worker}/{rank}/blocks`: every block that the router believes to be there, by its sequence hash."""
        target = Target(http.match_info["worker"], int(http.match_info["rank"]))
        blocks = self._fleet.blocks(target)
        if blocks is None:
            raise no_target(str(target))
        return _json(blocks)

    async def explain(self, http: web.Request) -> web.Response:
        """`POST /explain`: where a request would go now, and why; nothing is sent."""
        request = parse_explain(await http.read())
        asked = self._models.explained(request.model)
        if isinstance(request.prompt, np.ndarray):
            prompt = request.prompt
        else:
            prompt = await self._tokens(asked.model.name, request.prompt, request.template_arguments)
        decision = self._dispatcher.explain(
            *(prompt, asked.model.name or None, request.cache_salt, asked.adapter), self._models.without_adapter(asked)
        )
        return _json({"prompt_tokens": len(prompt), **named(decision.first), **_path(decision)})

    # ---- a generation, step by step

    async def _generate(
        self, http: web.Request, request: GenerationRequest, kind: type[Replies]
    ) -> web.Response | web.StreamResponse:
        """Check → tokenize → dispatch → reply."""
        timer = RequestTimer(self._metrics)
        self._report(request.ignored)
        asked = self._models.generating(request.model).with_adapter(request.adapter)
        context_tokens = asked.context_tokens
        prompt = await self._tokens(asked.model.name, request.prompt, request.template_arguments)
        if len(prompt) > context_tokens:
            raise context_length_exceeded(len(prompt), context_tokens, _field(request.prompt))
        carried = _carried(request, prompt, asked, self._models.without_adapter(asked))
        replies = kind(carried.request_id, request.model, include_usage=request.include_usage)
        detokenizer = self._tokenizer(asked.model.name).detokenizer()
        completion = Completion(detokenizer, StopStrings(request.stops), len(prompt))
        response: web.Response | web.StreamResponse
        with self._metrics.requests_in_flight.track_inprogress():
            async with aclosing(self._dispatcher.run(carried)) as outputs:
                pieces = _pieces(outputs, completion, timer)
                if request.stream:
                    response = await self._stream(http, pieces, completion, replies)
                else:
                    response = await self._whole(http, pieces, completion, replies)
        self._metrics.answered(*completion.usage)
        timer.end()
        return response

    async def _whole(
        self, http: web.Request, pieces: AsyncGenerator[Piece], completion: Completion, replies: Replies
    ) -> web.Response:
        """All at once."""
        try:
            texts = [piece async for piece in pieces]
        except (EngineError, NoTarget) as error:
            raise _reported(http.id, replies, error) from error
        body = replies.full(
            "".join(piece.text for piece in texts), completion.finish_reason or "stop", completion.usage
        )
        headers = {WORKER_HEADER: str(texts[-1].target)}
        return web.Response(body=body, content_type="application/json", headers=headers)

    async def _stream(
        self, http: web.Request, pieces: AsyncGenerator[Piece], completion: Completion, replies: Replies
    ) -> web.StreamResponse:
        """As it comes. What fails before the first token still gets a status; after it, an event that ends the stream."""
        try:
            first = await anext(pieces)
        except (EngineError, NoTarget) as error:
            raise _reported(http.id, replies, error) from error
        headers = {**STREAM_HEADERS, REQUEST_ID_HEADER: http.id, WORKER_HEADER: str(first.target)}
        response = web.StreamResponse(headers=headers)
        await response.prepare(http)
        await response.write(replies.opening() + replies.piece(first.text, completion.finish_reason))
        if broken := await self._continue(response, pieces, completion, replies):
            self._metrics.broken_streams.labels(broken.code).inc()
            await response.write(error_event(broken))
        else:
            await response.write(replies.closing(completion.usage))
        await response.write_eof()
        return response

    async def _continue(
        self, response: web.StreamResponse, pieces: AsyncGenerator[Piece], completion: Completion, replies: Replies
    ) -> ApiError | None:
        """Write all further pieces; returns what broke them off, if something did."""
        try:
            async for piece in pieces:
                if chunk := replies.piece(piece.text, completion.finish_reason):
                    await response.write(chunk)
        except (EngineError, NoTarget) as error:
            return _reported(response.headers[REQUEST_ID_HEADER], replies, error)
        except (ConnectionResetError, asyncio.CancelledError):
            raise  # the client left
        except Exception:
            logger.exception("%r: failed within its stream", replies)
            return internal()
        return None

    # ---- the steps' parts

    def _report(self, ignored: tuple[str, ...]) -> None:
        for name in ignored:
            if self._metrics.ignored_field(name):
                logger.warning("request field %.64r is unknown here, and ignored from now on without a word", name)

    async def _tokens(self, model: str, prompt: Prompt, template_arguments: Mapping[str, Any]) -> NDArray[np.uint32]:
        """The prompt in tokens, at least one.

        :raises ApiError: it has none, or some that the model does not know; or the template does not take it.
        """
        if isinstance(prompt, np.ndarray):
            tokens = self._known_tokens(model, prompt)
        elif isinstance(prompt, str):
            tokens = await self._tokenizer(model).text(prompt)
        else:
            try:
                tokens = await self._tokenizer(model).chat(prompt, template_arguments)
            except TemplateRefused as error:
                raise invalid(f"messages: {error}", "messages") from error
        if not len(tokens):
            raise invalid(f"{_field(prompt)}: has no tokens", _field(prompt))
        return tokens

    def _known_tokens(self, model: str, tokens: NDArray[np.uint32]) -> NDArray[np.uint32]:
        """The tokens, if an engine would not fall over them."""
        size = self._tokenizer(model).vocabulary_size
        if len(tokens) and int(tokens.max()) >= size:
            raise invalid(f"prompt: token id {int(tokens.max())} is outside of the vocabulary of {size}", "prompt")
        return tokens

    def _tokenizer(self, model: str) -> ModelTokenizer:
        """A model's tokenizer.

        :raises ApiError: this router works without.
        """
        if self._tokenizer_of is None:
            raise unsupported("prompt", "this router has no tokenizer; give `input_ids`, or start it with --model-path")
        return self._tokenizer_of(model)

    def _model(self, name: str) -> dict[str, object]:
        """OpenAI's description of a model, and its length.

        :raises ApiError: it is not served.
        """
        length = self._models.find(name).context_tokens
        return {
            "id": name,
            "object": "model",
            "created": self._started_at,
            "owned_by": "warmpath",
            "max_model_len": length,
        }


class Piece(NamedTuple):
    """Text, and who made it."""

    text: str
    target: Target


async def _pieces(
    outputs: AsyncGenerator[Output], completion: Completion, timer: RequestTimer
) -> AsyncGenerator[Piece]:
    """The answer's text, until it is complete: that may be before its engine would end it."""
    async for output in outputs:
        timer.tokens(len(output.token_ids))
        yield Piece(completion.push(output), output.target)
        if completion.finish_reason is not None:
            return


def _carried(
    request: GenerationRequest, prompt: NDArray[np.uint32], asked: Asked, excluded: frozenset[Target]
) -> TokenRequest:
    return TokenRequest(
        request_id=uuid.uuid4().hex,  # not the client's: theirs need not be unique
        model=asked.model.name,
        prompt=prompt,
        max_new_tokens=request.max_tokens or max(1, asked.context_tokens - len(prompt)),
        sampling=request.sampling,
        cache_salt=request.cache_salt,
        extra_key=request.extra_key,
        adapter=asked.adapter,
        excluded=excluded,
        migration_limit=asked.model.migration_limit,
        resumable=not request.constrained,
    )


def _reported(request_id: str, replies: Replies, error: EngineError | NoTarget) -> ApiError:
    """What the client is told; the log has the rest."""
    logger.warning("request %s, %r: %s: %s", request_id, replies, type(error).__name__, error)
    return from_dispatch(error)


def _field(prompt: Prompt) -> str:
    return "messages" if isinstance(prompt, tuple) else "prompt"


def _path(decision: PathDecision) -> dict[str, Any]:
    """Of a fleet that pairs prefill and decode workers: the path, what each would cost, and the table of the decode side."""
    if decision.prefill is None and decision.decode is None:
        return {}
    fields = {"path": decision.path, "whole_seconds": decision.whole_seconds, "pair_seconds": decision.pair_seconds}
    return {**fields, "decode": named(decision.decode)}


def _json(content: object) -> web.Response:
    return web.Response(body=msgspec.json.encode(content), content_type="application/json")


def named(value: object) -> Any:
    """Named tuples, however deep, as dicts, whose field names JSON keeps. O(size).

    >>> named([Piece("a", Target("w0", 1))])
    [{'text': 'a', 'target': {'worker_id': 'w0', 'rank': 1}}]
    """
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return {name: named(field) for name, field in value._asdict().items()}
    if isinstance(value, list | tuple):
        return [named(item) for item in value]
    return value
