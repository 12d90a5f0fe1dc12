"""The routes of a worker with `--is-embedding`: vectors that depend on nothing but the tokens.

Each token has a vector of its own, drawn from a seed; a text's is the mean of them, of length 1. Texts with common words are near
each other, so rankings make sense.
"""

from __future__ import annotations

import asyncio
import base64
import time
import uuid
from typing import TYPE_CHECKING, Any

import numpy as np
from aiohttp import web

from sim.engine import Request
from sim.worker.generation import BadRequest, token_ids, typed
from sim.worker.reply import json_reply, openai_error, read_body

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from numpy.typing import NDArray

    from sim.worker.service import Service

ROWS = 4096
"""Tokens that far apart share a vector."""
MOST_DIMENSIONS = 1024
LABELS = ("LABEL_0", "LABEL_1")


class EmbeddingRoutes:
    """Reads inputs, has a rank work through them, and answers with vectors, scores or labels."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._config = service.config
        self._dimensions = min(int(service.config.model_config.get("hidden_size", 64)), MOST_DIMENSIONS)
        generator = np.random.default_rng(service.config.seed)
        self._rows = generator.standard_normal((ROWS, self._dimensions), np.float32)

    def routes(self) -> list[web.RouteDef]:
        """What to add to the application."""
        handlers = {"/v1/embeddings": self.embeddings, "/v1/rerank": self.rerank, "/v1/classify": self.classify}
        return [web.post(path, self._guarded(handler)) for path, handler in handlers.items()]

    async def embeddings(self, body: dict[str, Any]) -> web.Response:
        """`/v1/embeddings`."""
        prompts = self._prompts(body.get("input"))
        encoding, dimensions = typed(body, "encoding_format", str, "float"), typed(body, "dimensions", int)
        if encoding not in ("float", "base64"):
            raise BadRequest(f"encoding_format must be either 'float' or 'base64', got {encoding!r}")
        vectors = await self._vectors(prompts, dimensions)
        data = [{"embedding": _encoded(v, encoding), "index": i, "object": "embedding"} for i, v in enumerate(vectors)]
        return json_reply({"data": data, "model": self._config.model_name, "object": "list", "usage": _usage(prompts)})

    async def rerank(self, body: dict[str, Any]) -> web.Response:
        """`/v1/rerank`: documents by the cosine of their vectors with the query's."""
        documents = typed(body, "documents", list, [])
        query, *vectors = await self._vectors(self._prompts([typed(body, "query", str, ""), *documents]))
        scores = [float(query @ vector) for vector in vectors]
        order = sorted(range(len(scores)), key=lambda i: -scores[i])[: typed(body, "top_n", int, len(scores))]
        whole = typed(body, "return_documents", bool, default=True)
        return json_reply(
            [{"score": scores[i], "index": i} | ({"document": documents[i]} if whole else {}) for i in order]
        )

    async def classify(self, body: dict[str, Any]) -> web.Response:
        """`/v1/classify`: one of two labels."""
        prompts = self._prompts(body.get("input"))
        shares = [float(1 / (1 + np.exp(-4 * vector[0]))) for vector in await self._vectors(prompts)]
        data = [
            {"index": i, "label": LABELS[share >= 0.5], "probs": [1 - share, share], "num_classes": 2}
            for i, share in enumerate(shares)
        ]
        head = {"id": f"classify-{uuid.uuid4().hex}", "object": "list", "created": int(time.time())}
        return json_reply(head | {"model": self._config.model_name, "data": data, "usage": _usage(prompts)})

    def _guarded(
        self, handler: Callable[[dict[str, Any]], Awaitable[web.Response]]
    ) -> Callable[[web.Request], Awaitable[web.Response]]:
        """A handler behind SGLang's objections."""

        async def answer(http: web.Request) -> web.Response:
            try:
                if not self._config.is_embedding:
                    raise BadRequest(
                        "This model does not appear to be an embedding model; start it with --is-embedding."
                    )
                return await handler(await read_body(http))
            except ValueError as error:
                return openai_error(str(error))

        return answer

    def _prompts(self, value: Any) -> list[NDArray[np.uint32]]:
        """Texts or token ids, one or several, as prompts."""
        if not value:
            raise BadRequest("Input cannot be empty")
        if isinstance(value, str) or (isinstance(value, list) and isinstance(value[0], int)):
            value = [value]
        return [self._prompt(item) for item in value]

    def _prompt(self, value: Any) -> NDArray[np.uint32]:
        if not isinstance(value, str):
            return token_ids(value, "input")
        if not value.strip() or self._service.text_model is None:
            raise BadRequest("Input cannot be empty or whitespace only")
        return self._service.text_model.encode(value)

    async def _vectors(
        self, prompts: list[NDArray[np.uint32]], dimensions: int | None = None
    ) -> list[NDArray[np.float32]]:
        """Vectors of length 1, once a rank has gone through the prompts."""
        if dimensions is not None and not 1 <= dimensions <= self._dimensions:
            raise BadRequest(f"dimensions must lie between 1 and {self._dimensions}, not {dimensions}")
        await asyncio.gather(*(self._prefill(prompt) for prompt in prompts))
        return [_normalised(self._mean(prompt)[:dimensions]) for prompt in prompts]

    async def _prefill(self, prompt: NDArray[np.uint32]) -> None:
        rank = self._service.rank_for({})
        async for _ in rank.submit(Request(uuid.uuid4().hex, prompt, max_new_tokens=1)):
            pass

    def _mean(self, prompt: NDArray[np.uint32]) -> NDArray[np.float32]:
        mean: NDArray[np.float32] = self._rows[prompt % ROWS].mean(axis=0)
        return mean


def _normalised(vector: NDArray[np.float32]) -> NDArray[np.float32]:
    return (vector / np.linalg.norm(vector)).astype(np.float32)


def _encoded(vector: NDArray[np.float32], encoding: str) -> list[float] | str:
    return base64.b64encode(vector.astype("<f4").tobytes()).decode() if encoding == "base64" else vector.tolist()


def _usage(prompts: list[NDArray[np.uint32]]) -> dict[str, Any]:
    tokens = sum(len(prompt) for prompt in prompts)
    return {"prompt_tokens": tokens, "total_tokens": tokens, "completion_tokens": 0, "prompt_tokens_details": None}
