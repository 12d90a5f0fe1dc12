"""Around every handler: a request id, a count, and every failure in OpenAI's shape."""

from __future__ import annotations

import asyncio
import logging
import random
import re
from typing import TYPE_CHECKING

from router.frontend import http as web
from router.frontend.errors import ApiError, internal

if TYPE_CHECKING:
    from router.metrics import Metrics

logger = logging.getLogger(__name__)

REQUEST_ID_HEADER = "X-Request-Id"
ACCEPTABLE_ID = re.compile(r"[\x21-\x7e]{1,128}")
CLIENT_LEFT = 499  # as nginx counts it; nobody is there to see it


class Outermost:
    """What the server asks for answers: the routes, and what surrounds them all."""

    def __init__(self, routes: web.Routes, metrics: Metrics, limits: web.Limits | None = None) -> None:
        self.limits = limits or web.Limits()
        self._routes = routes
        self._metrics = metrics

    def __repr__(self) -> str:
        return f"Outermost({self._routes!r})"

    async def answer(self, request: web.Request) -> web.Response | web.StreamResponse:
        """A handler's reply, or its failure's."""
        request.id = _request_id(request)
        status = CLIENT_LEFT
        try:
            response = await self._answer(request)
            status = response.status
        finally:
            self._metrics.replied(request.route, status)
        return response

    def refuse(self, refused: web.Refused) -> web.Response:
        """What the server says by itself."""
        self._metrics.replied("unknown", refused.status)
        return error_response(_of_server(refused), _new_id())

    async def _answer(self, request: web.Request) -> web.Response | web.StreamResponse:
        try:
            response = await self._routes.handler(request)(request)
        except ApiError as error:
            return error_response(error, request.id)
        except web.Refused as refused:
            return error_response(_of_server(refused), request.id)
        except (asyncio.CancelledError, ConnectionResetError):
            raise  # the client left
        except Exception:
            logger.exception("request %s: %s %s failed", request.id, request.method, request.path)
            return error_response(internal(), request.id)
        if not response.prepared:
            response.headers[REQUEST_ID_HEADER] = request.id
        return response


def error_response(error: ApiError, request_id: str) -> web.Response:
    """An error as a whole reply."""
    headers = {**error.headers, REQUEST_ID_HEADER: request_id}
    return web.Response(body=error.body(), status=error.status, headers=headers, content_type="application/json")


def _of_server(refused: web.Refused) -> ApiError:
    """The server's own objections: no such route, wrong method, body too large, no HTTP."""
    match refused:
        case web.NoRoute():
            return ApiError(404, refused.message, code="unknown_route")
        case web.MethodNotAllowed():
            return ApiError(405, refused.message, code="method_not_allowed", headers={"Allow": refused.allowed})
        case web.Refused(status=413):
            return ApiError(413, refused.message, code="body_too_large")
        case _:
            return ApiError(refused.status, refused.message)


def _request_id(request: web.Request) -> str:
    """The client's own id where it is one line of visible ASCII; else a new one."""
    given = request.headers.get(REQUEST_ID_HEADER)
    return given if given is not None and ACCEPTABLE_ID.fullmatch(given) else _new_id()


def _new_id() -> str:
    """Unlike all others, but no secret."""
    return f"{random.getrandbits(128):032x}"
