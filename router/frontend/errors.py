"""The failures that a client can see, in OpenAI's shape: {"error": {"message", "type", "param", "code"}}."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from router.core import NoTarget
from router.dispatch.errors import EngineError, EngineRefused, EngineTimeout

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

RETRY_AFTER_SECONDS = 1


class ApiError(Exception):
    """A failure with all that a client is told of it."""

    def __init__(
        self,
        status: int,
        message: str,
        type: str = "invalid_request_error",  # noqa: A002  the name that OpenAI gave it
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.type = type
        self.code = code
        self.param = param
        self.headers = dict(headers or {})

    def __repr__(self) -> str:
        return f"ApiError({self.status}, {self.message!r}, {self.type!r}, code={self.code!r}, param={self.param!r})"

    def body(self) -> bytes:
        """The error as JSON."""
        fields = {"message": self.message, "type": self.type, "param": self.param, "code": self.code}
        return msgspec.json.encode({"error": fields})


def invalid(message: str, param: str | None = None) -> ApiError:
    """The request is wrong."""
    return ApiError(400, message, param=param)


def unsupported(param: str, reason: str) -> ApiError:
    """The request asks for what this router cannot do: better refused than ignored."""
    return ApiError(400, f"{param} is not supported: {reason}", code="unsupported_parameter", param=param)


def model_not_found(model: str, known: Iterable[str]) -> ApiError:
    """No worker serves the model."""
    names = ", ".join(known)
    return ApiError(
        404, f"the model {model!r} does not exist; served here: {names}", code="model_not_found", param="model"
    )


def context_length_exceeded(prompt_tokens: int, context_tokens: int, param: str) -> ApiError:
    """The prompt is too long for the model."""
    message = f"the prompt has {prompt_tokens} tokens; the longest that this model takes has {context_tokens}"
    return ApiError(400, message, code="context_length_exceeded", param=param)


def no_worker(reason: str) -> ApiError:
    """Nobody is there to take the request; it may be worth another try."""
    headers = {"Retry-After": str(RETRY_AFTER_SECONDS)}
    return ApiError(
        503, f"no worker can take this request: {reason}", "service_unavailable", "no_worker", headers=headers
    )


def no_target(target: str) -> ApiError:
    """There is no such rank of a worker."""
    return ApiError(404, f"there is no {target}; GET /workers lists all", code="target_not_found", param="worker")


def internal() -> ApiError:
    """A fault of ours; what it was is in the log, under the request's id."""
    return ApiError(500, "internal error", "internal_error", "internal_error")


def from_dispatch(error: EngineError | NoTarget) -> ApiError:
    """What a client is told of a failed dispatch: an engine's refusal in its own words, nothing of the inside otherwise."""
    match error:
        case NoTarget():
            return no_worker(error.reason)
        case EngineRefused():
            return ApiError(error.status, error.message, code="refused_by_engine")
        case EngineTimeout():
            return ApiError(504, "the engine did not answer in time", "upstream_error", "upstream_timeout")
        case _:
            return ApiError(502, f"the engine failed: {error.kind}", "upstream_error", "upstream_error")
