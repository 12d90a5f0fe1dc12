"""A whole router, put together: registries → roster → scheduler ← feed ← bus; HTTP → frontend → dispatcher → engines."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import math
import secrets
import sys
import time
from contextlib import AsyncExitStack
from functools import partial
from typing import TYPE_CHECKING, Any

from events.blocks import load_kernels
from events.bus import BusUnavailable
from events.bus.broker import EmbeddedBroker
from events.bus.log import Limits
from events.bus.nats import NatsBus
from events.history import jetstream_history
from events.membership import RegistryError
from events.membership.discovery import open_registry
from events.membership.static import StaticRegistry
from router.config import EMBEDDED, ConfigError
from router.core import Paths, Scheduler, Target, warm_up
from router.core.policy import create
from router.dispatch.dispatcher import Dispatcher
from router.dispatch.engine import EngineClient, EngineTimeouts
from router.dispatch.fanout import Fanout
from router.dispatch.relay import Relay
from router.dispatch.rooms import Rooms
from router.frontend.admin import Administration
from router.frontend.routes import Frontend
from router.frontend.server import listen
from router.frontend.tokenizer import ModelDirError, ModelTokenizer, Tokenizers
from router.metrics import Metrics
from router.service.accounting import Accounting
from router.service.collector import StateCollector
from router.service.event_collector import EventCollector
from router.service.feed import EventFeed
from router.service.firstlook import FirstLook
from router.service.health import HealthOptions, WorkerHealth
from router.service.holds import HoldOrders
from router.service.parity import Parity
from router.service.quarantine import Quarantine
from router.service.replicas import Replicas
from router.service.roster import Roster
from router.service.snapshots import AdapterSnapshots, HistorySnapshots

if TYPE_CHECKING:
    from collections.abc import Coroutine, Sequence

    from events.membership import Registry
    from router.config import RouterConfig
    from router.service.snapshots import SnapshotSource

logger = logging.getLogger(__name__)

READY_POLL_SECONDS = 0.02


COLLECTED_AT = (20_000, 20, 50)
"""Objects made and not freed, and collections of the younger generation, after which Python looks for cycles."""


def _spare_the_collector() -> None:
    """What is there at the start stays, so no look for cycles need go over it; and requests leave few of them.

    With the defaults a fifth of the router's time went to looking.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*COLLECTED_AT)


def _tokenizer(config: RouterConfig) -> ModelTokenizer | None:
    if config.model_path is None:
        return None
    return ModelTokenizer(config.model_path, cache_bytes=config.token_cache_bytes)


async def _reconnected(feed: EventFeed | None, replicas: Replicas | None) -> None:
    """The bus is (back) there: nobody knows what was missed."""
    if replicas is not None:
        replicas.state_soon()
    if feed is not None:
        await feed.resynchronise()


