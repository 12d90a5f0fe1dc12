"""The loop: prefill before decode, one token a step, retraction when memory runs out."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from sim.engine.admission import NewTokenRatio, PrefillBudget, reserved_tokens
from sim.engine.cache import Match, PrefixCache
from sim.engine.changes import ChangeLog
from sim.engine.config import FIXED_LENGTHS_KNOWN, LEAVING_NOTICED_AT_ONCE, EngineConfig
from sim.engine.host import HostTier
from sim.engine.pool import PagePool
from sim.engine.queue import WaitingQueue
from sim.engine.request import Finish, Output, Request, Sequence
from sim.engine.sampling import Sampler

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy as np
    from numpy.typing import NDArray

    from sim.engine.changes import Change
    from sim.engine.request import Namespace


class StepKind(enum.Enum):
    """What a step did."""

    PREFILL = "prefill"
    DECODE = "decode"
    IDLE = "idle"


class Load(NamedTuple):
    """What the scheduler reports of itself."""

    running_requests: int
    waiting_requests: int
    used_tokens: int
    """Tokens of pages that running requests hold; evictable ones are not counted."""
    capacity_tokens: int
    waiting_uncached_tokens: int
    """Prompt tokens still to be computed, of waiting requests and of one between two chunks."""
    total_tokens: int
    """Used tokens and the waiting requests' tokens."""
    max_running_requests: int
    total_prefill_uncached_tokens: int
    total_prefill_busy_seconds: float


class Step(NamedTuple):
    """One step: what it brings is there `duration_seconds` after it began."""

    kind: StepKind
    duration_seconds: float
    outputs: list[Output]
    cache_changes: list[Change]
    """To be published at the step's end."""
    load: Load | None
    """To be reported at the step's begin; None: no report is due."""


class Batch(NamedTuple):
    """A step that is launched: its memory is taken, its tokens are not there yet."""

    kind: StepKind
    sequences: list[Sequence]
    decoding: list[Sequence]
    """Those of them that decode: all of a decode step, some of a mixed one."""
    unfinished: Sequence | None
    """The sequence whose prompt goes on after this step."""
    duration_seconds: float
    load: Load | None
    """To be reported at its launch."""


class EngineStatistics(NamedTuple):
    """Running totals, and what the cache holds now."""

    prefill_steps: int
    decode_steps: int
    decode_moments: tuple[float, float, float, float, float, float]
    """Sums over decode steps of 1, batch, µs, batch², batch · µs, tokens."""
    requests: int
    finished_requests: int
    aborted_requests: int
    retractions: int
    prompt_tokens: int
    cached_tokens: int
    """Prompt tokens that came from the cache."""
    generated_tokens: int
    evicted_tokens: int
    cache_hit_rate: float
    """Of the last prefill."""
    generated_tokens_per_second: float
    """Of the last decode step."""
    free_tokens: int
    evictable_tokens: int
    protected_tokens: int


