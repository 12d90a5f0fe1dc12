"""One request on its way through a rank: what was asked, what came out so far, and SGLang's account of it."""

from __future__ import annotations

import time
import uuid
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from sim.engine import Namespace, Request

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from numpy.typing import NDArray

    from sim.engine import Finish, Output
    from sim.worker.rank import Rank
    from sim.worker.rendezvous import Meeting, Side
    from sim.worker.text import TextModel

DEFAULT_MAX_NEW_TOKENS = 128
"""Of /generate; the OpenAI routes have no limit but the context."""


class BadRequest(ValueError):
    """The client asked for something that cannot be done (400)."""


def typed(body: dict[str, Any], name: str, kind: type | tuple[type, ...], default: Any = None) -> Any:
    """A field of the body, which may be absent or null.

    :raises BadRequest: it is of another type.
    """
    value = body.get(name)
    if value is None:
        return default
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is int):
        raise BadRequest(f"{name}: {type(value).__name__} is not what it takes")
    return value


def token_ids(value: Any, name: str) -> NDArray[np.uint32]:
    """Token ids from JSON, shape (n,).

    :raises BadRequest: not a flat list of ids.
    """
    if not isinstance(value, list) or not all(isinstance(item, int) and 0 <= item < 2**32 for item in value):
        raise BadRequest(f"{name}: a flat list of token ids is needed (batches are not modelled)")
    return np.array(value, np.uint32)


def as_request(body: dict[str, Any], prompt: NDArray[np.uint32], sampling: dict[str, Any]) -> Request:
    """An engine request from a body and its sampling parameters.

    :raises BadRequest: a field is of the wrong type.
    """
    stops = token_ids(typed(sampling, "stop_token_ids", list, []), "stop_token_ids")
    return Request(
        rid=typed(body, "rid", str) or uuid.uuid4().hex,
        prompt=prompt,
        max_new_tokens=typed(sampling, "max_new_tokens", int),
        ignore_eos=typed(sampling, "ignore_eos", bool, default=False),
        stop_token_ids=frozenset(stops.tolist()),
        namespace=Namespace(
            typed(body, "extra_key", str), typed(body, "cache_salt", str), typed(body, "lora_path", str)
        ),
        session_id=typed(body, "session_id", str),
    )


def stop_strings(value: Any) -> list[str]:
    """The `stop` parameter as a list.

    :raises BadRequest: neither text nor a list of texts.
    """
    stops = [value] if isinstance(value, str) else value or []
    if not isinstance(stops, list) or not all(isinstance(stop, str) for stop in stops):
        raise BadRequest("stop: a text or a list of texts is needed")
    return [stop for stop in stops if stop]


