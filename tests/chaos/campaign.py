"""One fault after another: break the site under load, mend it, and see how long until everything is true again."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from typing import TYPE_CHECKING, Any, NamedTuple

from tests.chaos.clients import Clients
from tests.chaos.faults import FAULTS, Scene, flush
from tests.chaos.truth import LONG_HISTORY_BATCHES, Findings, Truth

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.chaos.clients import Loss
    from tests.chaos.site import Site

LOOK_SECONDS = 0.1
STEADY_LOOKS = 2
"""So many looks in a row must find nothing: the truth of one moment may be chance."""
GIVE_UP_SECONDS = 45.0
"""What is not true by then is not waited for."""


class Strike(NamedTuple):
    """A fault, and what came of it."""

    fault: str
    victim: str
    convergence_seconds: float
    """From its end, or its clients' last answer if that came later, until all was true; 45: never."""
    findings: Findings
    """What was still wrong when its time to settle was over."""
    losses: list[Loss]
    requests: int


class Summary(NamedTuple):
    """All strikes in numbers."""

    faults: int
    divergent: int
    leaked: int
    lost: int

    def line(self) -> str:
        """The last line of a run."""
        return f"chaos: {self.faults} faults, {self.divergent} divergent, {self.leaked} leaked, {self.lost} lost"

    @property
    def ok(self) -> bool:
        """Whether nothing was found."""
        return not (self.divergent or self.leaked or self.lost)


