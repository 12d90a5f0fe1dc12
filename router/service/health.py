"""Which workers are fit for new work, judged by what requests show of them.

    well ──failed, or stalled──▶ out ──after a while, and if /health answers──▶ on probation ──a first token──▶ well
                                  ▲                                                │
                                  └────────────── failed again, or stalled ────────┘

*Failed*: a request came to grief there through the worker's fault. *Stalled*: requests are in flight there, and none of them has
shown anything, no first token, no further one, no end, for longer than even their prefill explains; the process may be alive, and
its port open. The sides of a pair wait for each other: their silence is judged for each request, by its timeouts. A worker on
probation gets one request at a time. Every return to `out` doubles the time until the next attempt, and only a quiet while after it
forgives: a worker that comes and goes stays away ever longer.

`/health` costs an engine a generation, so only workers that are out are asked, once before each probation; no client's request is
spent on one that does not even answer that.
"""

from __future__ import annotations

import asyncio
import enum
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from router.core import Scheduler, Target
    from router.core.load import Booking
    from router.metrics import Metrics

logger = logging.getLogger(__name__)

SWEEP_SECONDS = 1.0
PREFILL_FACTOR = 3.0
"""A target may be silent for so many times what the prefills booked there should take."""

COLD_FACTOR = 6.0
"""A target that has never answered may be silent so much longer: engines compile kernels at their first requests."""


class HealthOptions(NamedTuple):
    """When a worker is out, and for how long, seconds."""

    stall_seconds: float = 20.0
    """Silence that nothing explains."""
    first_seconds: float = 1.0
    longest_seconds: float = 60.0
    forgiven_after_seconds: float = 60.0
    """Of being well."""


class Phase(enum.StrEnum):
    """Where a target is in the diagram above."""

    WELL = "well"
    OUT = "out"
    PROBATION = "on probation"


@dataclass(slots=True, eq=False)
class _Patient:
    """What is known of a target."""

    phase: Phase = Phase.WELL
    in_flight: int = 0
    """Requests of ours from whom a first token is, or was, to be expected."""
    progress: int = 0
    progressed_at: float = 0.0
    proven: bool = False
    """It has answered a request of ours before."""
    reason: str = ""
    stalled: bool = False
    out_seconds: float = 0.0
    """Of the last time; 0: never."""
    well_since: float = 0.0
    probe: str | None = None
    """The one request it has on probation."""
    returning: asyncio.Task[None] | None = None


