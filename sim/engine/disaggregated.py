"""The two sides of a request that is shared out: an engine that prefills and sends KV, and one that receives it and decodes.

    prefill:  submit ──met──▶ waiting ──▶ prefilled ──sent──▶ finished, with one token
    decode:   submit ──▶ allocated ──received──▶ running ──▶ …

What is between the two, the rendezvous and the transfer, is the driver's: it moves `take_allocated` to `met`, `take_prefilled` to
`received` and `sent`, in what time it likes, and says `abort` when they do not come. KV that is being sent is never freed, also not
when its request is aborted: the other side may be reading it.

Simpler than SGLang: there is no overlapped schedule, and a request that a decode engine retracts is computed anew on it (SGLang
backs its KV up in host memory).
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

from sim.engine.cache import NO_TOKENS
from sim.engine.config import EngineConfig
from sim.engine.request import Finish, Output, Sequence
from sim.engine.scheduler import Engine, Step, StepKind

if TYPE_CHECKING:
    from collections.abc import Iterable

RESERVED_DECODE_TOKENS = 512
"""So many tokens are kept free for each request that decodes or is about to, before another one's prompt gets memory."""


@dataclass(frozen=True)
class TransferTiming:
    """How long KV takes from one engine to the other: ``base + per token · tokens``, divided by `speed`.

    The default is an 8B model's 128 KiB a token over 50 GB/s.
    """

    base_seconds: float = 2e-3
    token_seconds: float = 2.6e-6
    speed: float = 1.0

    def seconds(self, tokens: int) -> float:
        """Of a transfer of that many tokens. O(1)."""
        return (self.base_seconds + self.token_seconds * tokens) / self.speed


class Prefilled(NamedTuple):
    """A prompt's KV that is ready to be sent."""

    rid: str
    token: int
    """The first one of the answer."""
    tokens: int
    """Of the prompt."""


class Allocated(NamedTuple):
    """Memory that waits for a prompt's KV."""

    rid: str
    cached_tokens: int
    """Of the prompt, that are here already."""


class PrefillEngine(Engine):
    """Computes prompts, and keeps their KV until the other side has it."""

    def __init__(self, config: EngineConfig | None = None) -> None:
        super().__init__(replace(config or EngineConfig(), overlap_schedule=False))
        self._unmet: dict[str, Sequence] = {}
        self._sending: dict[str, Sequence] = {}
        self._sent: list[Sequence] = []
        self._prefilled: list[Prefilled] = []

    @property
    def runnable(self) -> bool:
        """See `Engine.runnable`: requests that wait for the other side do not count."""
        doomed = any(sequence.request.rid not in self._sending for sequence in self._doomed)
        return bool(self._waiting or self._running or self._chunked or self._sent or doomed)

    @property
    def unmet(self) -> int:
        """Requests that wait for the other side."""
        return len(self._unmet)

    @property
    def sending(self) -> int:
        """Requests whose KV may be read by the other side now."""
        return len(self._sending)

    def met(self, rid: str) -> None:
        """The other side has memory for it; unknown ids are ignored. O(1)."""
        sequence = self._unmet.pop(rid, None)
        if sequence is not None:
            self._waiting.append(sequence)

    def take_prefilled(self) -> list[Prefilled]:
        """What became ready since the last call, to be there at the last step's end; from now on its KV may be read."""
        taken, self._prefilled = self._prefilled, []
        for prefilled in taken:
            if self._sending[prefilled.rid].aborted:
                del self._sending[prefilled.rid]
        return [prefilled for prefilled in taken if prefilled.rid in self._sending]

    def sent(self, rid: str) -> None:
        """The other side has the KV, or will never read it any more; unknown ids are ignored. O(1)."""
        sequence = self._sending.pop(rid, None)
        if sequence is not None:
            self._sent.append(sequence)

    def step(self, now: float) -> Step:
        """See `Engine.step`; a request's one token comes out after it was sent."""
        outputs = [self._conclude(sequence) for sequence in self._sent if not sequence.aborted]
        self._sent.clear()
        step = super().step(now)
        self._running = [sequence for sequence in self._running if sequence.request.rid not in self._sending]
        outputs += [output for output in step.outputs if output.finish is not None]
        return step._replace(outputs=outputs)

    def _queue(self, sequence: Sequence) -> None:
        sequence.max_new_tokens = 1
        self._unmet[sequence.request.rid] = sequence

    def _sample(self, sequence: Sequence) -> Output:
        """The first token, for the other side to deliver."""
        rid = sequence.request.rid
        self._sending[rid] = sequence
        self._prefilled.append(Prefilled(rid, self._draw(sequence), len(sequence.request.prompt)))
        return self._output(sequence, None, None)

    def _conclude(self, sequence: Sequence) -> Output:
        self._release(sequence)
        self._totals.finished += 1
        return self._output(sequence, sequence.output[0], Finish("length"))

    def _reap(self) -> list[Output]:
        held = [sequence for sequence in self._doomed if sequence.request.rid in self._sending]
        self._doomed = [sequence for sequence in self._doomed if sequence.request.rid not in self._sending]
        for sequence in self._doomed:
            self._unmet.pop(sequence.request.rid, None)
        outputs = super()._reap()
        self._doomed += held
        return outputs

    def _without_memory(self) -> list[Sequence]:
        return [*super()._without_memory(), *self._unmet.values()]

    def _with_memory(self) -> list[Sequence]:
        ended = [sequence for sequence in self._doomed if sequence.node is not None and not self._is_running(sequence)]
        held = {id(sequence): sequence for sequence in (*self._sending.values(), *self._sent, *ended)}
        return [*super()._with_memory(), *held.values()]

    def _is_running(self, sequence: Sequence) -> bool:
        return sequence in self._running or sequence is self._chunked


