"""The memory of the kernels, and calls with names."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from sim.engine.config import FIXED_LENGTHS_KNOWN, LEAVING_NOTICED_AT_ONCE
from sim.fleet import kernels
from sim.fleet.state import CHANGE, ENGINE, LOAD, NODE, NOTICE, SEQUENCE, STEP, State

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from sim.engine import EngineConfig
    from sim.fleet.content import Content, Hashes

_NODES, _CHANGES, _LOADS, _NOTICES = 1 << 10, 1 << 12, 1 << 10, 1 << 10
"""Rows to begin with; arrays double when the kernels ask for more."""
_ONLY = {"schedule_policy": "fcfs", "enable_mixed_chunk": False, "eos_after_tokens": None, "host_tokens": 0}
"""Options of which the kernels know one value."""
_TAKEN_HASHES, _TAKEN_RUNS = 1 << 16, 1 << 10
"""Changes are handed over in portions of at most so many hashes (or one change's), and so many runs."""


class Changes(NamedTuple):
    """What one engine's cache holds, or no longer holds, by what it published."""

    engine: int
    stored: bool
    hashes: NDArray[np.uint64]
    """Sequence hashes of routing blocks: a view, overwritten soon."""


class EngineFleet:
    """Engines in virtual time, all advanced by one call: equal to `sim.engine.Engine` step by step.

    A *sequence* is a request in an engine: row `leg · n + request` of `sequences`, n being the number of requests of the content.

    :param configs: one per engine. `record_changes` and the vocabulary do not matter here; every output is as long as was asked
        for, and all engines know that (SGLang's `ignore_eos`).
    :param legs: how often a request can be in engines at once.
    :param event_loss: share of publications that are lost, by chance from `seed`.
    :raises ValueError: a configuration asks for what only the reference engine does.
    """

    def __init__(
        self,
        content: Content,
        configs: Sequence[EngineConfig],
        *,
        legs: int = 1,
        event_loss: float = 0.0,
        seed: int = 0,
    ) -> None:
        for config in configs:
            _check(config)
        self.configs = tuple(configs)
        self.content = content
        self._limits = [(config.max_input_tokens, config.max_sequence_tokens) for config in configs]
        parameters = [config.timing.parameters() for config in configs]
        running = max(config.running_limit for config in configs)
        self._state = State(
            engines=np.zeros(len(configs), ENGINE),
            sequences=np.zeros(legs * len(content), SEQUENCE),
            nodes=np.zeros(_NODES, NODE),
            slots=np.zeros(4 * _NODES, np.uint64),
            changes=np.zeros(0, CHANGE),
            loads=np.zeros(0, LOAD),
            notices=np.zeros(_NOTICES, NOTICE),
            running=np.zeros((len(configs), running), np.int32),
            steps=np.zeros(2 * len(configs), STEP),
            flying=np.zeros((2 * len(configs), running + 1), np.int32),
            parameters=_as_rows([numbers for _, numbers in parameters]),
            counts=np.zeros(kernels.COUNTS, np.int64),
            gaps=np.zeros(kernels.GAP_BINS, np.int64),
            numbers=np.zeros(kernels.NUMBERS),
            blocks=_writable(content.blocks),
            first_block=_writable(content.first_block),
            named=_writable(content.named_tokens),
            block_tokens=np.array([content.block_tokens]),
        )
        self._state.counts[[kernels.FREE_NODE, kernels.FREE_CHANGE, kernels.FREE_LOAD]] = kernels.NONE
        self._state.counts[kernels.LOSS_SEED] = seed
        self._state.numbers[kernels.LOSS] = event_loss
        self._grow_chain("changes", kernels.FREE_CHANGE, _CHANGES)
        self._grow_chain("loads", kernels.FREE_LOAD, _LOADS)
        self._grow_nodes(max(_NODES, 2 * len(configs)))
        self._set_up_sequences()
        for number, (config, (kind, _)) in enumerate(zip(configs, parameters, strict=True)):
            self._set_up_engine(number, config, kind)
        self._taken_hashes = np.empty(0, np.uint64)
        self._runs = np.empty((_TAKEN_RUNS, 4), np.int64)
        self._taken_loads = np.zeros(len(configs), LOAD)
        self._taken_numbers = np.zeros(len(configs), np.int64)

    @property
    def sequences(self) -> NDArray[np.void]:
        """`SEQUENCE`, one row per leg and request; the kernels' own."""
        rows: NDArray[np.void] = self._state.sequences
        return rows

    @property
    def engines(self) -> NDArray[np.void]:
        """`ENGINE`, one row per engine; the kernels' own."""
        rows: NDArray[np.void] = self._state.engines
        return rows

    @property
    def gaps(self) -> NDArray[np.int64]:
        """Token gaps by length, see `gap_edges`."""
        bins: NDArray[np.int64] = self._state.gaps
        return bins

    def submit(
        self,
        sequence: int,
        engine: int,
        time: float,
        prompt_tokens: int,
        max_new_tokens: int,
        *,
        built: bool = False,
    ) -> None:
        """A request comes to an engine at a time not before the last `advance`. O(1) where they come in order.

        :param built: it comes with its prompt's KV and first token from another engine, and only decodes here.
        :raises ValueError: the engine could never take it.
        """
        longest_input, longest = self._limits[engine]
        if not 0 < prompt_tokens < longest_input:
            raise ValueError(f"a prompt of {prompt_tokens} tokens does not fit: at most {longest_input - 1}")
        limit = min(max_new_tokens, longest - prompt_tokens - 1)
        kernels.submit(self._state, sequence, engine, time, prompt_tokens, limit, built)

    def abort(self, sequence: int) -> None:
        """End a request at its engine's next step. O(1)."""
        kernels.abort(self._state, sequence, int(self._state.sequences[sequence]["engine"]))

    def withdraw(self, sequence: int) -> None:
        """Take a request out of its engine at once, if it is in one; nothing is told of it. O(requests there)."""
        kernels.withdraw(self._state, sequence)

    def clear(self, engine: int) -> NDArray[np.int64]:
        """An engine's process is gone, and another one takes its place; returns the sequences that were inside. O(everything)."""
        rows = self._state.sequences
        inside = (rows["engine"] == engine) & (rows["place"] != kernels.ENDED) & (rows["place"] != kernels.NOWHERE)
        kernels.clear(self._state, engine)
        return np.flatnonzero(inside)

    def advance(self, until: float, lookahead: float = math.inf, engines: range | None = None) -> float:
        """Run every step that begins before `until`; returns how far that went.

        :param lookahead: go only as far as to the next notice, and with no engine further ahead of it than so many seconds.
        :param engines: only these.
        """
        chosen = engines or range(len(self.configs))
        while lack := kernels.advance(self._state, chosen.start, chosen.stop, until, lookahead):
            self._grow(lack)
        return float(self._state.numbers[kernels.REACHED])

    def running(self, engine: int) -> NDArray[np.int32]:
        """The sequences that decode in an engine: a view."""
        rows: NDArray[np.int32] = self._state.running[engine, : self._state.engines["running"][engine]]
        return rows

    def next_step(self) -> float:
        """When the next step begins; infinite when all engines rest. O(engines)."""
        return float(self._state.engines["begin"].min())

    def notices(self, until: float) -> NDArray[np.void]:
        """What was there to be noticed by then, in order of time: `NOTICE`. They are handed over once."""
        taken = np.empty(int(self._state.counts[kernels.NOTICES]), NOTICE)
        return taken[: kernels.take_notices(self._state, until, taken)]

    def changes(self, until: float, block_size: int, hashes: Hashes) -> Iterator[Changes]:
        """What the engines published by then, engine by engine; handed over once."""
        if not len(self._taken_hashes):
            longest = int(self.content.total_tokens.max(initial=1))
            self._taken_hashes = np.empty(max(_TAKEN_HASHES, longest // block_size + 1), np.uint64)
        while count := kernels.take_changes(
            self._state, until, block_size, hashes.values, hashes.first, self._taken_hashes, self._runs
        ):
            for engine, kind, begin, end in self._runs[:count].tolist():
                yield Changes(engine, kind == kernels.STORED, self._taken_hashes[begin:end])

    def loads(self, until: float) -> Iterator[tuple[int, NDArray[np.void]]]:
        """Each engine's last report until then, if there was a new one: its number and a row of `LOAD`."""
        count = kernels.take_loads(self._state, until, self._taken_loads, self._taken_numbers)
        return zip(self._taken_numbers[:count].tolist(), self._taken_loads[:count], strict=True)

    def most_held(self, request: int, prompt_tokens: int, engines: range) -> int:
        """The most that a request would find now in the cache of any of these engines, in tokens; counts as no use. O(n)."""
        return int(kernels.most_held(self._state, request, prompt_tokens, engines.start, engines.stop))

    # ---- set-up and growth

    def _set_up_sequences(self) -> None:
        rows = self._state.sequences
        rows["request"] = np.arange(len(rows)) % max(1, len(self.content))
        rows["engine"] = rows["node"] = rows["first_match"] = kernels.NONE
        for name in ("submitted_at", "queue_seconds", "first_token_seconds", "last_token_seconds", "finish_seconds"):
            rows[name] = np.nan

    def _set_up_engine(self, number: int, config: EngineConfig, timing: int) -> None:
        engine, root = self._state.engines[number], self._state.nodes[number]
        engine["page_size"] = config.page_size
        engine["capacity_tokens"] = config.capacity_tokens // config.page_size * config.page_size
        engine["chunk_tokens"], engine["input_tokens"] = config.chunked_prefill_tokens, config.max_prefill_tokens
        engine["running_limit"], engine["log_interval"] = config.running_limit, config.decode_log_interval
        engine["load_interval"], engine["prefill_interval"] = config.load_interval, config.prefill_decode_interval
        engine["timing"], engine["root"] = timing, number
        engine["knows_lengths"] = config.release >= FIXED_LENGTHS_KNOWN
        engine["notices_at_once"] = config.release >= LEAVING_NOTICED_AT_ONCE
        engine["overlaps"], engine["flight"] = config.overlap_schedule, kernels.NONE
        root["parent"], root["engine"] = kernels.NONE, number
        self._state.counts[kernels.NODE_TOP] += 1
        self._state.counts[kernels.NODES] += 1
        engine["pending"] = engine["published"] = engine["loads"] = kernels.NONE
        kernels.clear(self._state, number)

    def _grow(self, lack: int) -> None:
        state = self._state
        if lack == kernels.MORE_NODES:
            self._grow_nodes(2 * len(state.nodes))
        elif lack == kernels.MORE_CHANGES:
            self._grow_chain("changes", kernels.FREE_CHANGE, 2 * len(state.changes))
        elif lack == kernels.MORE_LOADS:
            self._grow_chain("loads", kernels.FREE_LOAD, 2 * len(state.loads))
        else:
            self._state = state._replace(notices=_longer(state.notices, 2 * len(state.notices)))

    def _grow_nodes(self, rows: int) -> None:
        slots = np.zeros(1 << (2 * rows - 1).bit_length(), np.uint64)
        self._state = self._state._replace(nodes=_longer(self._state.nodes, rows), slots=slots)
        kernels.rehash(self._state)

    def _grow_chain(self, name: str, free: int, rows: int) -> None:
        before: NDArray[np.void] = getattr(self._state, name)
        after = _longer(before, rows)
        after["next"][len(before) :] = [*range(len(before) + 1, rows), self._state.counts[free]]
        self._state.counts[free] = len(before)
        self._state = self._state._replace(**{name: after})

    def __repr__(self) -> str:
        engines = self._state.engines
        inside = engines["running"].sum() + engines["waiting_requests"].sum()
        return f"<EngineFleet: {len(engines)} engines, {inside} requests, {self._state.counts[kernels.NODES]} nodes>"


def gap_edges() -> NDArray[np.float64]:
    """Seconds at which the bins of `EngineFleet.gaps` begin, and the end of the last: shape (bins + 1,)."""
    bins = np.arange(kernels.GAP_BINS + 1)
    edges: NDArray[np.float64] = 2.0 ** (bins // 16 - 20) * (1 + bins % 16 / 16)
    return edges


def _check(config: EngineConfig) -> None:
    for field, only in _ONLY.items():
        if getattr(config, field) != only:
            raise ValueError(f"{field} must be {only} here, not {getattr(config, field)}: the kernels know no other")


def _longer(rows: NDArray[Any], length: int) -> NDArray[Any]:
    longer = np.zeros(length, rows.dtype)
    longer[: len(rows)] = rows
    return longer


def _as_rows(numbers: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
    rows = np.zeros((len(numbers), max(map(len, numbers))))
    for row, values in zip(rows, numbers, strict=True):
        row[: len(values)] = values
    return rows


def _writable(array: NDArray[Any]) -> NDArray[Any]:
    """The kernels take arrays that may be written; they do not write to these."""
    return array if array.flags.writeable else array.copy()
