"""A small HTTP/1.1 server for the way from the clients: asyncio, httptools for parsing, and no more than that way needs.

==============  ==========================================================================
`server`        listens, keeps account of connections, stops gracefully
`connection`    one connection: requests in order, each answered by a task of its own
`request`       what a client asks, its body complete
`response`      what it gets: whole, or a stream
`routes`        method and path → handler
`headers`       header fields, in and out
`limits`        how large, how many, how long
`errors`        why a request has no handler
==============  ==========================================================================

A client that leaves cancels its handler. Left out on purpose: TLS, compression, uploads read in pieces, upgrades, HTTP/2: what
stands in front of a router does them better.
"""

from router.frontend.http.errors import MethodNotAllowed, NoRoute, Refused
from router.frontend.http.headers import Headers
from router.frontend.http.limits import Limits
from router.frontend.http.request import Request
from router.frontend.http.response import Response, StreamResponse
from router.frontend.http.routes import Handler, Route, Routes, delete, get, post, put
from router.frontend.http.server import Application, Server

__all__ = [
    "Application",
    "Handler",
    "Headers",
    "Limits",
    "MethodNotAllowed",
    "NoRoute",
    "Refused",
    "Request",
    "Response",
    "Route",
    "Routes",
    "Server",
    "StreamResponse",
    "delete",
    "get",
    "post",
    "put",
]
