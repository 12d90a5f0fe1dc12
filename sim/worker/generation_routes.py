"""The routes that generate: /generate, /v1/chat/completions, /v1/completions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from aiohttp import web

from sim.worker.generation import DEFAULT_MAX_NEW_TOKENS, BadRequest, as_request, stop_strings, token_ids, typed
from sim.worker.reply import native_error, openai_error, read_body
from sim.worker.shapes import ChatShape, CompletionShape, NativeShape

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from sim.worker.service import Service
    from sim.worker.shapes import Shape
    from sim.worker.text import TextModel

RANK_HEADER = "X-Data-Parallel-Rank"


class GenerationRoutes:
    """Reads requests, and has the service answer them."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._config = service.config

    def routes(self) -> list[web.RouteDef]:
        """What to add to the application."""
        return [
            web.post("/generate", self.generate),
            web.put("/generate", self.generate),
            web.post("/v1/chat/completions", self.chat),
            web.post("/v1/completions", self.complete),
        ]

    async def generate(self, http: web.Request) -> web.StreamResponse:
        """SGLang's own route."""
        try:
            body = await read_body(http)
            sampling = {"max_new_tokens": DEFAULT_MAX_NEW_TOKENS} | typed(body, "sampling_params", dict, {})
            _refuse_many(sampling)
            request = as_request(body, self._native_prompt(body), sampling)
            rank = self._service.rank_for(body)
            generation = self._service.accept(request, rank, stop_strings(sampling.get("stop")), body)
            stream = typed(body, "stream", bool, default=False)
        except ValueError as error:
            return native_error(str(error))
        incremental = self._config.incremental_streaming_output
        shape = NativeShape(incremental=incremental, with_text=self._service.text_model is not None)
        return await self._service.answer(http, generation, shape, stream=stream)

    async def chat(self, http: web.Request) -> web.StreamResponse:
        """OpenAI's chat."""
        return await self._openai(http, ChatShape, self._chat_prompt)

    async def complete(self, http: web.Request) -> web.StreamResponse:
        """OpenAI's completions."""
        return await self._openai(http, CompletionShape, self._completion_prompt)

    async def _openai(
        self, http: web.Request, kind: type[ChatShape | CompletionShape], read: Any
    ) -> web.StreamResponse:
        try:
            body = self._with_adapter(await read_body(http))
            _refuse_many(body)
            sampling = {
                "max_new_tokens": typed(body, "max_completion_tokens", int, typed(body, "max_tokens", int)),
                "ignore_eos": body.get("ignore_eos"),
                "stop_token_ids": body.get("stop_token_ids"),
            }
            if kind is CompletionShape and sampling["max_new_tokens"] is None:
                sampling["max_new_tokens"] = 16  # OpenAI's default
            request = as_request(body, read(body), sampling)
            rank = self._service.rank_for(body, http.headers.get(RANK_HEADER))
            generation = self._service.accept(request, rank, stop_strings(body.get("stop")), body)
            stream = typed(body, "stream", bool, default=False)
            shape: Shape = kind(
                typed(body, "model", str, self._config.model_name),
                stream_usage=bool(typed(body, "stream_options", dict, {}).get("include_usage")),
                report_cached=self._config.enable_cache_report,
            )
        except ValueError as error:
            return openai_error(str(error))
        return await self._service.answer(http, generation, shape, stream=stream)

    def _with_adapter(self, body: dict[str, Any]) -> dict[str, Any]:
        """The body with the adapter that its model's name holds after a colon."""
        base, _, adapter = str(body.get("model")).rpartition(":")
        return body | {"lora_path": adapter} if base == self._config.model_name else body

    def _native_prompt(self, body: dict[str, Any]) -> NDArray[np.uint32]:
        if (body.get("text") is None) == (body.get("input_ids") is None):
            raise BadRequest("Either text or input_ids should be provided.")
        if body.get("input_ids") is not None:
            return token_ids(body["input_ids"], "input_ids")
        return self._text_model.encode(typed(body, "text", str))

    def _completion_prompt(self, body: dict[str, Any]) -> NDArray[np.uint32]:
        prompt = body.get("prompt")
        if isinstance(prompt, str):
            return self._text_model.encode(prompt)
        return token_ids(prompt, "prompt")

    def _chat_prompt(self, body: dict[str, Any]) -> NDArray[np.uint32]:
        messages = typed(body, "messages", list)
        if not messages or not all(isinstance(message, dict) and "role" in message for message in messages):
            raise BadRequest("messages: a list of messages, each with its role, is needed")
        flat = [message | {"content": _flat(message.get("content"))} for message in messages]
        options = {"tools": body.get("tools")} | typed(body, "chat_template_kwargs", dict, {})
        return self._text_model.encode(self._text_model.render(flat, **options), special=False)

    @property
    def _text_model(self) -> TextModel:
        if self._service.text_model is None:
            raise BadRequest("text cannot be read: no tokenizer was loaded (skip_tokenizer_init)")
        return self._service.text_model


def _refuse_many(parameters: dict[str, Any]) -> None:
    if typed(parameters, "n", int, 1) != 1:
        raise BadRequest("n: only 1 is modelled")


def _flat(content: Any) -> str:
    """A message's text; parts that are no text are refused."""
    if content is None or isinstance(content, str):
        return content or ""
    parts = content if isinstance(content, list) else []
    if not parts or not all(isinstance(part, dict) and isinstance(part.get("text"), str) for part in parts):
        raise BadRequest("messages: content must be text, or parts of text")
    return "\n".join(part["text"] for part in parts)
