"""One rank: the engine model in wall-clock time."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING, Any, NamedTuple

from events.blocks import salt_seed, sequence_hashes
from sim.engine import DecodeEngine, Finish, Output, PrefillEngine, StepKind

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from sim.engine import Allocated, Engine, FrontDoor, Load, Prefilled, Request, Step
    from sim.worker.publisher import EventPublisher, LoadPublisher

logger = logging.getLogger(__name__)

HEARTBEAT_SECONDS = 1.0
LATE_SECONDS = 0.05
"""A schedule this far behind is given up; less is caught up with, for timers are coarser than steps."""


class RankStatistics(NamedTuple):
    """How well the wall clock was kept."""

    steps: int
    late_steps: int
    """Times the schedule was given up because the process did not keep up with it."""


class Rank:
    """Steps an engine as long as it has work, and hands out what comes of it."""

    def __init__(
        self,
        number: int,
        engine: Engine,
        door: FrontDoor,
        events: EventPublisher | None = None,
        loads: LoadPublisher | None = None,
    ) -> None:
        self.number = number
        self.engine = engine
        self.events = events
        self.loads = loads
        self._door = door
        self._arriving: dict[str, tuple[Request, asyncio.TimerHandle]] = {}
        """Requests that have not reached the scheduler yet, in order."""
        self._met_early: set[str] = set()
        """Of those, the ones that the other side waits for already."""
        self._streams: dict[str, asyncio.Queue[Output]] = {}
        self._wake = asyncio.Event()
        self._idle = asyncio.Event()
        self._going = asyncio.Event()
        self._going.set()
        self._steps = self._late = 0
        self.failures: dict[str, str] = {}
        """Why requests end that this rank gave up by itself."""
        self.on_prefilled: Callable[[Rank, Prefilled], None] = lambda rank, prefilled: None
        self.on_allocated: Callable[[Rank, Allocated], None] = lambda rank, allocated: None

    @property
    def delivers(self) -> bool:
        """Whether answers come from here; a prefill side only begins them."""
        return not isinstance(self.engine, PrefillEngine)

    def submit(self, request: Request) -> AsyncIterator[Output]:
        """Take a request; its outputs come as they are produced, the last with a finish.

        :raises ValueError: see `Engine.submit`.
        """
        self.engine.validate(request)
        now = time.monotonic()
        delay = self._door.arrival(now, len(request.prompt)) - now
        timer = asyncio.get_running_loop().call_later(delay, self._arrive, request.rid)
        self._arriving[request.rid] = request, timer
        queue: asyncio.Queue[Output] = asyncio.Queue()
        self._streams[request.rid] = queue
        self._idle.clear()
        return self._outputs(queue)

    def _arrive(self, rid: str) -> None:
        """The scheduler's queue has this request, and all before it: timers of the same moment fire in any order."""
        while rid in self._arriving:
            request, timer = self._arriving.pop(next(iter(self._arriving)))
            timer.cancel()
            self.engine.submit(request, time.monotonic())
            if request.rid in self._met_early:
                self._met_early.discard(request.rid)
                self.met(request.rid)
        self._wake.set()

    def abort(self, rid: str) -> bool:
        """End a request early; False if it is not here. O(1)."""
        arriving = self._arriving.pop(rid, None)
        if arriving is not None:
            arriving[1].cancel()
            self._met_early.discard(rid)
            self._streams.pop(rid).put_nowait(Output(rid, None, 0, 0, Finish("abort"), 0.0))
            return True
        found = self.engine.abort(rid)
        self._wake.set()
        return found

    def fail(self, rid: str, reason: str) -> None:
        """Give a request up, for a reason that its client is told. O(1)."""
        if rid in self._streams:
            logger.warning("rank %d: %s", self.number, reason)
            self.failures.setdefault(rid, reason)
            self.abort(rid)

    def met(self, rid: str) -> None:
        """The decode side waits for this prompt's KV."""
        assert isinstance(self.engine, PrefillEngine)
        if rid in self._arriving:
            self._met_early.add(rid)
        self.engine.met(rid)
        self._wake.set()

    def sent(self, rid: str) -> None:
        """The decode side has a prompt's KV, or does not want it any more."""
        assert isinstance(self.engine, PrefillEngine)
        self.engine.sent(rid)
        self._wake.set()

    def received(self, rid: str, token: int) -> None:
        """A prompt's KV came, and the token that follows it."""
        assert isinstance(self.engine, DecodeEngine)
        self.engine.received(rid, token)
        self._wake.set()

    def holds(self, rid: str) -> bool:
        """Whether a request of that id is here. O(1)."""
        return rid in self._streams

    def abort_all(self) -> None:
        """End every request early. O(n)."""
        for rid in list(self._streams):
            self.abort(rid)

    def pause(self) -> None:
        """Take no further step, whatever waits."""
        self._going.clear()

    def go_on(self) -> None:
        """Step again."""
        self._going.set()

    async def flush(self, timeout_seconds: float = 0.0) -> bool:
        """Empty the cache, waiting so long for the rank to be idle; False if it was not."""
        if self._busy and timeout_seconds > 0:
            try:
                await asyncio.wait_for(self._idle.wait(), timeout_seconds)
            except TimeoutError:
                return False
        if self._busy or not self.engine.flush():
            return False
        self._wake.set()
        return True

    async def run(self) -> None:
        """Step until cancelled."""
        due = time.monotonic()
        while True:
            await self._going.wait()
            step = self.engine.step(time.monotonic())
            self._steps += 1
            if self.loads is not None and step.load is not None:
                self.loads.publish(step.load)
            if isinstance(self.engine, DecodeEngine):
                for allocated in self.engine.take_allocated():
                    self.on_allocated(self, allocated)
            due = await self._pass(due, step.duration_seconds)
            self._deliver(step)
            if step.kind is StepKind.IDLE and not self.engine.runnable:
                if not self._busy:
                    self._idle.set()
                self._wake.clear()
                await self._wake.wait()
                due = time.monotonic()

    async def heartbeat(self) -> None:
        """Report load each second until cancelled."""
        while self.loads is not None:
            await asyncio.sleep(HEARTBEAT_SECONDS)
            self.loads.heartbeat(self.load())

    def load(self) -> Load:
        """The engine's load now."""
        return self.engine.load()

    def held(self, block_size: int) -> dict[str, Any]:
        """The sequence hashes of all full blocks in the cache, and how many event batches led there. O(cached tokens)."""
        blocks: set[int] = set()
        for namespace, tokens in self.engine.cached_sequences():
            blocks.update(sequence_hashes(tokens, block_size, salt_seed(namespace.cache_salt)).tolist())
        batches = self.events.statistics().batches if self.events is not None else 0
        return {"rank": self.number, "batches": batches, "blocks": sorted(blocks)}

    def statistics(self) -> RankStatistics:
        """A snapshot. O(1)."""
        return RankStatistics(self._steps, self._late)

    @property
    def _busy(self) -> bool:
        return self.engine.busy or bool(self._arriving)

    async def _pass(self, due: float, seconds: float) -> float:
        """Sleep to the step's end; returns when that was due, where the next step begins."""
        now = time.monotonic()
        if now - due > LATE_SECONDS:
            self._note_late(now - due)
            due = now
        due += seconds
        await asyncio.sleep(max(0.0, due - now))
        return due

    def _note_late(self, seconds: float) -> None:
        self._late += 1
        if self._late == 1:
            logger.warning("rank %d fell %.0f ms behind; from here on only counted", self.number, 1000 * seconds)

    def _deliver(self, step: Step) -> None:
        for output in step.outputs:
            queue = self._streams.get(output.rid)
            if queue is None:
                continue
            queue.put_nowait(output)
            if output.finish is not None:
                del self._streams[output.rid]
        if self.events is not None:
            self.events.publish(step.cache_changes)
        if isinstance(self.engine, PrefillEngine):
            for prefilled in self.engine.take_prefilled():
                self.on_prefilled(self, prefilled)

    @staticmethod
    async def _outputs(queue: asyncio.Queue[Output]) -> AsyncIterator[Output]:
        while True:
            output = await queue.get()
            yield output
            if output.finish is not None:
                return

    def __repr__(self) -> str:
        return f"<Rank {self.number}: {self.engine!r}>"
