"""A router's frontend over real servers, known by their `/server_info`: no processes, no events."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

import aiohttp
import msgspec

from events.membership import Joined
from events.membership.server_info import ServerInfo
from router.core import Paths, Scheduler, Target
from router.core.policy import create
from router.dispatch.dispatcher import Dispatcher
from router.dispatch.engine import EngineClient
from router.dispatch.relay import Relay
from router.frontend.admin import Administration
from router.frontend.routes import Frontend
from router.frontend.server import listen
from router.frontend.tokenizer import ModelTokenizer, Tokenizers
from router.metrics import Metrics
from router.service.quarantine import Quarantine
from router.service.roster import Roster
from sim import tinymodel

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

BLOCK_SIZE = 16
TOKENIZER = ModelTokenizer(tinymodel.PATH)


class Routed:
    """A running router."""

    def __init__(self, url: str, roster: Roster, metrics: Metrics, session: aiohttp.ClientSession) -> None:
        self.url = url
        self.roster = roster
        self.metrics = metrics
        self.session = session

    async def join(self, worker_url: str, **stated: Any) -> None:
        """Have a server among its workers, with `stated` fields of its card."""
        async with self.session.get(f"{worker_url}/server_info") as reply:
            info = msgspec.json.decode(await reply.read(), type=ServerInfo)
        card = info.card(worker_url, epoch=1)
        self.roster._changed(Joined(msgspec.structs.replace(card, **stated)))

    async def post(self, path: str, body: Any, **headers: str) -> tuple[int, Any, Any]:
        async with self.session.post(self.url + path, json=body, headers=headers) as reply:
            return reply.status, await reply.json(content_type=None), reply.headers

    async def get(self, path: str, **headers: str) -> tuple[int, Any]:
        async with self.session.get(self.url + path, headers=headers) as reply:
            return reply.status, await reply.json(content_type=None)


@contextlib.asynccontextmanager
async def routed(*worker_urls: str, admin_token: str | None = None, **stated: Any) -> AsyncIterator[Routed]:
    """A router over servers, each with `stated` fields of its card."""
    metrics, scheduler, engine = Metrics(), Scheduler(create("least-loaded"), BLOCK_SIZE), EngineClient()
    loop, paths = asyncio.get_running_loop(), Paths(scheduler)
    quarantine = Quarantine[Target](scheduler.set_available, loop)
    apart = Quarantine[tuple[Target, Target]](lambda pair, together: paths.set_together(*pair, together), loop)
    roster = Roster([], scheduler, None, quarantine, apart, block_size=BLOCK_SIZE)
    carried: dict[str, Any] = {"block_size": BLOCK_SIZE, "on_failure": roster.failed, "paths": paths}
    dispatcher = Dispatcher(scheduler, engine, roster, metrics, **carried)
    relay = Relay(scheduler, engine, roster, metrics, **carried)
    tokenizers = Tokenizers(TOKENIZER, roster.chat_template)
    administration = Administration(roster, metrics, admin_token)
    served = (roster, dispatcher, tokenizers.of, metrics, relay)
    frontend = Frontend(*served, text_mode=False, administration=administration)
    async with contextlib.AsyncExitStack() as parts, aiohttp.ClientSession() as session:
        parts.push_async_callback(engine.close)
        parts.push_async_callback(dispatcher.close)
        url = await listen(frontend.application(), "127.0.0.1", 0, parts)
        router = Routed(url, roster, metrics, session)
        for worker_url in worker_urls:
            await router.join(worker_url, **stated)
        yield router
