"""Around every handler: a request id, a count, and every failure in OpenAI's shape."""

from __future__ import annotations

import asyncio
import logging
import re
import uuid
from typing import TYPE_CHECKING

from aiohttp import web

from router.frontend.errors import ApiError, internal

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from aiohttp.typedefs import Middleware

    from router.metrics import Metrics

logger = logging.getLogger(__name__)

REQUEST_ID_HEADER = "X-Request-Id"
ACCEPTABLE_ID = re.compile(r"[\x21-\x7e]{1,128}")
CLIENT_LEFT = 499  # as nginx counts it; nobody is there to see it
REQUEST_ID: web.RequestKey[str] = web.RequestKey("request_id", str)


def outermost(metrics: Metrics) -> Middleware:
    """The middleware that everything else runs in."""

    @web.middleware
    async def answer(
        request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        request[REQUEST_ID] = _request_id(request)
        status = CLIENT_LEFT
        try:
            response = await _answer(request, handler)
            status = response.status
        finally:
            metrics.requests.labels(_route(request), str(status)).inc()
        return response

    return answer


def error_response(error: ApiError, request_id: str) -> web.Response:
    """An error as a whole reply."""
    headers = {**error.headers, REQUEST_ID_HEADER: request_id}
    return web.Response(body=error.body(), status=error.status, headers=headers, content_type="application/json")


async def _answer(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    request_id = request[REQUEST_ID]
    try:
        response = await handler(request)
    except ApiError as error:
        return error_response(error, request_id)
    except web.HTTPException as error:
        return error_response(_of_http(error, request), request_id)
    except (asyncio.CancelledError, ConnectionResetError):
        raise  # the client left
    except Exception:
        logger.exception("request %s: %s %s failed", request_id, request.method, request.path)
        return error_response(internal(), request_id)
    if not response.prepared:
        response.headers[REQUEST_ID_HEADER] = request_id
    return response


def _of_http(error: web.HTTPException, request: web.Request) -> ApiError:
    """The server's own objections: no such route, wrong method, body too large."""
    match error:
        case web.HTTPNotFound():
            return ApiError(404, f"no such route: {request.method} {request.path}", code="unknown_route")
        case web.HTTPMethodNotAllowed():
            allowed = ", ".join(sorted(error.allowed_methods))
            message = f"{request.path} does not take {request.method}, but {allowed}"
            return ApiError(405, message, code="method_not_allowed", headers={"Allow": allowed})
        case web.HTTPRequestEntityTooLarge():
            return ApiError(413, f"the body is too large: {error.text}", code="body_too_large")
        case _:
            return ApiError(error.status, error.reason)


def _request_id(request: web.Request) -> str:
    """The client's own id where it is one line of visible ASCII; else a new one."""
    given = request.headers.get(REQUEST_ID_HEADER, "")
    return given if ACCEPTABLE_ID.fullmatch(given) else uuid.uuid4().hex


def _route(request: web.Request) -> str:
    """The route's pattern, not the path: it is a metric's label."""
    resource = request.match_info.route.resource
    return resource.canonical if resource is not None else "unknown"
