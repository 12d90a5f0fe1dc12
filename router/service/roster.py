"""Who is there, as the router sees it: registries' changes → the scheduler's targets and the feed's streams."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from events.membership import Joined, Left, Listed, RegistryError, Role
from router.core import Part, Target
from router.dispatch.errors import EngineAborted, EngineBusy, EngineUnreachable
from router.frontend.template import template_fault
from router.service.firstlook import FirstLook
from router.service.loads import compared
from router.service.parity import Parity
from router.service.served import longest_prompts, say_differences, served_models

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from events.membership import Registry, WorkerCard
    from router.core import Scheduler
    from router.core.load import Reported
    from router.core.states import TargetState
    from router.dispatch.errors import EngineError
    from router.frontend.models import ServedModel
    from router.service.feed import EventFeed
    from router.service.quarantine import Quarantine

logger = logging.getLogger(__name__)

RETRY_SECONDS = 1.0
PARTS = {Role.AGGREGATED: Part.WHOLE, Role.PREFILL: Part.PREFILL, Role.DECODE: Part.DECODE}


def _named(reported: Reported | None) -> dict[str, Any] | None:
    """An engine's own load report with its fields' names, and when it came (seconds of the router's clock)."""
    if reported is None:
        return None
    load = reported.load
    return {name: getattr(load, name) for name in load.__struct_fields__} | {"received_at": reported.received_at}


async def _tell_nobody(card: WorkerCard) -> None:
    """Where there is no bus, and so no other router."""


def targets_of(card: WorkerCard) -> list[Target]:
    """The routing targets that a worker offers: one a rank."""
    return [Target(card.worker_id, rank) for rank in range(card.ranks)]


class Ward(Protocol):
    """Keeps targets out of new work while they are not fit for it."""

    def failed(self, target: Target, error: Exception) -> None:
        """A request failed there through no fault of its own."""

    def forget(self, target: Target) -> None:
        """The target is gone or new."""

    def reason(self, target: Target) -> str | None:
        """Why it is out; None: it is not."""


class Roster:
    """The workers that a router may use, and the ones that it refuses, with the reason.

    With `feed` None, no cache events are consumed, and every worker's cache is predicted. `quarantine` keeps targets out of new
    work, `apart` pairs of a prefill and a decode target. `first_look` is told what is known of who is there.
    """

    def __init__(
        self,
        registries: Sequence[Registry],
        scheduler: Scheduler,
        feed: EventFeed | None,
        quarantine: Ward,
        apart: Quarantine[tuple[Target, Target]],
        *,
        block_size: int,
        parity: Parity | None = None,
        tell_others: Callable[[WorkerCard], Awaitable[None]] | None = None,
        first_look: FirstLook | None = None,
    ) -> None:
        self._registries = registries
        self._scheduler = scheduler
        self._feed = feed
        self._quarantine = quarantine
        self._apart = apart
        self._parity = parity or Parity(block_size)
        self._tell_others = tell_others or _tell_nobody
        self._first_look = first_look or FirstLook(registries, grace_seconds=0.0)
        self._cards: dict[str, WorkerCard] = {}
        self._refused: dict[str, str] = {}
        self._served: dict[str, ServedModel] = {}
        self._longest_prompts: dict[str, int] = {}

    async def run(self) -> None:
        """Follow all registries until cancelled; one that cannot be read is tried again, and the others go on."""
        async with asyncio.TaskGroup() as group:
            for registry in self._registries:
                group.create_task(self._follow(registry))

    async def _follow(self, registry: Registry) -> None:
        while True:
            try:
                async for change in registry.watch():
                    if isinstance(change, Listed):
                        self._first_look.read(registry)
                    else:
                        self._changed(change)
            except RegistryError as error:
                logger.warning("%s; trying again every %g s", error, RETRY_SECONDS)
            await asyncio.sleep(RETRY_SECONDS)

    def _changed(self, change: Joined | Left) -> None:
        match change:
            case Joined(card) if self._is_the_same_worker(card):
                self._cards[card.worker_id] = card
                self._apply_hold(card)
            case Joined(card):
                self._leave(card.worker_id)
                self._join(card)
            case Left(worker_id):
                self._leave(worker_id)
        self._describe_models()

    def _describe_models(self) -> None:
        before, self._served = self._served, served_models(self._cards.values())
        self._longest_prompts = longest_prompts(self._cards.values())
        say_differences(before, self._served)
        if self._longest_prompts:
            self._first_look.met()

    def _is_the_same_worker(self, card: WorkerCard) -> bool:
        """Whether a card says the same as before, but for what may change while a worker lives: what is known of it stays."""
        known = self._cards.get(card.worker_id)
        return known is not None and msgspec.structs.replace(known, adapters=card.adapters, held=card.held) == card

    def _join(self, card: WorkerCard) -> None:
        if reason := self._objection(card):
            self._refused[card.worker_id] = reason
            logger.error("worker %s refused: %s", card.worker_id, reason)
            return
        self._cards[card.worker_id] = card
        for target in targets_of(card):
            self._add(target, card)
        self._apply_hold(card)
        logger.info(
            "%s worker %s joined: %s, %d rank(s), %s", card.role, card.worker_id, card.model, card.ranks, card.endpoint
        )

    def _objection(self, card: WorkerCard) -> str | None:
        if any(other.model == card.model and other.embedding != card.embedding for other in self._cards.values()):
            kinds = ("generates", "makes embeddings")
            return f"it {kinds[card.embedding]}, and other workers of {card.model} do not: give it another --model-name"
        if card.role is Role.PREFILL and not (card.bootstrap_host and card.bootstrap_port):
            return (
                "it is a prefill worker, and its card does not say where decode workers ask for its KV (bootstrap port)"
            )
        if card.chat_template is not None and (fault := template_fault(card.chat_template)):
            return f"its chat template, {fault}"
        consumes = self._feed is not None and card.kv_events
        return self._parity.objection(card) if consumes else None

    def _add(self, target: Target, card: WorkerCard) -> None:
        self._scheduler.add_target(
            target,
            capacity_tokens=card.capacity_tokens,
            model=card.model,
            page_size=card.page_size,
            exact=False,
            max_running_requests=card.max_running_requests,
            part=PARTS[card.role],
            caches=card.prefix_cache,
        )
        if self._feed is not None:
            self._feed.follow(target, card.epoch, events=card.kv_events)

    def _leave(self, worker_id: str) -> None:
        self._refused.pop(worker_id, None)
        card = self._cards.pop(worker_id, None)
        if card is None:
            return
        for pair in self._apart.known():
            if any(target.worker_id == worker_id for target in pair):
                self._apart.forget(pair)
        for target in targets_of(card):
            if self._feed is not None:
                self._feed.drop(target)
            self._quarantine.forget(target)
            self._scheduler.remove_target(target)
        logger.info("worker %s left", worker_id)

    def failed(self, target: Target, error: EngineError) -> None:
        """A request failed on a target through the worker's fault: it gets no new ones for a while.

        Without a connection that goes for all ranks behind it. A request that the engine gave up by itself says nothing, nor does
        one for which this router had no connection left.
        """
        if isinstance(error, EngineAborted | EngineBusy):
            return
        card = self._cards.get(target.worker_id)
        unreachable = card is not None and isinstance(error, EngineUnreachable)
        for suspect in targets_of(card) if card and unreachable else [target]:
            self._quarantine.failed(suspect, error)

    def failed_together(self, prefill: Target, decode: Target, error: EngineError) -> None:
        """A prefill and a decode worker did not come together: they are kept apart for a while.

        One of them that is kept apart from two others already is the one to blame, and gets no requests at all.
        """
        self._apart.failed((prefill, decode), error)
        out = self._apart.out()
        for suspect, side in ((prefill, 0), (decode, 1)):
            if sum(pair[side] == suspect for pair in out) > 1:
                self._quarantine.failed(suspect, error)

    def bootstrap(self, target: Target) -> tuple[str, int]:
        """Where decode workers ask a prefill worker for KV.

        :raises KeyError: the worker is gone.
        """
        card = self._cards[target.worker_id]
        assert card.bootstrap_host is not None
        assert card.bootstrap_port is not None
        return card.bootstrap_host, card.bootstrap_port

    # ---- what an administrator does

    def cards(self) -> dict[str, WorkerCard]:
        """The workers that may be used, by id."""
        return dict(self._cards)

    async def hold(self, worker_id: str, reason: str) -> None:
        """Give a worker no new requests, until every reason for that has ended. Unknown ones are ignored."""
        if worker_id in self._cards:
            await self._set_held(worker_id, {*self._cards[worker_id].held, reason})

    async def release(self, worker_id: str, reason: str) -> None:
        """One reason to give a worker no requests has ended."""
        if worker_id in self._cards:
            await self._set_held(worker_id, {*self._cards[worker_id].held} - {reason})

    async def _set_held(self, worker_id: str, reasons: set[str]) -> None:
        """Here at once, elsewhere by the worker's own card."""
        card = msgspec.structs.replace(self._cards[worker_id], held=tuple(sorted(reasons)))
        if card.held != self._cards[worker_id].held:
            self._cards[worker_id] = card
            self._apply_hold(card)
            logger.info("worker %s: %s", worker_id, ", ".join(card.held) or "gets requests again")
            await self._tell_others(card)

    def cache_emptied(self, worker_id: str) -> None:
        """A worker holds nothing any more; one whose events are followed says so itself, and in its order."""
        card = self._cards.get(worker_id)
        if card is not None and (self._feed is None or not card.kv_events):
            for target in targets_of(card):
                self._scheduler.clear(target)

    def set_adapters(self, worker_id: str, adapters: tuple[str, ...]) -> None:
        """A worker has these LoRA adapters now; its own card will say the same."""
        card = self._cards.get(worker_id)
        if card is not None:
            self._cards[worker_id] = msgspec.structs.replace(card, adapters=adapters)
            self._describe_models()

    def without_adapter(self, model: str, adapter: str) -> frozenset[Target]:
        """Targets of a model that have not loaded an adapter. O(workers)."""
        cards = (card for card in self._cards.values() if card.model == model and adapter not in card.adapters)
        return frozenset(target for card in cards for target in targets_of(card))

    def _apply_hold(self, card: WorkerCard) -> None:
        for target in targets_of(card):
            self._scheduler.hold(target, held=bool(card.held))

    # ---- what requests need to know

    def endpoint(self, target: Target) -> str:
        """Base URL of a target's server.

        :raises KeyError: the worker is gone.
        """
        return self._cards[target.worker_id].endpoint

    def ranks(self, target: Target) -> int:
        """How many ranks the target's worker has.

        :raises KeyError: the worker is gone.
        """
        return self._cards[target.worker_id].ranks

    def ready_workers(self) -> int:
        """Workers that may get requests and, if their events are followed, whose ranks are all in step."""
        return sum(all(self._in_step(target) for target in targets_of(card)) for card in self._cards.values())

    def has_alternative(self, target: Target) -> bool:
        """Whether some other worker can take what a target has. O(targets · requests)."""
        states = {state.target: state for state in self._scheduler.targets()}
        mine = states.get(target)
        return mine is not None and any(
            state.available
            and state.model == mine.model
            and state.part is mine.part
            and other.worker_id != target.worker_id
            for other, state in states.items()
        )

    def pairs_apart(self) -> tuple[int, int]:
        """Pairs kept apart now, and times that one was."""
        return len(self._apart.out()), self._apart.count

    def unread_registries(self) -> int:
        """Registries that have never said who is there."""
        return self._first_look.unread

    def refused_workers(self) -> int:
        """Workers that are there but cannot be used."""
        return len(self._refused)

    def served(self) -> dict[str, ServedModel]:
        """What is known of each model, by its name. O(1)."""
        return self._served

    def chat_template(self, model: str) -> str | None:
        """The template that a model's workers were started with; None: the model's own. O(1)."""
        served = self._served.get(model)
        return None if served is None else served.chat_template

    def models(self) -> list[str]:
        """Names that clients can ask for: what a worker serves whole, or a prefill and a decode worker together. O(models)."""
        return list(self._longest_prompts)

    def context_tokens(self, model: str) -> int | None:
        """Longest prompt that a model's workers take; None: nobody serves it. O(1)."""
        return self._longest_prompts.get(model)

    def blocks(self, target: Target) -> dict[str, list[int]] | None:
        """The sequence hashes of all blocks that a target holds, per tier. None: it is not there. O(prefixes in the index)."""
        held = self._scheduler.held(target)
        return None if held is None else {tier.name.lower(): hashes.tolist() for tier, hashes in held.items()}

    def workers(self) -> list[dict[str, Any]]:
        """What the router believes of each worker and each of its ranks, for `GET /workers`."""
        states = {state.target: state for state in self._scheduler.targets()}
        known = [self._describe(card, states) for card in self._cards.values()]
        refused = [{"worker_id": worker_id, "refused": reason} for worker_id, reason in self._refused.items()]
        return known + refused

    def _in_step(self, target: Target) -> bool:
        events = self._feed.statistics(target) if self._feed is not None else None
        return events is None or events.live

    def _describe(self, card: WorkerCard, states: dict[Target, TargetState]) -> dict[str, Any]:
        return {
            "worker_id": card.worker_id,
            "model": card.model,
            "endpoint": card.endpoint,
            "epoch": card.epoch,
            "role": card.role,
            "prefix_cache": card.prefix_cache,
            "bootstrap": [card.bootstrap_host, card.bootstrap_port] if card.bootstrap_port else None,
            "page_size": card.page_size,
            "context_tokens": card.context_tokens,
            "engine_version": card.engine_version,
            "embedding": card.embedding,
            "adapters": card.adapters,
            "held": card.held,
            "kv_events": card.kv_events and self._feed is not None,
            "ranks": [self._describe_rank(target, states[target]) for target in targets_of(card)],
        }

    def _describe_rank(self, target: Target, state: TargetState) -> dict[str, Any]:
        events = self._feed.statistics(target) if self._feed is not None else None
        return {
            **state._asdict(),
            "target": str(target),
            "reported": _named(state.reported),
            "load": compared(state, time.monotonic()),
            "quarantined": self._quarantine.reason(target),
            "apart_from": [
                str(other) for pair in self._apart.out() if target in pair for other in pair if other != target
            ],
            "events": events.shown() if events else None,
        }
