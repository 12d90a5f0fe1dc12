"""How many prompt tokens a second each target prefills, learned from what happens."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from events.entry import entry
from router.core import decision_kernels as kernels
from router.core.columns import Columns

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from events.messages import WorkerLoad

_rates = entry(kernels.rates)
DEFAULT_TOKENS_PER_SECOND = 8000.0
"""Assumed until anything was observed: a mid-sized model on one GPU. It matters little: it is the same for all targets."""
HALF_LIFE_TOKENS = 1048576.0
"""A sample's weight halves with each that many tokens prefilled after it: memory is measured in work, not in time. That is about a
hundred long prompts: over fewer of them, chance makes equal targets look unequal, for a long prompt costs more a token."""
PRIOR_TOKENS = 4096.0
"""The fleet's mean rate counts as that many tokens observed on each target."""
DEFAULT_WEIGHT_TOKENS = 1.0
"""… and the default rate as that many observed on the fleet: the first real sample outweighs it."""
SAME_KIND_FACTOR = 1.5
"""Rates closer than this to the fleet's mean are taken for it. A request's fixed cost makes a target that finds much in its cache
look slow: were that believed, the holder of a prefix would lose to its equals. Another kind of GPU is further off."""
OUTLIER_FACTOR = 8.0
"""A sample further than this from what is known counts as if it were exactly that far off."""
PERIOD_SECONDS = 1.0
"""A busy period longer than this is learned from in parts …"""
BATCH_SECONDS = 0.02
"""… cut where no first token came for this long, so that those of one batch stay together …"""
LONGEST_PERIOD_SECONDS = 10.0
"""… or anywhere, when a part has become this long."""
SAMPLE_TOKENS = 256
"""Engine totals are read when they have grown by at least this much."""


class RateStatistics(NamedTuple):
    """Counts since the start."""

    samples: int
    engine_samples: int
    """Of them from the engines' own totals."""
    ignored_samples: int
    """Without tokens or without time, or spoilt by a request that ended before its first token."""


class _EngineTotals(NamedTuple):
    epoch: int
    tokens: int
    busy_seconds: float


