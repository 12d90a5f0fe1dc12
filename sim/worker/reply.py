"""Replies in SGLang's shape: JSON, errors, event streams."""

from __future__ import annotations

from typing import Any

import msgspec
from aiohttp import web

DONE = b"data: [DONE]\n\n"


def json_reply(content: Any, status: int = 200) -> web.Response:
    """A JSON body."""
    return web.Response(body=msgspec.json.encode(content), status=status, content_type="application/json")


def native_error(message: str, status: int = 400) -> web.Response:
    """An error of SGLang's own routes."""
    return json_reply({"error": {"message": message}}, status)


def openai_error(message: str, status: int = 400) -> web.Response:
    """An error of the OpenAI routes."""
    kind = "BadRequestError" if status == 400 else "InternalServerError"
    return json_reply({"object": "error", "message": message, "type": kind, "param": None, "code": status}, status)


def event(content: Any) -> bytes:
    """One server-sent event."""
    return b"data: " + msgspec.json.encode(content) + b"\n\n"


async def read_body(request: web.Request) -> dict[str, Any]:
    """The request's JSON object.

    :raises ValueError: it is something else.
    """
    try:
        body = msgspec.json.decode(await request.read())
    except msgspec.DecodeError as error:
        raise ValueError(f"body: {error}") from error
    if not isinstance(body, dict):
        raise ValueError("body: a JSON object is needed")  # noqa: TRY004 - a bad request, not a bug
    return body


async def open_stream(request: web.Request) -> web.StreamResponse:
    """Begin an event stream."""
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream; charset=utf-8"})
    await response.prepare(request)
    return response
