"""The adapter: an engine's life, from its first answer to its last, and then the next one.

    wait for the engine to serve → subscribe to its ranks → take their history → serve snapshots → register
    → relay until the engine is gone → unregister → wait for it again

Each life has an epoch of its own. Withdrawing comes before anything else stops, so that no router sends to what nobody follows.
"""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, NamedTuple

import aiohttp
import msgspec
import zmq.asyncio

from events import messages, subjects
from events.membership import RegistryError
from events.messages import HoldOrder

from .card import describe
from .checkpoints import RankCheckpoints
from .engine import Engine, EngineGone, EngineUnreachable
from .load import LoadError, LoadSubscription, from_loads
from .probe import ParityProbe
from .readiness import check_serving
from .relay import RankRelay, RelayStatistics
from .subscription import RankSubscription, SubscriptionStatistics

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterable

    from events.bus import Bus
    from events.history import History
    from events.membership import Registry, WorkerCard

    from .card import Chosen, Description
    from .load import LoadReport

logger = logging.getLogger(__name__)


class Pace(NamedTuple):
    """How often the adapter looks."""

    wait_seconds: float = 1.0
    """Between questions to an engine that is not there yet."""
    watch_seconds: float = 1.0
    """Between questions whether it still is."""
    missed_watches: int = 3
    """This many unanswered ones in a row, and it is gone."""
    load_poll_seconds: float = 1.0
    """Between questions for its load, where it does not publish it."""
    adapters_poll_seconds: float = 2.0
    """Between questions for its LoRA adapters, where it can load some."""
    replay_timeout_seconds: float = 5.0
    mark_seconds: float = 2.0
    """Between two marks of where a rank's events stand."""
    quiet_seconds: float = 1.0
    """After so long without an event, the engine's replay socket is asked whether there was one."""


class RankStatistics(NamedTuple):
    """One rank's streams."""

    relay: RelayStatistics
    subscription: SubscriptionStatistics


class AdapterStatistics(NamedTuple):
    """The adapter's state."""

    card: WorkerCard | None
    """None: not registered."""
    lives: int
    """How often the engine was found (again)."""
    loads: int
    """Load reports published."""
    failed_loads: int
    """Questions for the load that got no usable answer."""
    ranks: list[RankStatistics]


