"""The product's own scheduler, once per router, fed as its service feeds it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from events.messages import WorkerLoad
from router.core import Pair, Scheduler, Target
from router.core.paths import Paths
from router.core.request import Part
from sim.replay.sharing import SharingScheduler

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    import numpy as np
    from numpy.typing import NDArray

    from router.core import Placement, RoutingRequest
    from router.core.policy import Policy
    from sim.fleet import Changes
    from sim.replay.settings import Settings

MODEL = "model"


class Routers:
    """Every router hears all events and load reports. Requests come to them in turn."""

    def __init__(self, make_policy: Callable[[], Policy], settings: Settings) -> None:
        self._settings = settings
        self.targets = [Target(f"w{number}") for number in range(len(settings.parts))]
        self._numbers = {target: number for number, target in enumerate(self.targets)}
        self._epochs = [0] * len(settings.parts)
        self._schedulers = _schedulers(make_policy, settings)
        self._paths = [Paths(scheduler) for scheduler in self._schedulers]
        for number in range(len(settings.parts)):
            self.add(number)

    def __getitem__(self, request: int) -> Scheduler:
        """The router that a request comes to."""
        return self._schedulers[request % len(self._schedulers)]

    def place(self, number: int, request: RoutingRequest, now: float) -> tuple[int, Placement]:
        """Decide; returns the worker's number too.

        :raises NoTarget: there is no worker.
        """
        placement = self[number].place(request, now)
        return self._numbers[placement.target], placement

    def place_pair(self, number: int, request: RoutingRequest, now: float) -> tuple[int, int, Pair]:
        """Decide who prefills and who decodes; returns the workers' numbers too.

        :raises NoTarget: there is no pair.
        """
        pair = self.paths(number).place(request, now)
        assert isinstance(pair, Pair)  # nobody here does all
        return self._numbers[pair.prefill.target], self._numbers[pair.decode.target], pair

    def paths(self, request: int) -> Paths:
        """What learns how long pairs take, at the router that a request comes to."""
        return self._paths[request % len(self._paths)]

    def add(self, worker: int) -> None:
        """A worker is there, with nothing in its cache."""
        engine, part = self._settings.engine, self._settings.parts[worker]
        for scheduler in self._schedulers:
            scheduler.add_target(
                self.targets[worker],
                capacity_tokens=engine.capacity_tokens,
                model=MODEL,
                page_size=engine.page_size,
                exact=self._settings.kv_events and part is not Part.DECODE,
                max_running_requests=engine.running_limit,
                part=part,
                caches=part is not Part.DECODE,
            )

    def remove(self, worker: int) -> None:
        """A worker is gone."""
        self._epochs[worker] += 1
        for scheduler in self._schedulers:
            scheduler.remove_target(self.targets[worker])

    def tell_changes(self, changes: Iterable[Changes]) -> None:
        """Cache events arrive."""
        for change in changes:
            target = self.targets[change.engine]
            for scheduler in self._schedulers:
                (scheduler.store if change.stored else scheduler.remove)(target, change.hashes)

    def tell_loads(self, loads: Iterable[tuple[int, NDArray[np.void]]], now: float) -> None:
        """Load reports arrive."""
        engine = self._settings.engine
        for worker, row in loads:
            (_, _, running, waiting, used, waiting_uncached, _, prefilled, busy_seconds) = row.item()
            load = WorkerLoad(
                worker_id=self.targets[worker].worker_id,
                rank=0,
                epoch=self._epochs[worker],
                running_requests=running,
                waiting_requests=waiting,
                used_tokens=used,
                capacity_tokens=engine.capacity_tokens,
                waiting_uncached_tokens=waiting_uncached,
                max_running_requests=engine.running_limit,
                total_prefill_uncached_tokens=prefilled,
                total_prefill_busy_seconds=busy_seconds,
            )
            for scheduler in self._schedulers:
                scheduler.report_load(self.targets[worker], load, now)


def _schedulers(make_policy: Callable[[], Policy], settings: Settings) -> list[Scheduler]:
    """One per router, with seeds of their own."""
    lag_seconds, seeds = settings.booking_lag_seconds, range(settings.seed, settings.seed + settings.routers)
    if lag_seconds is None:
        return [Scheduler(make_policy(), settings.block_size, seed=seed) for seed in seeds]
    sharing = [
        SharingScheduler(make_policy(), settings.block_size, seed=seed, name=f"r{seed}", lag_seconds=lag_seconds)
        for seed in seeds
    ]
    for rank, scheduler in enumerate(sharing):
        scheduler.others = [other for other in sharing if other is not scheduler]
        scheduler.share(rank, len(sharing), lag_seconds)
    return [*sharing]
