from __future__ import annotations

import socket
from contextlib import AsyncExitStack

import aiohttp
import pytest

from router.frontend import http as web
from router.frontend.middleware import Outermost
from router.frontend.server import listen
from router.metrics import Metrics


def nothing() -> Outermost:
    return Outermost(web.Routes(), Metrics())


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
async def test_the_url_is_where_it_listens(host: str) -> None:
    async with AsyncExitStack() as parts, aiohttp.ClientSession() as session:
        url = await listen(nothing(), host, 0, parts)
        assert url.startswith("http://127.0.0.1:")
        async with session.get(url) as response:
            assert response.status == 404


async def test_a_port_in_use_is_an_error() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        async with AsyncExitStack() as parts:
            with pytest.raises(OSError, match="in use"):
                await listen(nothing(), "127.0.0.1", taken.getsockname()[1], parts)