class WorkerHealth:
    """Takes targets out of scheduling and back in. It is an observer of the scheduler's bookings.

    :param ask: whether a target's server answers its health check; never raises.
    :param on_stall: called when a target is found stalled, to save the requests there.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        metrics: Metrics,
        *,
        ask: Callable[[Target], Awaitable[bool]],
        on_stall: Callable[[Target], None] = lambda target: None,
        clock: Callable[[], float],
        options: HealthOptions | None = None,
    ) -> None:
        self._scheduler = scheduler
        self._metrics = metrics
        self._ask = ask
        self._on_stall = on_stall
        self._clock = clock
        self._options = options or HealthOptions()
        self._patients: dict[Target, _Patient] = {}
        self._where: dict[str, Target] = {}  # requests in flight
        self._unwatched: set[str] = set()  # those of them whose silence says nothing
        scheduler.observers.append(self)

    def __repr__(self) -> str:
        return f"<WorkerHealth, {self.out()} of {len(self._patients)} targets not well>"

    async def run(self) -> None:
        """Look for stalled targets, until cancelled."""
        pause = min(SWEEP_SECONDS, self._options.stall_seconds / 4)
        while True:
            await asyncio.sleep(pause)
            self.sweep()

    def close(self) -> None:
        """Bring nobody back any more. Idempotent."""
        for target in list(self._patients):
            self.forget(target)

    def out(self) -> int:
        """Targets that are not well."""
        return sum(patient.phase is not Phase.WELL for patient in self._patients.values())

    def reason(self, target: Target) -> str | None:
        """Why a target is not well; None: it is."""
        patient = self._patients.get(target)
        return None if patient is None or patient.phase is Phase.WELL else f"{patient.phase}: {patient.reason}"

    def forget(self, target: Target) -> None:
        """The target is gone or new: no memory of it."""
        patient = self._patients.pop(target, None)
        if patient is not None and patient.returning is not None:
            patient.returning.cancel()

    def failed(self, target: Target, error: Exception) -> None:
        """A request failed on this target through no fault of its own.

        One failure while it is out already changes nothing: many requests fail at once when a worker dies, and that is one event.
        """
        patient = self._patient(target)
        if patient.phase is not Phase.OUT:
            self._eject(target, patient, str(error), getattr(error, "kind", "failed"))

    def sweep(self) -> None:
        """Find the targets that are stalled, and those that move again. O(targets with requests in flight)."""
        now = self._clock()
        for target, patient in list(self._patients.items()):
            if patient.in_flight:
                self._look(target, patient, now)

    # ---- what requests show

    def booked(self, target: Target, booking: Booking) -> None:
        """A request was sent there."""
        if not booking.prefilling or booking.opaque:
            self._where[booking.request_id] = target
            self._unwatched.add(booking.request_id)
            return  # a decode side waits for its prefill side, and what is opaque shows nothing: its silence says nothing
        patient = self._patient(target)
        if not patient.in_flight:
            patient.progressed_at = self._clock()
        patient.in_flight += 1
        self._where[booking.request_id] = target
        if patient.phase is Phase.PROBATION and patient.probe is None:
            patient.probe = booking.request_id
            self._scheduler.set_available(target, available=False)

    def prefilled(self, request_id: str, cached_tokens: int | None) -> None:
        """It has its first token."""
        target = self._where.get(request_id)
        patient = self._patients.get(target) if target is not None else None
        if target is not None and patient is not None:
            patient.progressed_at = self._clock()
            patient.proven = True
            if patient.phase is Phase.PROBATION:
                self._admit(target, patient)

    def freed(self, request_id: str, *, failed: bool) -> None:
        """It is over."""
        target = self._where.pop(request_id, None)
        watched = request_id not in self._unwatched
        self._unwatched.discard(request_id)
        patient = self._patients.get(target) if target is not None else None
        if target is None or patient is None:
            return
        if not (failed or patient.in_flight) and patient.phase is Phase.PROBATION:
            self._admit(target, patient)  # a decode side that delivered
        patient.in_flight = max(0, patient.in_flight - watched)
        if not failed:
            patient.progressed_at = self._clock()
            patient.proven = True
        if patient.probe == request_id:
            patient.probe = None
            if patient.phase is Phase.PROBATION:  # its client left: the next one will show
                self._scheduler.set_available(target, available=True)

    # ---- what follows from it

    def _look(self, target: Target, patient: _Patient, now: float) -> None:
        seen = self._scheduler.progress_of(target)
        if seen is None or seen.waits_for_others:
            return
        if seen.progress != patient.progress:
            patient.progress, patient.progressed_at = seen.progress, now
            if patient.stalled:
                self._admit(target, patient)
            return
        silent = now - patient.progressed_at
        allowed = self._options.stall_seconds * (1.0 if patient.proven else COLD_FACTOR)
        if silent > allowed + PREFILL_FACTOR * seen.prefill_seconds and not patient.stalled:
            patient.stalled = True
            if patient.phase is not Phase.OUT:
                self._eject(
                    target, patient, f"{patient.in_flight} request(s), and nothing for {silent:.0f} s", "stalled"
                )
            self._on_stall(target)

    def _eject(self, target: Target, patient: _Patient, reason: str, kind: str) -> None:
        options = self._options
        relapse = patient.out_seconds and (
            patient.phase is Phase.PROBATION or self._clock() - patient.well_since < options.forgiven_after_seconds
        )
        patient.reason = reason
        patient.out_seconds = (
            min(2 * patient.out_seconds, options.longest_seconds) if relapse else options.first_seconds
        )
        patient.phase = Phase.OUT
        patient.probe = None
        self._scheduler.set_available(target, available=False)
        self._metrics.ejections.labels(kind).inc()
        logger.warning("%s gets no new requests for %g s: %s", target, patient.out_seconds, reason)
        patient.returning = asyncio.get_running_loop().create_task(self._return(target, patient))

    async def _return(self, target: Target, patient: _Patient) -> None:
        """To probation, as soon as its time is over and its server answers."""
        while True:
            await asyncio.sleep(patient.out_seconds)
            if await self._ask(target):
                break
            self._metrics.health_checks.labels("failed").inc()
            patient.out_seconds = min(2 * patient.out_seconds, self._options.longest_seconds)
        self._metrics.health_checks.labels("passed").inc()
        patient.phase = Phase.PROBATION
        patient.stalled = False
        patient.progressed_at = self._clock()
        self._scheduler.set_available(target, available=True)
        logger.info("%s gets a request to prove itself", target)

    def _admit(self, target: Target, patient: _Patient) -> None:
        if patient.returning is not None:
            patient.returning.cancel()
            patient.returning = None
        patient.phase = Phase.WELL
        patient.stalled = False
        patient.probe = None
        patient.well_since = self._clock()
        self._scheduler.set_available(target, available=True)
        logger.info("%s gets requests again", target)

    def _patient(self, target: Target) -> _Patient:
        patient = self._patients.get(target)
        if patient is None:
            patient = self._patients[target] = _Patient(progressed_at=self._clock())
        return patient
