"""SGLang's own `/generate` through the router: bodies and answers as they are, placed by their tokens."""

from __future__ import annotations

from itertools import count
from typing import TYPE_CHECKING, Any

import msgspec

from events.blocks import as_tokens
from router.dispatch.request import PromptHashes, TextRequest
from router.frontend.errors import invalid
from router.frontend.requests import convert, json_object
from router.frontend.textmode import forwarded_headers

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    from numpy.typing import NDArray

    from router.dispatch.relay import Relay
    from router.frontend import http as web
    from router.frontend.models import Asked, Models
    from router.frontend.textmode import TextMode
    from router.frontend.tokenizer import ModelTokenizer

PATH = "/generate"


class _Body(msgspec.Struct):
    """The fields that matter here; all others are the engine's to judge."""

    text: Any = None
    input_ids: Any = None
    sampling_params: Any = None
    stream: Any = None
    cache_salt: Any = None
    lora_path: Any = None


class Native:
    """The handler of `/generate`."""

    def __init__(
        self, text: TextMode, relay: Relay, tokenizer_of: Callable[[str], ModelTokenizer] | None, models: Models
    ) -> None:
        self._text = text
        self._relay = relay
        self._tokenizer_of = tokenizer_of
        self._models = models
        self._numbers = count()

    def __repr__(self) -> str:
        return f"Native({self._relay!r})"

    async def generate(self, http: web.Request) -> web.Response | web.StreamResponse:
        """`POST /generate`, whole or as a stream. `?model=` names the model where several are served.

        :raises ApiError: what a client is told when there is no answer.
        """
        body = await http.read()
        fields = convert(json_object(body), _Body)
        adapter = fields.lora_path if isinstance(fields.lora_path, str) else None
        asked = self._asked(http.query.get("model"), adapter)
        tokens = await self._tokens(fields, asked)
        request = TextRequest(
            request_id=f"native-{next(self._numbers)}",
            path=PATH,
            body=body,
            model=asked.model.name,
            prompt=None if tokens is None else self._prompt(tokens, fields, adapter),
            headers=forwarded_headers(http),
            reports_usage=True,
            streams=fields.stream is True,
            excluded=self._models.without_adapter(asked),
            names_rank=True,
            divisible=tokens is not None and _answers(fields.sampling_params) == 1,
        )
        return await self._text.carry(http, request)

    def _asked(self, name: str | None, adapter: str | None) -> Asked:
        """The model that is meant, with the adapter.

        :raises ApiError: it is not served, or it is not clear which.
        """
        if name is None:
            names = self._models.generating_names()
            if len(names) > 1:
                raise invalid(f"several models are served: name one of them with ?model=: {', '.join(names)}", "model")
            name = names[0] if names else ""
        return self._models.generating(name).with_adapter(adapter)

    async def _tokens(self, fields: _Body, asked: Asked) -> NDArray[np.uint32] | None:
        """The one prompt's tokens; None: there are several, or they cannot be told here."""
        ids = fields.input_ids
        if isinstance(ids, list) and ids and all(type(item) is int for item in ids):
            try:
                return as_tokens(ids)
            except (ValueError, OverflowError) as error:
                raise invalid("input_ids: token ids must lie in [0, 2**32)", "input_ids") from error
        if isinstance(fields.text, str) and fields.text and self._tokenizer_of is not None:
            return await self._tokenizer_of(asked.model.name).text(fields.text)
        return None

    def _prompt(self, tokens: NDArray[np.uint32], fields: _Body, adapter: str | None) -> PromptHashes:
        salt = fields.cache_salt if isinstance(fields.cache_salt, str) else None
        return PromptHashes(self._relay.hashes(tokens, salt, adapter), len(tokens))


def _answers(sampling: Any) -> int:
    count = sampling.get("n") if isinstance(sampling, dict) else None
    return count if isinstance(count, int) else 1