class Engine:
    """One rank's scheduler, its memory and its cache."""

    def __init__(self, config: EngineConfig | None = None) -> None:
        self.config = config or EngineConfig()
        self._pool = PagePool(self.config.capacity_tokens, self.config.page_size)
        self._changes = ChangeLog()
        self._cache = PrefixCache(self.config.page_size, self._changes if self.config.record_changes else None)
        changes = self._changes if self.config.record_changes else None
        host_tokens = self.config.host_tokens
        self._host = HostTier(host_tokens, self.config.page_size, changes) if host_tokens else None
        self._sampler = Sampler(self.config.vocabulary, self.config.seed)
        self._sequences: dict[str, Sequence] = {}
        self._waiting = WaitingQueue()
        self._running: list[Sequence] = []
        self._chunked: Sequence | None = None
        """The one request that is between two chunks of its prompt."""
        self._in_flight: Batch | None = None
        """Launched, and not processed yet."""
        self._doomed: list[Sequence] = []
        """Aborted, and to be ended by the next step."""
        self._full = False
        """Admission failed for want of memory; not tried again before a request leaves."""
        self._left = False
        """A request left, and admission does not know yet."""
        self._knows_lengths = self.config.release >= FIXED_LENGTHS_KNOWN
        self._notices_at_once = self.config.release >= LEAVING_NOTICED_AT_ONCE
        self._ratio = NewTokenRatio()
        self._decodes_since_prefill = 0
        self._decodes_since_report = 0
        self._totals = _Totals()
        self._cache.clear()  # as SGLang does at its start: the first change published is Cleared

    @property
    def busy(self) -> bool:
        """Whether any request is inside, or a step of one that was."""
        return bool(self._sequences) or self._in_flight is not None

    @property
    def runnable(self) -> bool:
        """Whether a step would do anything before the engine is told something new."""
        return self.busy

    def submit(self, request: Request, now: float) -> None:
        """Queue a request. O(1).

        :raises ValueError: the prompt is empty or too long, the limit of output tokens is negative, or the id is in use.
        """
        self.validate(request)
        limit = self.config.max_sequence_tokens - len(request.prompt) - 1
        wanted = limit if request.max_new_tokens is None else request.max_new_tokens
        sequence = Sequence(request, max_new_tokens=min(wanted, limit), submitted_at=now)
        self._sequences[request.rid] = sequence
        self._queue(sequence)
        self._totals.requests += 1
        self._totals.prompt_tokens += len(request.prompt)

    def validate(self, request: Request) -> None:
        """Whether `submit` would take the request. O(1).

        :raises ValueError: see `submit`.
        """
        length, longest = len(request.prompt), self.config.max_input_tokens
        if length == 0:
            raise ValueError("The input is empty.")
        if length >= longest:
            raise ValueError(
                f"Input length ({length} tokens) exceeds the maximum allowed length ({longest} tokens). "
                "Use a shorter input or enable --allow-auto-truncate."
            )
        if request.max_new_tokens is not None and request.max_new_tokens < 0:
            raise ValueError(f"max_new_tokens must be at least 0, got {request.max_new_tokens}.")
        if request.rid in self._sequences:
            raise ValueError(f"Duplicate request ID detected: {request.rid}")

    def abort(self, rid: str) -> bool:
        """End a request at the next step; False if it is not here. O(1)."""
        sequence = self._sequences.get(rid)
        if sequence is None:
            return False
        if not sequence.aborted:
            sequence.aborted = True
            self._doomed.append(sequence)
        return True

    def cached_sequences(self) -> Iterator[tuple[Namespace, NDArray[np.uint32]]]:
        """What the cache holds, as the longest sequences; each of their prefixes is held, too. O(tokens of all of them)."""
        return self._cache.sequences()

    def flush(self) -> bool:
        """Empty the cache; False (and nothing done) while a request is inside. O(nodes)."""
        if self.busy:
            return False
        self._pool.give(self._cache.clear() // self.config.page_size)
        if self._host is not None:
            self._host.clear()
        return True

    def step(self, now: float) -> Step:
        """Do the next thing: a prefill if one is admitted, else one token for each running request, else nothing."""
        if self._host is not None:
            self._host.write()
        outputs = self._reap()
        if self._in_flight is None:
            self._in_flight = self._launch(now)
        batch = self._in_flight
        if batch is None:
            self._ratio.reset()
            return Step(StepKind.IDLE, 0.0, outputs, self._changes.take(), self._report())
        following = self._launch(now) if self.config.overlap_schedule else None
        step = self._process(batch, outputs)
        self._in_flight = following
        return step

    def load(self) -> Load:
        """What a load report says now. O(waiting)."""
        chunked = self._chunked
        pending = chunked.length - chunked.cached if chunked else 0
        used = self._pool.capacity_tokens - self._pool.free_tokens - self._cache.evictable_tokens
        return Load(
            running_requests=len(self._running),
            waiting_requests=len(self._waiting),
            used_tokens=used,
            capacity_tokens=self._pool.capacity_tokens,
            waiting_uncached_tokens=pending + sum(item.length - item.last_match for item in self._waiting),
            total_tokens=used + sum(item.length for item in self._waiting),
            max_running_requests=self.config.running_limit,
            total_prefill_uncached_tokens=self._totals.prefill_tokens,
            total_prefill_busy_seconds=self._totals.prefill_seconds,
        )

    def statistics(self) -> EngineStatistics:
        """A snapshot. O(1)."""
        totals = self._totals
        return EngineStatistics(
            prefill_steps=totals.prefill_steps,
            decode_steps=totals.decode_steps,
            decode_moments=totals.decode_moments,
            requests=totals.requests,
            finished_requests=totals.finished,
            aborted_requests=totals.aborted,
            retractions=totals.retractions,
            prompt_tokens=totals.prompt_tokens,
            cached_tokens=totals.cached_tokens,
            generated_tokens=totals.generated_tokens,
            evicted_tokens=totals.evicted_tokens,
            cache_hit_rate=totals.cache_hit_rate,
            generated_tokens_per_second=totals.generated_tokens_per_second,
            free_tokens=self._pool.free_tokens,
            evictable_tokens=self._cache.evictable_tokens,
            protected_tokens=self._cache.protected_tokens,
        )

    # Admission

    def _queue(self, sequence: Sequence) -> None:
        """A request came."""
        self._waiting.append(sequence)

    def _next_prefill(self, now: float) -> list[Sequence]:
        """The next batch to prefill, with memory taken for each; empty if decode goes first."""
        if self._chunked is not None:
            self._hand_over(self._chunked, self._chunked.computed)
        if self._chunked is not None or not self._running or (self._left and self._notices_at_once):
            self._full = False
        if self._running and self._decodes_since_prefill < self.config.prefill_decode_interval:
            return []
        if self._chunked is None and (self._full or not self._waiting):
            return []
        if self._chunked is None and len(self._running) >= self.config.running_limit:
            self._full = True
            return []
        self._order_queue()
        budget = self._budget()
        batch = self._continue_chunked(budget)
        self._admit(batch, budget, now)
        self._take_pages(batch)
        return batch

    def _order_queue(self) -> None:
        if not self._waiting:
            return
        if self.config.schedule_policy == "lpm":
            self._waiting.sort(self._cache)
        elif self._knows_lengths:
            self._waiting.refresh(self._cache)

    def _budget(self) -> PrefillBudget:
        decoding = len(self._running) if self.config.enable_mixed_chunk else 0
        reserved = sum(reserved_tokens(sequence) * self._reserved_share(sequence) for sequence in self._running)
        return PrefillBudget(
            self._pool,
            self._cache,
            reserved + decoding,
            self.config.max_prefill_tokens - decoding,
            self.config.chunked_prefill_tokens - decoding,
        )

    def _reserved_share(self, sequence: Sequence) -> float:
        return 1.0 if self._knows_lengths and sequence.request.ignore_eos else self._ratio.value

    def _continue_chunked(self, budget: PrefillBudget) -> list[Sequence]:
        sequence = self._chunked
        if sequence is None:
            return []
        self._extend(sequence, budget.next_chunk(sequence.length - sequence.computed), budget)
        return [sequence] if sequence.extend else []

    def _admit(self, batch: list[Sequence], budget: PrefillBudget, now: float) -> None:
        """Move requests from the head of the queue into the batch while they fit."""
        while self._waiting and self._chunked is None and not self._full and not budget.batch_full:
            if len(self._running) + len(batch) >= self.config.running_limit:
                self._full = bool(self._running)
                return
            if not self._try_admit(self._waiting.head, batch, budget):
                return
            self._enter(self._waiting.pop(), now)
            if budget.memory_tokens <= 0:
                self._full = bool(self._running)
                return

    def _try_admit(self, sequence: Sequence, batch: list[Sequence], budget: PrefillBudget) -> bool:
        # At least one token is computed, for something must be computed to sample from.
        match = self._cache.match(sequence.tokens(sequence.length - 1), sequence.request.namespace)
        if self._host is not None:
            match = self._load_back(sequence, match, self._host)
        sequence.last_match = match.tokens
        self._cache.lock(match.node)
        alone = not batch and not self._running  # an empty engine takes whatever passed validation
        if not alone and not budget.fits(sequence, sequence.length - match.tokens):
            self._cache.unlock(match.node)
            self._full = bool(self._running)  # SGLang notes it at the running batch, and an empty one is replaced
            return False
        sequence.node, sequence.cached, sequence.computed = match.node, match.tokens, match.tokens
        self._extend(sequence, budget.first_chunk(match.tokens, sequence.length - match.tokens), budget)
        if sequence.extend == 0:  # not a page of this batch's chunk is left
            self._chunked = None
            self._cache.unlock(match.node)
            sequence.node, sequence.cached, sequence.computed = None, 0, 0
            return False
        batch.append(sequence)
        return True

    def _load_back(self, sequence: Sequence, match: Match, host: HostTier) -> Match:
        """Have on the device what the host tier holds beyond it, if there is room."""
        held = host.found(sequence, match.tokens)
        pages = (held - match.tokens) // self.config.page_size
        self._cache.lock(match.node)
        fits = pages > 0 and self._make_room(pages)
        self._cache.unlock(match.node)
        if not fits:
            return match
        self._pool.take(pages)
        inserted = self._cache.insert(sequence.tokens(held), sequence.request.namespace)
        sequence.loaded = sequence.loading = held - match.tokens
        return Match(inserted.node, held)

    def _enter(self, sequence: Sequence, now: float) -> None:
        """Note a request's first admission."""
        if sequence.first_match is None:
            sequence.first_match = sequence.cached
            sequence.queue_seconds = now - sequence.submitted_at
            sequence.sampler_state = self._sampler.read(sequence.request.prompt)
            self._totals.cached_tokens += sequence.cached

    def _extend(self, sequence: Sequence, tokens: int, budget: PrefillBudget) -> None:
        """Let this prefill compute so many tokens of the prompt."""
        sequence.extend = tokens
        last = tokens == sequence.length - sequence.computed
        self._chunked = None if last else sequence
        if tokens:
            budget.take(sequence, tokens, last=last)

    def _take_pages(self, batch: list[Sequence]) -> None:
        needed = [self._pages_missing(sequence, sequence.computed + sequence.extend) for sequence in batch]
        self._make_room(sum(needed), margin_pages=len(batch))
        for sequence, pages in zip(batch, needed, strict=True):
            self._pool.take(pages)
            sequence.private_pages += pages

    # Steps

    def _launch(self, now: float) -> Batch | None:
        """Plan the next step and take its memory; None if there is nothing to do."""
        batch = self._next_prefill(now)
        if batch:
            return self._launch_prefill(batch)
        decoding = self._next_decode()
        return self._launch_decode(decoding) if decoding else None

    def _launch_prefill(self, batch: list[Sequence]) -> Batch:
        load = self._report()
        decoding = self._mixed_in()
        new = [sequence.extend for sequence in batch]
        prefix = [sequence.computed for sequence in batch]
        for sequence in batch:
            sequence.computed += sequence.extend
            sequence.extend = 0
            if sequence is not self._chunked:
                self._running.append(sequence)
        self._decodes_since_prefill = 0
        all_new, all_prefix = new + [1] * len(decoding), prefix + [sequence.computed - 1 for sequence in decoding]
        duration = self.config.timing.prefill_seconds(all_new, all_prefix) + self._loading_seconds(batch)
        self._totals.prefilled(sum(new), sum(prefix), duration)
        return Batch(StepKind.PREFILL, [*batch, *decoding], decoding, self._chunked, duration, load)

    def _loading_seconds(self, batch: list[Sequence]) -> float:
        """What this prefill waits for prefixes from host memory."""
        tokens = 0
        for sequence in batch:
            tokens += sequence.loading
            sequence.loading = 0
        return tokens * self.config.load_back_token_seconds

    def _mixed_in(self) -> list[Sequence]:
        """Running requests that decode along with a prefill, if there is memory for all of them."""
        if not self.config.enable_mixed_chunk:
            return []
        decoding = self._decodable()
        if not decoding or not self._make_room(self._pages_for_next_tokens(decoding)):
            return []
        self._grow(decoding)
        return decoding

    def _next_decode(self) -> list[Sequence]:
        """The running requests that decode next; some may be retracted for it."""
        if self._left:
            self._full = self._left = False
        decoding = self._decodable()
        if decoding and len(decoding) < len(self._running):
            if self._make_room(self._pages_for_next_tokens(decoding)):
                self._ratio.decay()
                return decoding
            self._full = False  # those about to end will leave room: wait for them
            return []
        if decoding:
            self._retract_for_room()
            return self._running.copy()
        return []

    def _decodable(self) -> list[Sequence]:
        """The running requests, without those whose last token is in flight."""
        if self._in_flight is None or not self._knows_lengths:
            return self._running.copy()
        flying = set(map(id, self._in_flight.sequences))
        return [sequence for sequence in self._running if id(sequence) not in flying or not sequence.ends_next]

    def _launch_decode(self, decoding: list[Sequence]) -> Batch:
        kv_tokens = self._grow(decoding)
        duration = self.config.timing.decode_seconds(len(decoding), kv_tokens, self._pool.capacity_tokens)
        self._decodes_since_prefill += 1
        return Batch(StepKind.DECODE, decoding, decoding, None, duration, None)

    def _grow(self, decoding: list[Sequence]) -> int:
        """Take memory for one more token each; returns the tokens in their KV."""
        kv_tokens = 0
        for sequence in decoding:
            pages = self._pages_missing(sequence, sequence.computed + 1)
            self._pool.take(pages)
            sequence.private_pages += pages
            sequence.computed += 1
            kv_tokens += sequence.computed
        return kv_tokens

    def _process(self, batch: Batch, outputs: list[Output]) -> Step:
        """What a launched step brings."""
        prefilled = len(batch.sequences) - len(batch.decoding)
        for index, sequence in enumerate(batch.sequences):
            # Ended or retracted since the launch: what was computed for it is void.
            if sequence is batch.unfinished or sequence.node is None:
                continue
            output = self._sample(sequence)
            outputs.append(output)
            if index < prefilled and output.finish is None:
                self._hand_over(sequence, sequence.length - 1)
        self._running = [sequence for sequence in self._running if sequence.node is not None]
        if batch.kind is StepKind.PREFILL:
            return Step(batch.kind, batch.duration_seconds, outputs, self._changes.take(), batch.load)
        return self._end_decode(batch, outputs)

    def _end_decode(self, batch: Batch, outputs: list[Output]) -> Step:
        self._totals.decoded(len(batch.sequences), batch.duration_seconds)
        self._decodes_since_report += 1
        changes = self._changes.take() if self._totals.decode_steps % self.config.decode_log_interval == 0 else []
        load = self._report() if self._decodes_since_report == self.config.load_interval else None
        return Step(batch.kind, batch.duration_seconds, outputs, changes, load)

    def _report(self) -> Load:
        self._decodes_since_report = 0
        return self.load()

    def _sample(self, sequence: Sequence) -> Output:
        """The next token; ends the request if it is its last."""
        token = self._draw(sequence)
        finish = self._finish_reason(sequence, token)
        if finish is not None:
            self._release(sequence)
            self._totals.finished += 1
        return self._output(sequence, token, finish)

    def _draw(self, sequence: Sequence) -> int:
        """The next token, appended."""
        config = self.config
        if config.eos_after_tokens == len(sequence.output) + 1 and not sequence.request.ignore_eos:
            token = config.eos_token
        else:
            token = self._sampler.next(sequence.sampler_state)
        sequence.output.append(token)
        sequence.sampler_state = self._sampler.append(sequence.sampler_state, token)
        self._totals.generated_tokens += 1
        return token

    def _finish_reason(self, sequence: Sequence, token: int) -> Finish | None:
        if len(sequence.output) >= sequence.max_new_tokens:
            return Finish("length")
        request = sequence.request
        if not request.ignore_eos and (token == self.config.eos_token or token in request.stop_token_ids):
            return Finish("stop", token)
        return None

    def _output(self, sequence: Sequence, token: int | None, finish: Finish | None) -> Output:
        return Output(
            sequence.request.rid,
            token,
            sequence.first_match or 0,
            sequence.retractions,
            finish,
            sequence.queue_seconds,
            sequence.loaded,
        )

    # Memory

    def _pages_missing(self, sequence: Sequence, tokens: int) -> int:
        held = sequence.cached // self.config.page_size + sequence.private_pages
        return max(0, self._pool.pages_for(tokens) - held)

    def _pages_for_next_tokens(self, sequences: list[Sequence]) -> int:
        return sum(self._pages_missing(sequence, sequence.computed + 1) for sequence in sequences)

    def _make_room(self, pages: int, *, margin_pages: int = 0) -> bool:
        """Evict until `pages` (and, if there is enough to evict, the margin too) are free."""
        short = pages + margin_pages - self._pool.free_pages
        if pages and short > 0:
            freed = self._cache.evict(short * self.config.page_size)
            self._totals.evicted_tokens += freed
            self._pool.give(freed // self.config.page_size)
        return self._pool.free_pages >= pages

    def _retract_for_room(self) -> None:
        """Evict, then retract (least output first, longest prompt first), until the rest can decode one more token."""
        if self._make_room(self._pages_for_next_tokens(self._running)):
            self._ratio.decay()
            return
        kept = sorted(self._running, key=lambda item: (len(item.output), -len(item.request.prompt)), reverse=True)
        while not self._make_room(self._pages_for_next_tokens(kept)):
            self._retract(kept.pop())
        self._running = [sequence for sequence in self._running if sequence.node is not None]
        self._ratio.raise_after_retraction(kept)

    def _retract(self, sequence: Sequence) -> None:
        """Give up a request's own KV (its cached prefix stays, evictable) and queue it again with its output."""
        self._give_back(sequence)
        sequence.retractions += 1
        self._totals.retractions += 1
        self._waiting.append(sequence)

    def _hand_over(self, sequence: Sequence, tokens: int) -> None:
        """Move the full pages of its first `tokens` into the cache; pages that the cache had already are freed."""
        page = self.config.page_size
        full = tokens // page * page
        assert sequence.node is not None
        if full == sequence.cached:
            return
        request = sequence.request
        inserted = self._cache.insert(sequence.tokens(full), request.namespace, request.session_id)
        if self._host is not None:
            self._host.write_later(sequence.tokens(full), request.namespace)
        handed = (full - sequence.cached) // page
        self._pool.give(handed - inserted.new_tokens // page)
        sequence.private_pages -= handed
        self._cache.lock(inserted.node)
        self._cache.unlock(sequence.node)
        sequence.node, sequence.cached = inserted.node, full

    def _give_back(self, sequence: Sequence) -> None:
        assert sequence.node is not None
        self._pool.give(sequence.private_pages)
        self._cache.unlock(sequence.node)
        sequence.node, sequence.cached, sequence.computed, sequence.private_pages = None, 0, 0, 0
        self._left = True

    def _release(self, sequence: Sequence) -> None:
        """A request leaves: its full pages stay in the cache, as far as its text is known."""
        del self._sequences[sequence.request.rid]
        if sequence.node is not None:
            self._hand_over(sequence, min(sequence.computed, sequence.length - bool(sequence.output)))
            self._give_back(sequence)

    def _reap(self) -> list[Output]:
        """End the aborted requests."""
        aborted, self._doomed = self._doomed, []
        for sequence in aborted:
            self._release(sequence)
            self._totals.aborted += 1
        if aborted:
            self._running = [sequence for sequence in self._running if not sequence.aborted]
            self._waiting.drop_aborted()
            if self._chunked is not None and self._chunked.aborted:
                self._chunked = None
            self._left = True
        return [self._output(sequence, None, Finish("abort")) for sequence in aborted]

    def _without_memory(self) -> list[Sequence]:
        return list(self._waiting)

    def _with_memory(self) -> list[Sequence]:
        return [*self._running, *([self._chunked] if self._chunked else [])]

    def _check(self) -> None:
        """Assert every invariant. O(nodes + requests)."""
        self._cache._check()  # noqa: SLF001 - invariants of a part are part of ours
        if self._host is not None:
            self._host._check()  # noqa: SLF001
        private = sum(sequence.private_pages for sequence in self._sequences.values())
        cached_pages = self._cache.cached_tokens // self.config.page_size
        assert self._pool.free_pages + private + cached_pages == self._pool.pages, "tokens were lost or made up"
        queued = self._without_memory()
        inside = [*queued, *self._with_memory()]
        assert len(inside) == len(self._sequences)
        assert {id(sequence) for sequence in inside} == {id(sequence) for sequence in self._sequences.values()}
        assert len(self._running) <= self.config.running_limit
        for sequence in inside:
            held = sequence.cached + sequence.private_pages * self.config.page_size
            assert sequence.cached <= sequence.computed <= held
            assert (sequence.node is None) == (sequence in queued)
        if not inside:
            assert self._cache.protected_tokens == 0

    def __repr__(self) -> str:
        return f"<Engine: {len(self._running)} running, {len(self._waiting)} waiting, {self._pool!r}, {self._cache!r}>"


@dataclass
class _Totals:
    """The engine's counters."""

    prefill_steps: int = 0
    decode_steps: int = 0
    decode_moments: tuple[float, float, float, float, float, float] = (0.0, 0.0, 0.0, 0.0, 0.0, 0.0)
    requests: int = 0
    finished: int = 0
    aborted: int = 0
    retractions: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    generated_tokens: int = 0
    evicted_tokens: int = 0
    prefill_tokens: int = 0
    prefill_seconds: float = 0.0
    cache_hit_rate: float = 0.0
    generated_tokens_per_second: float = 0.0

    def prefilled(self, new: int, prefix: int, duration: float) -> None:
        self.prefill_steps += 1
        self.prefill_tokens += new
        self.prefill_seconds += duration
        self.cache_hit_rate = prefix / (new + prefix)

    def decoded(self, batch: int, duration: float) -> None:
        self.decode_steps += 1
        micros = duration * 1e6
        added = (1, batch, micros, batch * batch, batch * micros, batch)
        one, size, time, square, product, tokens = (
            total + term for total, term in zip(self.decode_moments, added, strict=True)
        )
        self.decode_moments = (one, size, time, square, product, tokens)
        self.generated_tokens_per_second = batch / duration if duration else 0.0