async def _unless(stopping: asyncio.Event, work: Coroutine[Any, Any, None]) -> None:
    """Do some work, and give it up when it is time to stop."""
    working, waiting = asyncio.create_task(work), asyncio.create_task(stopping.wait())
    try:
        await asyncio.wait({working, waiting}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            await working  # what it raised is not lost
    finally:
        working.cancel()
        waiting.cancel()


class RouterService:
    """The parts of one router process, from its configuration.

    :raises ConfigError: the policy or one of its options is unknown, or the model folder cannot be used.
    """

    def __init__(self, config: RouterConfig) -> None:
        self.config = config
        self.metrics = Metrics()
        self.metrics.process_index.set(config.process_index or 0)
        load_kernels()
        warm_up()  # before the port opens, so that no request waits for a compiler
        try:
            self.tokenizer = _tokenizer(config)
            policy = create(config.policy, **config.policy_options)
            seed = secrets.randbits(32) if config.seed is None else config.seed
            self.scheduler = Scheduler(
                policy,
                config.block_size,
                decode_policy=create(config.decode_policy),
                max_index_blocks=config.max_index_blocks,
                seed=seed,
            )
            logger.info("--seed %d", seed)
            self.paths = Paths(self.scheduler, conditional=config.conditional_disagg)
        except ModelDirError as error:
            raise ConfigError(f"--model-path {error}") from error
        except (ValueError, TypeError) as error:
            raise ConfigError(f"--policy: {error}") from error

    async def run(self, stopping: asyncio.Event) -> None:
        """Serve until `stopping` is set; says `ready {json}` on standard output once the fleet is large enough.

        :raises ConfigError: the HTTP or the broker's port cannot be used.
        """
        async with AsyncExitStack() as parts:
            bus = await self._bus(parts) if self.config.uses_bus else None
            feed = await self._feed(bus, parts) if bus is not None and self.config.kv_events else None
            replicas = await self._replicas(bus, parts) if bus is not None and self.config.shares_bookings else None
            if bus is not None:
                bus.on_connect = partial(_reconnected, feed, replicas)
            engine = self._engine()
            parts.push_async_callback(engine.close)
            registries = self._registries()
            first_look = FirstLook(registries, self.config.discovery_ttl_seconds, self.metrics)
            roster = self._roster(registries, first_look, feed, engine, bus, parts)
            self.metrics.registry.register(
                StateCollector(self.scheduler, self.paths, roster, bus, replicas, engine, self.tokenizer)
            )
            parts.callback(asyncio.create_task(roster.run(), name="roster").cancel)
            _spare_the_collector()
            await _unless(stopping, first_look.listings(self.config.registry_timeout_seconds))
            url = await self._serve(self._frontend(roster, engine, first_look, parts), parts)
            await self._say_ready(roster, url, stopping)
            await stopping.wait()
            logger.info("stopping")

    async def _bus(self, parts: AsyncExitStack) -> NatsBus:
        url = self.config.nats
        if url == EMBEDDED:
            broker = await self._broker(parts)
            url = broker.url
            logger.info("embedded NATS server: start adapters with --nats %s", url)
        try:
            bus = NatsBus(url, name="warmpath-router", wait_for_server=False)
        except ValueError as error:
            raise ConfigError(f"--nats: {error}") from error
        return await parts.enter_async_context(bus)

    async def _broker(self, parts: AsyncExitStack) -> EmbeddedBroker:
        port = self.config.nats_port
        try:
            return await parts.enter_async_context(EmbeddedBroker(port or None, store_dir=self.config.nats_store_dir))
        except BusUnavailable as error:
            raise ConfigError(f"--nats embedded, --nats-port {port}: {error}") from error

    async def _feed(self, bus: NatsBus, parts: AsyncExitStack) -> EventFeed:
        feed = EventFeed(
            bus,
            self.scheduler,
            namespace=self.config.namespace,
            metrics=self.metrics,
            clock=time.monotonic,
            sources=self._snapshot_sources(bus),
        )
        await feed.open()
        self.metrics.registry.register(EventCollector(feed))
        accounting = Accounting(self.scheduler, feed, self.metrics, time.monotonic)
        self.metrics.registry.register(accounting)
        parts.callback(asyncio.create_task(accounting.run(), name="accounting").cancel)
        parts.push_async_callback(feed.close)
        return feed

    def _snapshot_sources(self, bus: NatsBus) -> list[SnapshotSource]:
        config = self.config
        sources: list[SnapshotSource] = [AdapterSnapshots(bus, config.namespace)]
        if config.durable_events:
            limits = Limits(config.durable_bytes, config.durable_age_seconds, config.durable_replicas)
            sources.insert(0, HistorySnapshots(jetstream_history(bus, config.namespace, limits)))
        return sources

    async def _replicas(self, bus: NatsBus, parts: AsyncExitStack) -> Replicas:
        replicas = Replicas(bus, self.scheduler, namespace=self.config.namespace, clock=time.monotonic)
        await replicas.open()
        parts.push_async_callback(replicas.close)
        return replicas

    def _roster(
        self,
        registries: Sequence[Registry],
        first_look: FirstLook,
        feed: EventFeed | None,
        engine: EngineClient,
        bus: NatsBus | None,
        parts: AsyncExitStack,
    ) -> Roster:
        config = self.config
        stall_seconds = math.inf if config.text_mode else config.stall_timeout_seconds  # bytes passed on show no tokens

        async def answers(target: Target) -> bool:
            try:
                return await engine.is_healthy(roster.endpoint(target))
            except KeyError:  # it has left
                return False

        def stalled(target: Target) -> None:
            """Requests there go on elsewhere, if they can; other ranks' share the connections, and may be well."""
            if roster.ranks(target) == 1 and roster.has_alternative(target):
                logger.warning("%s: %d requests go on elsewhere", target, engine.drop(roster.endpoint(target)))

        health = WorkerHealth(
            self.scheduler,
            self.metrics,
            ask=answers,
            on_stall=stalled,
            clock=time.monotonic,
            options=HealthOptions(stall_seconds, config.ejection_seconds, config.longest_ejection_seconds),
        )
        parts.callback(health.close)
        parts.callback(asyncio.create_task(health.run(), name="worker health").cancel)
        loop = asyncio.get_running_loop()
        apart = Quarantine[tuple[Target, Target]](lambda pair, together: self.paths.set_together(*pair, together), loop)
        parity = Parity(config.block_size, self.metrics, self._tokens_of, refuse=config.parity_check)
        roster = Roster(
            *(registries, self.scheduler, feed, health, apart),
            block_size=config.block_size,
            parity=parity,
            tell_others=HoldOrders(bus, config.namespace).send if bus is not None else None,
            first_look=first_look,
        )
        return roster

    def _tokens_of(self, _: str, text: str) -> list[int] | None:
        """Our own tokens of a text: there is one tokenizer for all models."""
        return None if self.tokenizer is None else self.tokenizer.plain(text).tolist()

    def _registries(self) -> Sequence[Registry]:
        registries: list[Registry] = []
        if self.config.discovery != "memory":
            registries.append(self._registry())
        if self.config.workers:
            registries.append(StaticRegistry(self.config.workers))
        return registries

    def _registry(self) -> Registry:
        try:
            return open_registry(self.config)
        except RegistryError as error:
            raise ConfigError(str(error)) from error

    async def _serve(self, frontend: Frontend, parts: AsyncExitStack) -> str:
        """Open the port; the URL it is reached at from here."""
        application = frontend.application(self.config.max_body_bytes)
        host, port, index = self.config.http_host, self.config.http_port, self.config.process_index
        own_port = None if index is None else self.config.process_port and self.config.process_port + index
        try:
            return await listen(application, host, port, parts, shared=index is not None, own_port=own_port)
        except OSError as error:
            raise ConfigError(f"--http-port {port}: {error.strerror or error}") from error

    def _engine(self) -> EngineClient:
        return EngineClient(
            EngineTimeouts(
                connect_seconds=self.config.connect_timeout_seconds,
                first_token_seconds=self.config.first_token_timeout_seconds,
                idle_seconds=self.config.idle_timeout_seconds,
                transfer_seconds=self.config.transfer_timeout_seconds,
            )
        )

    def _frontend(self, roster: Roster, engine: EngineClient, first_look: FirstLook, parts: AsyncExitStack) -> Frontend:
        carried: dict[str, Any] = {
            "block_size": self.config.block_size,
            "policy": self.config.policy,
            "migration_limit": self.config.migration_limit,
            "paths": self.paths,
            "rooms": Rooms(),
            "on_failure": roster.failed,
            "on_apart": roster.failed_together,
            "clock": time.monotonic,
        }
        dispatcher = Dispatcher(self.scheduler, engine, roster, self.metrics, **carried)
        parts.push_async_callback(dispatcher.close)
        relay = Relay(self.scheduler, engine, roster, self.metrics, **carried)
        parts.push_async_callback(relay.close)
        tokenizer = self.tokenizer
        tokenizer_of = Tokenizers(tokenizer, roster.chat_template).of if tokenizer is not None else None
        fanout = Fanout(self.config.engine_admin_key)
        administration = Administration(roster, self.metrics, self.config.admin_token, fanout)
        return Frontend(
            *(roster, dispatcher, tokenizer_of, self.metrics, relay),
            text_mode=self.config.text_mode,
            administration=administration,
            admit=first_look.somebody,
        )

    async def _say_ready(self, roster: Roster, url: str, stopping: asyncio.Event) -> None:
        """Once `--min-workers` are in step, so that what waits for the line finds a router that knows its fleet."""
        while roster.ready_workers() < self.config.min_workers and not stopping.is_set():  # noqa: ASYNC110 - many events
            await asyncio.sleep(READY_POLL_SECONDS)
        logger.info("serving on %s with policy %s", url, self.config.policy)
        sys.stdout.write(f"ready {json.dumps({'http': url})}\n")
        sys.stdout.flush()
