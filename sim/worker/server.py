"""The worker's life: sockets, ranks, HTTP; up and down."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import zmq
import zmq.asyncio
from aiohttp import web

from sim.engine import DecodeEngine, Engine, FrontDoor, PrefillEngine
from sim.worker.admin_routes import AdminRoutes
from sim.worker.config import WorkerConfig
from sim.worker.control_routes import ControlRoutes
from sim.worker.embedding_routes import EmbeddingRoutes
from sim.worker.generation_routes import GenerationRoutes
from sim.worker.metrics import Metrics
from sim.worker.publisher import (
    EVENT_HIGH_WATER_MARK,
    LOAD_HIGH_WATER_MARK,
    EventPublisher,
    LoadPublisher,
    bind_consecutive,
)
from sim.worker.rank import Rank
from sim.worker.rendezvous import DecodeSide, PrefillSide
from sim.worker.service import Service
from sim.worker.text import TextModel

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence
    from typing import Any, Self

    from sim.engine import EngineConfig

logger = logging.getLogger(__name__)

MAX_BODY_BYTES = 256 * 2**20
DRAIN_SECONDS = 30.0
SILENT_VOCABULARY = np.arange(1000, 2000, dtype=np.uint32)
"""Output ids where no tokenizer is loaded."""


class Ports(NamedTuple):
    """Where the worker listens; of rank 0, the next ranks follow. 0: off."""

    http: int
    kv_events: int
    replay: int
    load: int
    bootstrap: int = 0
    """Where decode workers ask a prefill worker for KV."""


class FakeWorker:
    """A worker that nobody can tell from an SGLang by its protocols, for tests and demonstrations.

    ``async with FakeWorker(WorkerConfig(page_size=1)) as worker: … worker.url …``
    """

    def __init__(self, config: WorkerConfig | None = None, *, die: Callable[[], None] | None = None) -> None:
        """A worker, not started yet; `die` is what the fault of that name does (default: close all sockets at once).

        :raises ValueError: the model folder cannot be used.
        """
        self.config = config or WorkerConfig()
        self._text_model = None if self.config.skip_tokenizer_init else TextModel(self.config.model_path)
        self._die = die or self._vanish
        self._context = zmq.Context()
        self._replay_context = zmq.asyncio.Context()  # of its own: each waits for its own sockets at its end
        self._tasks: list[asyncio.Task[None]] = []
        self._runner: web.AppRunner | None = None
        self._bootstrap: web.AppRunner | None = None
        self._side: PrefillSide | DecodeSide | None = None
        self._ports = Ports(0, 0, 0, 0)
        self.ranks: list[Rank] = []

    @property
    def url(self) -> str:
        """Where HTTP is served."""
        return f"http://{self.config.host}:{self._ports.http}"

    @property
    def ports(self) -> Ports:
        """Where the worker listens."""
        return self._ports

    async def start(self) -> None:
        """Bind all ports and begin to serve.

        :raises OSError: a wanted port is in use.
        """
        try:
            await self._start()
        except BaseException:
            await self.stop()
            raise

    async def _start(self) -> None:
        config = self.config
        events, replays, loads = self._bind_events(), self._bind_replays(), self._bind_loads()
        text_model = self._text_model
        vocabulary = text_model.vocabulary if text_model else SILENT_VOCABULARY
        engine_config = config.engine(vocabulary, text_model.eos_token if text_model else 2)
        door = FrontDoor(config.timing)
        for number in range(config.dp_size):
            event_publisher = load_publisher = None
            if events:
                event_publisher = EventPublisher(
                    events[number], config.dialect, number, config.page_size, config.topic.encode()
                )
            if replays and event_publisher is not None:
                self._spawn(event_publisher.serve_replay(replays[number]))
            if loads:
                load_publisher = LoadPublisher(loads[number], number)
            rank = Rank(number, self._engine(engine_config), door, event_publisher, load_publisher)
            self.ranks.append(rank)
            self._spawn(rank.run())
            self._spawn(rank.heartbeat())
        self._side = await self._meet()
        await self._serve()

    def _engine(self, config: EngineConfig) -> Engine:
        match self.config.disaggregation_mode:
            case "prefill":
                return PrefillEngine(config)
            case "decode":
                return DecodeEngine(config, caches=self.config.caches_prefixes)
            case _:
                return Engine(config)

    async def _meet(self) -> PrefillSide | DecodeSide | None:
        """What its part needs to meet the other one."""
        match self.config.disaggregation_mode:
            case "prefill":
                prefill = PrefillSide(self.config, self.config.transfer)
                for rank in self.ranks:
                    rank.on_prefilled = prefill.prefilled
                return prefill
            case "decode":
                decode = DecodeSide(self.config)
                for rank in self.ranks:
                    rank.on_allocated = decode.allocated
                return decode
            case _:
                return None

    async def _serve(self) -> None:
        application = web.Application(client_max_size=MAX_BODY_BYTES)
        metrics = Metrics(self.config.model_name, self.ranks)
        service = Service(self.config, self.ranks, self._text_model, metrics, self._die, self._side)
        self._runner = web.AppRunner(application, handler_cancellation=True, access_log=None, shutdown_timeout=0.1)
        listening = _listen(self.config.host, self.config.port)
        self._ports = self._ports._replace(http=listening.getsockname()[1])
        if isinstance(self._side, PrefillSide):
            await self._serve_bootstrap(self._side)
        application.add_routes(GenerationRoutes(service).routes())
        application.add_routes(EmbeddingRoutes(service).routes())
        application.add_routes(ControlRoutes(service, self._die).routes())
        application.add_routes(AdminRoutes(service, self._ports).routes())
        await self._runner.setup()
        await web.SockSite(self._runner, listening).start()

    async def _serve_bootstrap(self, side: PrefillSide) -> None:
        application = side.application(self._ports.http)
        self._bootstrap = web.AppRunner(application, handler_cancellation=True, access_log=None, shutdown_timeout=0.1)
        listening = _listen(self.config.host, self.config.disaggregation_bootstrap_port or 0)
        self._ports = self._ports._replace(bootstrap=listening.getsockname()[1])
        await self._bootstrap.setup()
        await web.SockSite(self._bootstrap, listening).start()

    async def drain(self) -> None:
        """Wait until no other worker reads this one's KV any more, for a while at most."""
        if isinstance(self._side, PrefillSide):
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._side.drain(), DRAIN_SECONDS)

    async def stop(self) -> None:
        """Close everything; the ports are free after."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks.clear()
        if isinstance(self._side, DecodeSide):
            await self._side.close()
        for runner in (self._bootstrap, self._runner):
            if runner is not None:
                await runner.cleanup()
        self._bootstrap = self._runner = None
        self._replay_context.destroy(linger=0)
        self._context.destroy(linger=0)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    def _vanish(self) -> None:
        """Close every socket at once, as a killed process would."""
        logger.info("worker on port %d dies on demand", self._ports.http)
        for task in self._tasks:
            task.cancel()
        if isinstance(self._side, DecodeSide):
            self._spawn(self._side.close())
        for runner in (self._runner, self._bootstrap):
            if runner is None or runner.server is None:
                continue
            for site in list(runner.sites):
                self._spawn(site.stop())
            for connection in runner.server.connections:
                if connection.transport is not None:
                    connection.transport.abort()
        self._replay_context.destroy(linger=0)
        self._context.destroy(linger=0)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        task.add_done_callback(_report_failure)
        self._tasks.append(task)

    def _bind_events(self) -> list[zmq.Socket[bytes]]:
        sockets = self._sockets(self.config.kv_events_port, zmq.PUB, EVENT_HIGH_WATER_MARK)
        self._ports = self._ports._replace(kv_events=self._bind(sockets, self.config.kv_events_port))
        return sockets

    def _bind_replays(self) -> list[zmq.asyncio.Socket]:
        wanted = 0 if self.config.kv_events_port == 0 else self.config.replay_port
        if wanted == 0:
            return []
        sockets = [self._replay_context.socket(zmq.ROUTER) for _ in range(self.config.dp_size)]
        for router in sockets:
            router.set_hwm(0)  # a replay is complete however slow its reader
        self._ports = self._ports._replace(replay=self._bind(sockets, wanted))
        return sockets

    def _bind_loads(self) -> list[zmq.Socket[bytes]]:
        wanted = self.config.load_port if self.config.dialect.load_socket else 0
        sockets = self._sockets(wanted, zmq.PUB, LOAD_HIGH_WATER_MARK)
        self._ports = self._ports._replace(load=self._bind(sockets, wanted))
        return sockets

    def _sockets(self, port: int | None, kind: int, high_water_mark: int) -> list[zmq.Socket[bytes]]:
        if port == 0:
            return []
        sockets = [self._context.socket(kind) for _ in range(self.config.dp_size)]
        for publisher in sockets:
            publisher.set_hwm(high_water_mark)
        return sockets

    def _bind(self, sockets: Sequence[zmq.Socket[Any]], port: int | None) -> int:
        return bind_consecutive(sockets, self.config.host, port) if sockets else 0

    def __repr__(self) -> str:
        return f"<FakeWorker {self.config.model_name} at {self.url}: {self.ranks!r}>"


def _listen(host: str, port: int) -> socket.socket:
    """A bound TCP socket.

    :raises OSError: the port is in use.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
    except OSError as error:
        listening.close()
        raise OSError(error.errno, f"port {port} of {host}: {error.strerror}") from error
    return listening


def _report_failure(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and task.exception() is not None:
        logger.error("a part of the worker failed: %s", task.get_coro(), exc_info=task.exception())
