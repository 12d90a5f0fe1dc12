"""An application on a port."""

from __future__ import annotations

from typing import TYPE_CHECKING

from router.frontend import http as web

if TYPE_CHECKING:
    from contextlib import AsyncExitStack

    from router.frontend.middleware import Outermost

SHUTDOWN_SECONDS = 5.0
"""How long running requests may take to end once the server stops; then they are cancelled, and aborted at their engines."""

ANY_HOST = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}  # noqa: S104  where a server on all addresses is reached


async def listen(
    application: Outermost,
    host: str,
    port: int,
    parts: AsyncExitStack,
    *,
    shared: bool = False,
    own_port: int | None = None,
) -> str:
    """Serve until `parts` is closed; the base URL it is reached at from this machine. Port 0: a free one.

    `shared`: other processes may serve the same port, and the system shares its connections out. With an `own_port` (0: a free
    one), it is served too, and the URL is that one's.

    A client that leaves cancels its handler, and with it the request at its engine.

    :raises OSError: the address cannot be used.
    """
    server = web.Server(application, application.limits)
    parts.push_async_callback(server.close, SHUTDOWN_SECONDS)
    bound = await server.listen(host, port, shared=shared)
    if own_port is not None:
        bound = await server.listen(host, own_port)
    address = ANY_HOST.get(host, host)
    return f"http://[{address}]:{bound}" if ":" in address else f"http://{address}:{bound}"