class DecodeEngine(Engine):
    """Takes prompts' KV from elsewhere, and decodes.

    :param caches: prompts and answers stay in its cache, and what is there of a prompt needs no transfer; SGLang's
        `--disaggregation-decode-enable-radix-cache`.
    """

    def __init__(self, config: EngineConfig | None = None, *, caches: bool = False) -> None:
        super().__init__(replace(config or EngineConfig(), overlap_schedule=False))
        self._caches = caches
        self._unallocated: deque[Sequence] = deque()
        self._receiving: dict[str, Sequence] = {}
        self._received: list[tuple[Sequence, int]] = []
        self._allocated: list[Allocated] = []

    @property
    def runnable(self) -> bool:
        """See `Engine.runnable`: requests that wait for KV or for memory that nobody is about to free do not count."""
        working = self._waiting or self._running or self._chunked or self._doomed or self._received
        return bool(working) or bool(self._unallocated and not self._receiving)

    @property
    def unallocated(self) -> int:
        """Requests that wait for memory."""
        return len(self._unallocated)

    @property
    def receiving(self) -> int:
        """Requests that have memory and wait for KV."""
        return len(self._receiving)

    def take_allocated(self) -> list[Allocated]:
        """What got memory since the last call."""
        taken, self._allocated = self._allocated, []
        return taken

    def received(self, rid: str, token: int) -> None:
        """Its KV and its first token are here; unknown ids are ignored. O(1)."""
        sequence = self._receiving.pop(rid, None)
        if sequence is not None:
            self._received.append((sequence, token))

    def step(self, now: float) -> Step:
        """See `Engine.step`; what was received comes out at once, in a step of no length."""
        outputs = self._reap()
        self._allocate(now)
        outputs += [self._enter_running(sequence, token) for sequence, token in self._received]
        self._received.clear()
        if outputs:
            return Step(StepKind.IDLE, 0.0, outputs, self._changes.take(), self._report())
        return super().step(now)

    def _queue(self, sequence: Sequence) -> None:
        self._unallocated.append(sequence)

    def _allocate(self, now: float) -> None:
        """Give memory to prompts, in order, while enough is left for those that decode."""
        while self._unallocated and len(self._running) + len(self._receiving) < self.config.running_limit:
            if not self._try_allocate(self._unallocated[0], now):
                return
            self._unallocated.popleft()

    def _try_allocate(self, sequence: Sequence, now: float) -> bool:
        request, page = sequence.request, self.config.page_size
        prompt = sequence.tokens(sequence.length - 1) if self._caches else NO_TOKENS
        match = self._cache.match(prompt, request.namespace)
        self._cache.lock(match.node)
        pages = self._pool.pages_for(len(request.prompt)) - match.tokens // page
        others = len(self._running) + len(self._receiving) + len(self._received)
        spare = self._pool.free_tokens + self._cache.evictable_tokens - pages * page
        if (others and spare < RESERVED_DECODE_TOKENS * others) or not self._make_room(pages):
            self._cache.unlock(match.node)
            return False
        self._pool.take(pages)
        sequence.node, sequence.cached, sequence.private_pages = match.node, match.tokens, pages
        sequence.computed = len(request.prompt)
        sequence.first_match, sequence.queue_seconds = match.tokens, now - sequence.submitted_at
        self._totals.cached_tokens += match.tokens
        self._receiving[request.rid] = sequence
        self._allocated.append(Allocated(request.rid, match.tokens))
        return True

    def _enter_running(self, sequence: Sequence, token: int) -> Output:
        state = self._sampler.read(sequence.request.prompt)
        sequence.sampler_state = self._sampler.append(state, token)
        sequence.output.append(token)
        finish = self._finish_reason(sequence, token)
        if finish is None:
            self._hand_over(sequence, sequence.computed)
            self._running.append(sequence)
        else:
            self._release(sequence)
            self._totals.finished += 1
        return self._output(sequence, token, finish)

    def _hand_over(self, sequence: Sequence, tokens: int) -> None:
        if self._caches:
            super()._hand_over(sequence, tokens)

    def _reap(self) -> list[Output]:
        for sequence in self._doomed:
            self._receiving.pop(sequence.request.rid, None)
        if self._doomed:
            self._unallocated = deque(sequence for sequence in self._unallocated if not sequence.aborted)
            self._received = [(sequence, token) for sequence, token in self._received if not sequence.aborted]
        return super()._reap()

    def _without_memory(self) -> list[Sequence]:
        return [*super()._without_memory(), *self._unallocated]

    def _with_memory(self) -> list[Sequence]:
        return [*super()._with_memory(), *self._receiving.values(), *_sequences(self._received)]


def _sequences(received: Iterable[tuple[Sequence, int]]) -> list[Sequence]:
    return [sequence for sequence, _ in received]