class Campaign:
    """A series of strikes, the same for the same seed as far as processes allow. `kinds`: faults to draw from; None: all.
    `together`: how often two come at once.
    """

    def __init__(
        self,
        site: Site,
        seed: int,
        *,
        settle_seconds: float,
        kinds: list[str] | None = None,
        burst_events: int = 100_000,
        requests: int = 16,
        together: float = 0.25,
        told: Callable[[int, Strike], None] = lambda number, strike: None,
    ) -> None:
        self._site = site
        self._random = random.Random(seed)
        self._settle_seconds = settle_seconds
        self._kinds = kinds or list(FAULTS)
        self._requests = requests
        self._together = together
        self._told = told
        self._truth = Truth(site)
        self._clients = Clients(site, self._random)
        self._scene = Scene(site, self._truth, self._random, burst_events, set())
        self._disturbed: set[str] = set()
        self._deck: list[str] = []
        self._flushed_at: Counter[int] = Counter()
        self._counters: dict[str, float] = {}
        self.strikes: list[Strike] = []

    async def run(self, faults: int | None = None, seconds: float | None = None) -> None:
        """That many faults, or as many as fit in that time."""
        began = time.monotonic()
        try:
            await self._settle()
            while (faults is None or len(self.strikes) < faults) and (
                seconds is None or time.monotonic() - began < seconds
            ):
                await self._shorten_histories()
                strike = await self._strike(*self._draw())
                self.strikes.append(strike)
                self._told(len(self.strikes), strike)
        finally:
            self._counters = await self._truth.counters()
            await self._truth.close()

    def summary(self) -> Summary:
        """The result so far."""
        return Summary(
            faults=len(self.strikes),
            divergent=sum(bool(strike.findings.divergent) for strike in self.strikes),
            leaked=sum(bool(strike.findings.leaked) for strike in self.strikes),
            lost=sum(len(strike.losses) for strike in self.strikes),
        )

    def report(self) -> dict[str, Any]:
        """The result in full, fit for JSON."""
        times = sorted(strike.convergence_seconds for strike in self.strikes)
        return {
            "summary": self.summary()._asdict(),
            "settle_seconds": self._settle_seconds,
            "requests": self._clients.sent,
            "requests_moved_to_another_router": self._clients.moved,
            "convergence_seconds": {
                name: _quantile(times, q) for name, q in (("p50", 0.5), ("p99", 0.99), ("max", 1.0))
            },
            "routers_since_their_last_start": self._counters,
            "by_fault": self._by_fault(),
            "strikes": [
                strike._asdict()
                | {"findings": strike.findings._asdict(), "losses": [loss._asdict() for loss in strike.losses]}
                for strike in self.strikes
            ],
        }

    def _by_fault(self) -> dict[str, dict[str, float]]:
        found: dict[str, list[Strike]] = {}
        for strike in self.strikes:
            found.setdefault(strike.fault, []).append(strike)
        return {
            fault: {
                "strikes": len(strikes),
                "convergence_p50": _quantile(sorted(strike.convergence_seconds for strike in strikes), 0.5),
                "convergence_max": max(strike.convergence_seconds for strike in strikes),
                "divergent": sum(bool(strike.findings.divergent) for strike in strikes),
                "leaked": sum(bool(strike.findings.leaked) for strike in strikes),
                "lost": sum(len(strike.losses) for strike in strikes),
            }
            for fault, strikes in sorted(found.items())
        }

    def _draw(self) -> list[str]:
        """One kind or two; every one comes once before any comes again."""
        kinds: list[str] = []
        while len(kinds) < 1 + (self._random.random() < self._together):
            if not self._deck:
                self._deck = self._random.sample(self._kinds, len(self._kinds))
            if not any(_collide(kind, self._deck[-1]) for kind in kinds):
                kinds.append(self._deck.pop())
            else:
                self._random.shuffle(self._deck)
                if all(_collide(kinds[0], kind) for kind in self._deck):
                    break
        return kinds

    async def _strike(self, *kinds: str) -> Strike:
        known = len(self._clients.losses)
        sent = self._clients.sent
        busy = asyncio.create_task(self._clients.send(self._requests, over_seconds=2.0))
        await asyncio.sleep(self._random.uniform(0.1, 0.6))
        watching = asyncio.create_task(self._watch_the_others())
        victims = await asyncio.gather(*(self._inflict(kind) for kind in kinds))
        await busy
        watching.cancel()
        seconds, findings = await self._settle()
        findings.divergent.extend(sorted(self._disturbed))
        self._scene.taken.clear()
        self._disturbed.clear()
        losses = self._clients.losses[known:]
        return Strike(" and ".join(kinds), ", ".join(victims), seconds, findings, losses, self._clients.sent - sent)

    async def _watch_the_others(self) -> None:
        """While a fault lasts: who is not its victim must not suffer from it."""
        while True:
            self._disturbed |= set(await self._truth.disturbed(self._scene.taken))
            await asyncio.sleep(LOOK_SECONDS)

    async def _inflict(self, kind: str) -> str:
        """Break and mend; whom."""
        async with FAULTS[kind](self._scene) as victim:
            return victim  # the fault lasts within its exit

    async def _settle(self) -> tuple[float, Findings]:
        """How long until nothing is wrong, and what was when the time to settle was over."""
        began, steady, late = time.monotonic(), 0, None
        first_true = 0.0
        while True:
            findings = await self._truth.findings()
            seconds = time.monotonic() - began
            if findings:
                steady = 0
                if seconds > self._settle_seconds and late is None:
                    late = findings
                if seconds > GIVE_UP_SECONDS:
                    return GIVE_UP_SECONDS, findings
            else:
                first_true = seconds if not steady else first_true
                steady += 1
                if steady >= STEADY_LOOKS:
                    return first_true, late or findings
            await asyncio.sleep(LOOK_SECONDS)

    async def _shorten_histories(self) -> None:
        """Flush an engine that has published more than it can tell again, and one whose events were lost for good."""
        for index in range(len(self._site.engines)):
            async with self._site.http.get(f"{self._site.engine_url(index)}/_cache") as reply:
                batches = max(rank["batches"] for rank in (await reply.json(content_type=None))["ranks"])
            if batches < self._flushed_at[index]:  # it was restarted
                self._flushed_at[index] = 0
            if index in self._truth.forgetful or batches - self._flushed_at[index] > LONG_HISTORY_BATCHES:
                await flush(self._site, index)
                self._flushed_at[index] = batches
                self._truth.forgetful.discard(index)


def _collide(one: str, other: str) -> bool:
    """Whether two faults cannot be at once: they are of the one server that all share."""
    return any(shared in one and shared in other for shared in ("nats ", "etcd ")) or one == other


def _quantile(ordered: list[float], q: float) -> float:
    return round(ordered[min(len(ordered) - 1, int(q * len(ordered)))], 2) if ordered else 0.0