class Adapter:
    """Relays one engine's events and load to the bus, and keeps its card in the registry while it lives."""

    def __init__(
        self,
        chosen: Chosen,
        bus: Bus,
        registry: Registry,
        *,
        namespace: str = "default",
        pace: Pace | None = None,
        history: History | None = None,
        parity_probe: bool = True,
        announce: Callable[[WorkerCard], None] = lambda card: None,
    ) -> None:
        self._chosen = chosen
        self._bus = bus
        self._registry = registry
        self._namespace = namespace
        self._pace = pace or Pace()
        self._history = history
        self._parity_probe = parity_probe
        self._announce = announce
        self._context = zmq.asyncio.Context()
        self._epoch = 0
        self._card: WorkerCard | None = None
        self._withdrawn = False
        self._ranks: list[tuple[RankRelay, RankSubscription]] = []
        self._lives = self._loads = self._failed_loads = 0

    def __repr__(self) -> str:
        state = f"registered, epoch {self._epoch}" if self._card else "waiting"
        return f"<Adapter {self._chosen.worker_id} of {self._chosen.url}: {state}>"

    async def run(self) -> None:
        """Attach to the engine whenever it is there, until cancelled; then unregister and stop.

        :raises CardError: the server says something of itself that routers cannot use.
        :raises RegistryError: the registry does not take its card.
        """
        try:
            async with aiohttp.ClientSession() as session:
                engine = Engine(self._chosen.url, session)
                while True:
                    description = await self._found(engine)
                    try:
                        await self._attend(engine, description)
                    except* EngineGone as gone:
                        logger.warning("worker %s left: %s", self._chosen.worker_id, gone.exceptions[0])
                    self._ranks = []
        finally:
            self._context.destroy(linger=0)

    async def withdraw(self) -> bool:
        """Unregister for good, while all else goes on: routers send nothing new, and follow what still runs.

        True: it was registered.
        """
        self._withdrawn = True
        registered = self._card is not None
        if self._card is not None:
            logger.info("worker %s withdraws", self._card.worker_id)
            await self._unregister(self._card)
        return registered

    def statistics(self) -> AdapterStatistics:
        """The adapter's state, and counts since it started; those of ranks since this life of the engine began."""
        ranks = [RankStatistics(relay.statistics(), subscription.statistics()) for relay, subscription in self._ranks]
        return AdapterStatistics(self._card, self._lives, self._loads, self._failed_loads, ranks)

    async def _found(self, engine: Engine) -> Description:
        """What the engine says of itself, as soon as all its ranks serve."""
        said = ""
        while True:
            try:
                info = await engine.server_info()
                self._epoch = max(self._epoch + 1, time.time_ns() // 1_000_000)
                description = describe(info, self._chosen, self._epoch)
                await check_serving(engine, description.card)
                break
            except EngineUnreachable as error:
                if str(error) != said:
                    said = str(error)
                    logger.info("waiting for the engine: %s", said)
                await asyncio.sleep(self._pace.wait_seconds)
        self._lives += 1
        return description

    async def _attend(self, engine: Engine, description: Description) -> None:
        """One life of the engine, from subscribing to its end.

        :raises ExceptionGroup: with the `EngineGone` that ended it.
        """
        card = description.card
        async with AsyncExitStack() as streams:
            await self._open(streams, description)
            if self._parity_probe:
                card = await ParityProbe(engine, card).proven(self._ranks)
            orders = await self._bus.serve(subjects.hold(self._namespace, card.worker_id), self._hold)
            streams.push_async_callback(orders.cancel)
            await self._register(card)
            async with asyncio.TaskGroup() as tasks:
                for relay, subscription in self._ranks:
                    tasks.create_task(self._relay(relay, subscription))
                    tasks.create_task(self._mark(relay, subscription))
                    if self._history is not None:
                        tasks.create_task(RankCheckpoints(relay, self._history).run())
                for work in self._load_work(engine, description):
                    tasks.create_task(work)
                if description.lora:
                    tasks.create_task(self._follow_adapters(engine))
                try:
                    await self._watch(engine)
                finally:
                    await self._unregister(card)

    async def _open(self, streams: AsyncExitStack, description: Description) -> None:
        """Follow every rank's events; a card without events has nothing to follow."""
        if description.events is None:
            logger.warning(
                "worker %s: no cache events can be used: %s. Routers will predict its cache",
                description.card.worker_id,
                description.no_events,
            )
            return
        opened = (self._open_rank(streams, description, rank) for rank in range(description.card.ranks))
        self._ranks = await asyncio.gather(*opened)

    async def _open_rank(
        self, streams: AsyncExitStack, description: Description, rank: int
    ) -> tuple[RankRelay, RankSubscription]:
        """A rank's subscription and relay: its history taken, its snapshots served."""
        events, replay = description.events, description.replay
        assert events is not None
        subscription = RankSubscription(
            self._context,
            events.endpoint(rank),
            replay.endpoint(rank) if replay else None,
            events.topic,
            replay_timeout_seconds=self._pace.replay_timeout_seconds,
            quiet_seconds=self._pace.quiet_seconds,
        )
        await streams.enter_async_context(subscription)
        relay = RankRelay(self._bus, self._namespace, description.card, rank)
        await relay.restore(await subscription.history())
        await relay.open()
        streams.push_async_callback(relay.close)
        return relay, subscription

    async def _relay(self, relay: RankRelay, subscription: RankSubscription) -> None:
        while True:
            await relay.relay(await subscription.receive())
            if relay.doubted:
                await relay.rebuild(await subscription.whole())

    async def _mark(self, relay: RankRelay, subscription: RankSubscription) -> None:
        while True:
            await relay.mark(subscription.statistics())
            await asyncio.sleep(self._pace.mark_seconds)

    async def _watch(self, engine: Engine) -> None:
        missed = 0
        while True:
            await asyncio.sleep(self._pace.watch_seconds)
            try:
                await engine.check_alive()
                missed = 0
            except EngineUnreachable as error:
                missed += 1
                if missed >= self._pace.missed_watches:
                    raise EngineGone(f"{missed} times in a row: {error}") from error

    # the card

    async def _register(self, card: WorkerCard) -> None:
        if self._withdrawn:
            return
        await self._registry.register(card)
        self._card = card
        logger.info("worker %s registered: %s", card.worker_id, card)
        self._announce(card)

    async def _unregister(self, card: WorkerCard) -> None:
        if self._card is None:
            return
        self._card = None
        try:
            await self._registry.unregister(card.worker_id)
        except RegistryError as error:
            logger.warning("worker %s cannot be withdrawn and stays until its card expires: %s", card.worker_id, error)

    async def _follow_adapters(self, engine: Engine) -> None:
        """Keep the card's LoRA adapters what they are; who loads and unloads them asks the engine alone."""
        while True:
            await asyncio.sleep(self._pace.adapters_poll_seconds)
            try:
                adapters = await engine.adapters()
            except EngineUnreachable:
                continue  # the watch finds out
            if self._card is not None and adapters != self._card.adapters:
                await self._say(self._card, adapters=adapters)
                logger.info("worker %s has adapters %s", self._chosen.worker_id, ", ".join(adapters) or "no more")

    async def _hold(self, data: bytes) -> Iterable[bytes]:
        """Have the card say what an administrator ordered; until the end of the engine's life."""
        order = messages.decode(data)
        if not isinstance(order, HoldOrder) or self._card is None:
            return []
        await self._say(self._card, held=tuple(order.reasons))
        logger.info("worker %s: %s", order.worker_id, ", ".join(order.reasons) or "gets requests again")
        return [data]

    async def _say(self, card: WorkerCard, **changed: object) -> None:
        """The same card, but for what changed."""
        self._card = msgspec.structs.replace(card, **changed)
        await self._registry.register(self._card)

    # load

    def _load_work(self, engine: Engine, description: Description) -> list[Coroutine[None, None, None]]:
        """What publishes the load: a stream a rank, or one poll for all."""
        card, load = description.card, description.load
        if load is None:
            return [self._poll_load(engine, card)]
        return [self._stream_load(card, rank, load.endpoint(rank)) for rank in range(card.ranks)]

    async def _stream_load(self, card: WorkerCard, rank: int, endpoint: str) -> None:
        async with LoadSubscription(self._context, endpoint) as subscription:
            while True:
                await self._publish_load(card, rank, await subscription.newest())

    async def _poll_load(self, engine: Engine, card: WorkerCard) -> None:
        while True:
            try:
                reports = from_loads(await engine.loads())
            except (EngineUnreachable, LoadError) as error:
                if not self._failed_loads:
                    logger.warning("worker %s: its load is not known: %s", card.worker_id, error)
                self._failed_loads += 1
            else:
                for report in reports:
                    await self._publish_load(card, report.dp_rank, report)
            await asyncio.sleep(self._pace.load_poll_seconds)

    async def _publish_load(self, card: WorkerCard, rank: int, report: LoadReport) -> None:
        self._loads += 1
        load = report.as_worker_load(card, rank, time.time())
        await self._bus.publish(subjects.load(self._namespace, card.worker_id, rank), messages.encode(load))
