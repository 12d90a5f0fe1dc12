"""An application on a port."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aiohttp import web

if TYPE_CHECKING:
    from contextlib import AsyncExitStack

SHUTDOWN_SECONDS = 5.0
"""How long running requests may take to end once the server stops; then they are cancelled, and aborted at their engines."""

ANY_HOST = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}  # noqa: S104  where a server on all addresses is reached


async def listen(
    application: web.Application,
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
    runner = web.AppRunner(application, handler_cancellation=True, access_log=None, shutdown_timeout=SHUTDOWN_SECONDS)
    parts.push_async_callback(runner.cleanup)
    await runner.setup()
    await web.TCPSite(runner, host, port, reuse_port=shared or None).start()
    if own_port is not None:
        await web.TCPSite(runner, host, own_port).start()
    address = ANY_HOST.get(host, host)
    bound = runner.addresses[-1][1]
    return f"http://[{address}]:{bound}" if ":" in address else f"http://{address}:{bound}"