@dataclass(eq=False)
class Generation:
    """A request that a rank works on."""

    request: Request
    rank: Rank
    text_model: TextModel | None
    stops: list[str] = field(default_factory=list)
    side: Side | None = None
    meeting: Meeting | None = None
    """Its other side, where this worker does only a part of it."""
    tell_rank: bool = False
    """Only with several ranks does SGLang name the one."""
    output_ids: list[int] = field(default_factory=list)
    text: str = ""
    finish: dict[str, Any] | None = None
    last: Output | None = None
    received_at: float = field(default_factory=time.time)
    first_token_at: float = 0.0
    finished_at: float = 0.0
    token_times: list[float] = field(default_factory=list)

    async def advance(self) -> AsyncGenerator[Generation]:
        """Yields itself after each token, and once at an abort; a caller that stops early aborts the request.

        :raises ValueError: see `Engine.submit`.
        """
        outputs = self.rank.submit(self.request)
        if self.side is not None and self.meeting is not None:
            self.side.begin(self.rank, self.request.rid, self.meeting)
        try:
            async for output in outputs:
                self._take(output)
                yield self
                if self.finish is not None:
                    break
        finally:
            if self.last is None or self.last.finish is None:
                self.rank.abort(self.request.rid)
            if self.side is not None:
                self.side.end(self.request.rid)

    def _take(self, output: Output) -> None:
        self.last = output
        if output.token is not None:
            self.token_times.append(time.time())
            self.first_token_at = self.token_times[0]
            self.output_ids.append(output.token)
            if self.text_model is not None:
                self.text += self.text_model.pieces.get(output.token, "")
        if output.finish is not None:
            self.finish = self._reason(output.finish)
        self._stop_at_text()
        if self.finish is not None:
            self.finished_at = time.time()

    def _reason(self, finish: Finish) -> dict[str, Any]:
        if finish.type == "length":
            delivers = self.rank.delivers
            return {"type": "length", "length": len(self.output_ids) if delivers else 0}
        if finish.type == "stop":
            return {"type": "stop", "matched": finish.matched}
        reason = self.rank.failures.pop(self.request.rid, None)
        if reason is not None:
            return {"type": "abort", "message": reason, "status_code": 500, "err_type": "InternalServerError"}
        return {"type": "abort", "message": "Aborted", "status_code": None, "err_type": None}

    def _stop_at_text(self) -> None:
        for stop in self.stops:
            at = self.text.find(stop)
            if at >= 0:
                self.text = self.text[:at]
                self.finish = {"type": "stop", "matched": stop}
                return

    @property
    def failure(self) -> str | None:
        """Why the worker itself gave it up, if it did."""
        finish = self.finish or {}
        return str(finish["message"]) if finish.get("status_code") else None

    @property
    def cached_tokens(self) -> int:
        """Prompt tokens that were in the cache."""
        return self.last.cached_tokens if self.last else 0

    def meta_info(self) -> dict[str, Any]:
        """SGLang's `meta_info`, as far as it is known by now."""
        cached = self.cached_tokens
        host = self.last.host_tokens if self.last else 0
        begun = self.received_at + (self.last.queue_seconds if self.last else 0.0)
        info: dict[str, Any] = {
            "id": self.request.rid,
            "finish_reason": self.finish,
            "prompt_tokens": len(self.request.prompt),
            "weight_version": "default",
            "num_retractions": self.last.retractions if self.last else 0,
            "storage_prefetch_wait": 0.0,
            "storage_staging_wait": 0.0,
            "forward_entry_time": begun,
            "prefill_finished_time": self.first_token_at or None,
            "queue_time": self.last.queue_seconds if self.last else 0.0,
            "reasoning_tokens": 0,
            "completion_tokens": len(self.output_ids),
            "cached_tokens": cached,
            "cached_tokens_details": {"device": cached - host, "host": host} if cached else None,
            "dp_rank": self.rank.number if self.tell_rank else None,
        }
        if len(self.output_ids) == 1 or self.finish is not None:
            info["response_sent_to_client_ts"] = self.first_token_at
        return info | self._ending() if self.finish is not None else info

    def _ending(self) -> dict[str, Any]:
        count, decoding = len(self.output_ids), self.finished_at - self.first_token_at
        return {
            "weight_versions": [{"version": "default", "start": 0, "end": count}],
            "e2e_latency": self.finished_at - self.received_at,
            "request_received_ts": self.received_at,
            "first_token_latency": self.first_token_at - self.received_at if count else None,
            "api_server_dispatch_finish_ts": self.received_at,
            "request_finished_ts": self.finished_at,
            "decode_throughput": (count - 1) / decoding if count > 1 and decoding > 0 else None,
        }

    def usage(self, *, report_cached: bool = True) -> dict[str, Any]:
        """OpenAI's `usage`."""
        prompt, completion = len(self.request.prompt), len(self.output_ids)
        return {
            "prompt_tokens": prompt,
            "total_tokens": prompt + completion,
            "completion_tokens": completion,
            "prompt_tokens_details": {"cached_tokens": self.cached_tokens} if report_cached else None,
            "reasoning_tokens": 0,
            "completion_tokens_details": None,
        }
