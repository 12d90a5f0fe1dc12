"""A router that starts beside an etcd that is away, or has lost its data: no request is refused that could be served."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, NamedTuple

import aiohttp
import msgspec

from events.membership.etcd.access import EtcdAccess
from events.membership.etcd.registry import EtcdRegistry
from events.membership.server_info import ServerInfo
from launch.etcd import EtcdServer
from launch.process import Process
from launch.stack import MODEL_NAME, NAMESPACE, free_port
from sim import tinymodel
from sim.worker import FakeWorker, WorkerConfig
from tests.live.test_stack import complete

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from events.membership import WorkerCard

TTL_SECONDS = 30.0


class Site(NamedTuple):
    """An etcd that is not running yet, a worker's card, a router to be started."""

    etcd: EtcdServer
    registry: EtcdRegistry
    card: WorkerCard
    router: Process
    url: str
    log: Path
    session: aiohttp.ClientSession

    def said(self) -> str:
        return self.log.read_text() if self.log.exists() else ""


@asynccontextmanager
async def site(folder: Path, *options: str) -> AsyncIterator[Site]:
    etcd, port, log = EtcdServer(folder / "etcd"), free_port(), folder / "router.log"
    registry = EtcdRegistry(EtcdAccess(urls=(etcd.url,)), NAMESPACE, TTL_SECONDS)
    place = ["--discovery", "etcd", "--etcd", etcd.url, "--discovery-ttl", str(TTL_SECONDS), "--namespace", NAMESPACE]
    serving = ["--http-host", "127.0.0.1", "--http-port", str(port), "--model-path", str(tinymodel.PATH)]
    router = Process("router", [*serving, "--no-kv-events", *place, *options], log)
    config = WorkerConfig(model_path=tinymodel.PATH, served_model_name=MODEL_NAME)
    async with FakeWorker(config) as worker, aiohttp.ClientSession() as session:
        async with session.get(f"{worker.url}/server_info") as reply:
            card = msgspec.json.decode(await reply.read(), type=ServerInfo).card(worker.url, epoch=1)
        try:
            yield Site(etcd, registry, card, router, f"http://127.0.0.1:{port}", log, session)
        finally:
            await router.stop()
            await registry.close()
            await etcd.kill()


async def is_open(url: str) -> bool:
    host, port = url.removeprefix("http://").split(":")
    try:
        _, writer = await asyncio.open_connection(host, int(port))
    except OSError:
        return False
    writer.close()
    return True


async def test_the_port_stays_closed_until_the_registry_has_been_read(tmp_path: Path, eventually) -> None:
    async with site(tmp_path) as s:
        await s.etcd.start()
        await s.registry.register(s.card)
        await s.etcd.kill()
        await s.router.start()
        await eventually(lambda: "trying again" in s.said(), 30)
        assert not await is_open(s.url)
        await s.etcd.start()
        await s.router.ready()
        assert (await complete(s.session, s.url, "anybody?"))[0] == 200


async def test_a_request_waits_where_the_registry_has_lost_its_data(tmp_path: Path, eventually) -> None:
    async with site(tmp_path) as s:
        await s.etcd.start()
        await (await s.router.start()).ready()
        request = asyncio.create_task(complete(s.session, s.url, "anybody?"))
        held = "warmpath_held_requests_total 1.0"

        async def waits() -> bool:
            async with s.session.get(f"{s.url}/metrics") as reply:
                return held in await reply.text()

        async with asyncio.timeout(20):
            while not await waits():
                await asyncio.sleep(0.02)
        assert not request.done()
        await s.registry.register(s.card)
        assert (await request)[0] == 200


async def test_a_registry_that_never_answers_is_not_waited_for_for_ever(tmp_path: Path) -> None:
    async with site(tmp_path, "--registry-timeout", "0.2") as s:
        await (await s.router.start()).ready()
        assert "1 registries could not be read in 0.2 s" in s.said()
        status, body, _ = await complete(s.session, s.url, "anybody?")
        assert (status, body["error"]["code"]) == (503, "no_worker")
        async with s.session.get(f"{s.url}/metrics") as reply:
            assert "warmpath_unread_registries 1.0" in await reply.text()
