"""A small HTTP/1.1 client for the way to the engines: asyncio, httptools for parsing, and no more than that way needs.

==============  ==========================================================================
`client`        requests: a connection from the pool, one more try if it proved stale
`pool`          the connections to one origin: bounded, the newest idle one first
`connection`    one connection, one exchange at a time
`response`      the answer: status, headers, and its body as it comes
`origin`        scheme, host and port
`deadline`      a timer that is cheap to move
`errors`        what can go wrong on the wire
==============  ==========================================================================

Left out on purpose: redirects, cookies, proxies, compression, pipelining, upgrades.
"""

from router.dispatch.http.client import ClientStatistics, HttpClient
from router.dispatch.http.errors import (
    ConnectFailed,
    ConnectionLost,
    HttpError,
    MalformedResponse,
    PoolFull,
    TimedOut,
)
from router.dispatch.http.response import Response

__all__ = [
    "ClientStatistics",
    "ConnectFailed",
    "ConnectionLost",
    "HttpClient",
    "HttpError",
    "MalformedResponse",
    "PoolFull",
    "Response",
    "TimedOut",
]