class PrefillRates:
    """Prefill tokens per second per target: decayed sums of tokens and busy seconds, shrunk towards the fleet's mean.

    Seconds are those in which the target had at least one request before its first token, so what waits in line, or is batched with
    others, is not counted twice. Where an engine reports its own totals of prefilled tokens and busy seconds, those are used.
    """

    def __init__(self) -> None:
        self._columns = Columns(
            tokens=np.float64,
            seconds=np.float64,
            pending_tokens=np.float64,
            pending_seconds=np.float64,
            busy_since=np.float64,
        )
        self._engine: dict[int, _EngineTotals] = {}
        self._told: set[int] = set()
        self._rates: NDArray[np.float64] = np.empty(0)
        self._stale = False
        self._learned: bool | None = None
        self._samples = self._engine_samples = self._ignored_samples = 0

    def add_target(self, slot: int) -> None:
        """Start a target at the fleet's mean rate."""
        self._columns.reserve(slot + 1)
        self.remove_target(slot)

    def remove_target(self, slot: int) -> None:
        """Forget what a target did; it counts no more for the fleet either."""
        self._columns.reset(slot)
        self._columns["busy_since"][slot] = math.nan
        self._engine.pop(slot, None)
        self._told.discard(slot)
        self._learned, self._stale = None, True

    @property
    def learned(self) -> bool:
        """Whether the rates rest on any observation. O(targets), O(1) while nothing is learned."""
        if self._learned is None:
            self._learned = bool(self._columns["tokens"].any())
        return self._learned

    def rates(self) -> NDArray[np.float64]:
        """Tokens per second, float64 (slots,), always positive; the same array as long as no target is added. O(targets), O(1)
        while nothing is learned.
        """
        if self._stale:
            self._stale = False
            tokens, seconds = self._columns["tokens"], self._columns["seconds"]
            if len(self._rates) != len(tokens):
                self._rates = np.empty(len(tokens))
            weights = (DEFAULT_WEIGHT_TOKENS, DEFAULT_TOKENS_PER_SECOND, PRIOR_TOKENS, SAME_KIND_FACTOR)
            _rates(tokens, seconds, *weights, self._rates)
        return self._rates

    def started(self, slot: int, now: float) -> None:
        """A request was booked: the target is busy from now on, if it was not."""
        busy_since = self._columns["busy_since"]
        if math.isnan(busy_since.item(slot)):
            busy_since[slot] = now

    def prefilled(self, slot: int, tokens: int, now: float, *, still_busy: bool) -> None:
        """A request got its first token, after `tokens` of it were prefilled; others may still wait for theirs."""
        columns = self._columns
        seconds = now - columns["busy_since"].item(slot)
        pending_seconds = columns["pending_seconds"].item(slot)
        if pending_seconds >= (PERIOD_SECONDS if seconds >= BATCH_SECONDS else LONGEST_PERIOD_SECONDS):
            self._close_period(slot)
        columns["pending_tokens"][slot] = columns["pending_tokens"].item(slot) + tokens
        columns["pending_seconds"][slot] = columns["pending_seconds"].item(slot) + seconds
        columns["busy_since"][slot] = now if still_busy else math.nan
        if not still_busy:
            self._close_period(slot)

    def aborted(self, slot: int, now: float, *, still_busy: bool) -> None:
        """A request ended before its first token: how much of it was prefilled is not known, so the period teaches nothing."""
        self._columns["pending_tokens"][slot] = self._columns["pending_seconds"][slot] = 0.0
        self._columns["busy_since"][slot] = now if still_busy else math.nan
        self._ignored_samples += 1

    def report(self, slot: int, load: WorkerLoad) -> None:
        """Learn from an engine's own totals, where it reports them."""
        if load.total_prefill_uncached_tokens is None or load.total_prefill_busy_seconds is None:
            return
        now = _EngineTotals(load.epoch, load.total_prefill_uncached_tokens, load.total_prefill_busy_seconds)
        before = self._engine.get(slot)
        if before is None or before.epoch != now.epoch or now.tokens < before.tokens:
            self._engine[slot] = now  # a first report, or a restarted engine: nothing to compare with
        elif now.tokens - before.tokens >= SAMPLE_TOKENS:
            self._engine[slot] = now
            self._learn_from_engine(slot, now.tokens - before.tokens, now.busy_seconds - before.busy_seconds)

    def statistics(self) -> RateStatistics:
        """Counts. O(1)."""
        return RateStatistics(self._samples, self._engine_samples, self._ignored_samples)

    def _close_period(self, slot: int) -> None:
        tokens = float(self._columns["pending_tokens"][slot])
        seconds = float(self._columns["pending_seconds"][slot])
        self._columns["pending_tokens"][slot] = self._columns["pending_seconds"][slot] = 0.0
        if slot not in self._told:
            self._learn(slot, tokens, seconds)

    def _learn_from_engine(self, slot: int, tokens: float, seconds: float) -> None:
        if slot not in self._told and seconds > 0:
            self._told.add(slot)  # from now on only its own totals count
            self._columns["tokens"][slot] = self._columns["seconds"][slot] = 0.0
            self._learned, self._stale = None, True
        self._engine_samples += self._learn(slot, tokens, seconds)

    def _learn(self, slot: int, tokens: float, seconds: float) -> bool:
        if not (tokens > 0 and 0 < seconds < math.inf):
            self._ignored_samples += 1
            return False
        if self.learned:
            expected = tokens / self.rates().item(slot)
            seconds = min(max(seconds, expected / OUTLIER_FACTOR), expected * OUTLIER_FACTOR)
        fading = 0.5 ** (tokens / HALF_LIFE_TOKENS)
        for name, amount in (("tokens", tokens), ("seconds", seconds)):
            column = self._columns[name]
            column[slot] = column.item(slot) * fading + amount
        self._learned = self._stale = True
        self._samples += 1
        return True

    def _check(self) -> None:
        assert (self.rates() > 0).all()
        assert np.isfinite(self.rates()).all()
        assert np.isfinite(self._columns["pending_seconds"]).all()

    def __repr__(self) -> str:
        return f"PrefillRates({self._columns.slots} slots, {self._samples} samples)"
