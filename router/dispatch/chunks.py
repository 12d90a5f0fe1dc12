"""One streamed message of an SGLang engine → the tokens that are new in it.

By default every message carries all output tokens so far (cumulative); with `--incremental-streaming-output` only the new ones,
but its last message may repeat some. `meta_info.completion_tokens` counts from the start in both, so it tells them apart.
"""

from __future__ import annotations

import re
from typing import NamedTuple

import msgspec

from router.dispatch.errors import EngineAborted, EngineFailed, EngineRefused, RendezvousFailed

END = b"[DONE]"
CLIENT_FAULTS = frozenset({400, 413, 422})
"""Statuses that condemn the request; any other failure may be the worker's own."""

_RENDEZVOUS = re.compile(r"(bootstrap|handshake|transfer) failed|prefill parallel info")
"""How SGLang's two sides say that they did not find each other, or that KV did not get across."""


class EngineOutput(NamedTuple):
    """What one message of the engine adds."""

    token_ids: list[int]
    """New since the last message; the stop token, where one was hit, included."""
    prompt_tokens: int
    cached_tokens: int | None
    completion_tokens: int
    """Since the start of this engine's answer."""
    finish_reason: str | None = None
    """"stop" or "length"; None: more to come."""
    matched: int | str | None = None
    """The stop token that ended it, if one did."""


class _Finish(msgspec.Struct):
    type: str
    matched: int | str | list[int] | None = None
    message: str | None = None
    status_code: int | None = None


class _Meta(msgspec.Struct):
    completion_tokens: int
    prompt_tokens: int = 0
    cached_tokens: int | None = None
    finish_reason: _Finish | None = None


class _Error(msgspec.Struct):
    message: str = "no reason given"
    code: int | str | None = None


class _Chunk(msgspec.Struct):
    output_ids: list[int] = []
    meta_info: _Meta | None = None
    error: _Error | None = None


_DECODER = msgspec.json.Decoder(_Chunk)


class ChunkReader:
    """Reads the messages of one answer, in order. O(tokens in the message).

    >>> reader = ChunkReader()
    >>> for ids, count in ([7], 1), ([7, 8], 2), ([7, 8, 9], 3):
    ...     chunk = {"output_ids": ids, "meta_info": {"completion_tokens": count}}
    ...     print(reader.read(msgspec.json.encode(chunk)).token_ids)
    [7]
    [8]
    [9]
    """

    def __init__(self) -> None:
        self.seen = 0
        """Tokens of the answer so far."""
        self._cumulative = False

    def __repr__(self) -> str:
        return f"ChunkReader({self.seen} tokens, {'cumulative' if self._cumulative else 'incremental or unknown'})"

    def read(self, payload: bytes) -> EngineOutput:
        """The output in one message.

        :raises EngineRefused: the engine finds fault with the request (its streams say so inside a reply of status 200).
        :raises EngineAborted: the engine gave the request up.
        :raises EngineFailed: the message is malformed, reports a server error, or tokens before it were lost.
        """
        try:
            chunk = _DECODER.decode(payload)
        except msgspec.DecodeError as error:
            raise EngineFailed(f"malformed message: {error}") from error
        if chunk.error is not None:
            raise self._reported(chunk.error)
        if chunk.meta_info is None:
            raise EngineFailed("malformed message: neither meta_info nor error")
        return self._output(chunk.output_ids, chunk.meta_info)

    def read_all(self, payloads: list[bytes]) -> tuple[EngineOutput | None, EngineRefused | EngineFailed | None]:
        """What several messages, arrived at once, add together; and the error that ended them.

        Where messages are cumulative only the last two are looked into: the last says all that was said, unless it is an error.
        """
        merged: EngineOutput | None = None
        for index, payload in enumerate(payloads):
            if self._cumulative and index + 2 < len(payloads):
                continue
            try:
                output = self.read(payload)
            except (EngineRefused, EngineFailed) as error:
                return merged, error
            merged = output if merged is None else output._replace(token_ids=merged.token_ids + output.token_ids)
            if output.finish_reason is not None:
                break
        return merged, None

    def _output(self, ids: list[int], meta: _Meta) -> EngineOutput:
        finish = meta.finish_reason
        if finish is not None and finish.type == "abort":
            raise refused_or_failed(finish.status_code, finish.message or "aborted", EngineAborted)
        new = self._new(ids, meta.completion_tokens, finished=finish is not None)
        self.seen += len(new)
        output = EngineOutput(new, meta.prompt_tokens, meta.cached_tokens, meta.completion_tokens)
        if finish is None:
            return output
        matched = finish.matched[-1] if isinstance(finish.matched, list) and finish.matched else finish.matched
        return output._replace(finish_reason=finish.type, matched=None if isinstance(matched, list) else matched)

    def _new(self, ids: list[int], total: int, *, finished: bool) -> list[int]:
        if self.seen and len(ids) == total:
            self._cumulative = True
        if self._cumulative:
            return ids[self.seen :]
        expected = total - self.seen
        if len(ids) < expected and not finished:
            raise EngineFailed(f"tokens were lost: {expected} are new, {len(ids)} arrived")
        return ids[max(0, len(ids) - expected) :]

    def _reported(self, error: _Error) -> Exception:
        status = error.code if isinstance(error.code, int) else None
        if status is None and not self.seen:
            status = 400  # engines before 0.5.20 name no code, and report only bad requests this way
        return refused_or_failed(status, error.message, EngineFailed)


def refused_or_failed(status: int | None, message: str, otherwise: type[EngineFailed]) -> EngineRefused | EngineFailed:
    """The error that a status stands for: the client's fault, or the worker's."""
    if status in CLIENT_FAULTS:
        return EngineRefused(status, message)
    if _RENDEZVOUS.search(message):
        return RendezvousFailed(message)
    return otherwise(message if status is None else f"status {status}: {message}")
