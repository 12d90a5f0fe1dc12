from __future__ import annotations

import socket
from contextlib import AsyncExitStack

import aiohttp
import pytest
from aiohttp import web

from router.frontend.server import listen


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
async def test_the_url_is_where_it_listens(host: str) -> None:
    async with AsyncExitStack() as parts, aiohttp.ClientSession() as session:
        url = await listen(web.Application(), host, 0, parts)
        assert url.startswith("http://127.0.0.1:")
        async with session.get(url) as response:
            assert response.status == 404


async def test_a_port_in_use_is_an_error() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        async with AsyncExitStack() as parts:
            with pytest.raises(OSError, match="in use"):
                await listen(web.Application(), "127.0.0.1", taken.getsockname()[1], parts)
