"""The compiled engines against the reference engine: the same steps, tokens, changes and reports at the same times."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sim.engine import Engine, EngineConfig, Removed, Request, StepTiming, Stored
from sim.engine.changes import block_id, page_digests
from sim.fleet import Content, EngineFleet, kernels
from sim.traces import Trace

BLOCK_TOKENS = 24  # no multiple of a page, nor a part of one
TIMING = StepTiming(prefill_floor_seconds=2e-3)


class Workload:
    """Requests to one engine, with their tokens spelled out."""

    def __init__(self, rows):
        """Rows of (second, prompt tokens, output tokens, ids, second of an abort or None)."""
        rows = sorted(rows, key=lambda row: row[0])
        self.aborts = [(row[4], number) for number, row in enumerate(rows) if row[4] is not None]
        self.trace = Trace.open_loop(
            "rows",
            np.array([row[0] for row in rows], float),
            np.array([row[1] for row in rows]),
            np.array([row[2] for row in rows]),
            block_tokens=BLOCK_TOKENS,
            blocks=np.array([id_ for row in rows for id_ in row[3]], np.uint64),
            first_block=np.cumsum([0, *(len(row[3]) for row in rows)]),
        )
        self.content = Content.of(self.trace)
        self.texts = [self._text(number) for number in range(len(rows))]
        self.prompts = [
            text[:length] for text, length in zip(self.texts, self.trace.input_tokens.tolist(), strict=True)
        ]

    def _text(self, number):
        """Prompt and output: named tokens by their ids, the others like no other's."""
        positions = np.arange(self.content.total_tokens[number])
        text = 1_000_000 + 10_000 * number + positions
        named = positions[: self.content.named_tokens[number]]
        text[named] = self.trace.ids(number)[named // BLOCK_TOKENS].astype(int) * BLOCK_TOKENS + named % BLOCK_TOKENS
        return text.astype(np.uint32)


class Script:
    """In the sampler's place: every request goes on with its own text."""

    def __init__(self, workload):
        self.workload = workload
        self.numbers = {id(prompt): number for number, prompt in enumerate(workload.prompts)}

    def read(self, prompt):
        return self.numbers[id(prompt)], len(prompt)

    def next(self, state):
        number, position = state
        return int(self.workload.texts[number][position])

    def append(self, state, _token):
        return state[0], state[1] + 1


class Told:
    """What an engine told."""

    def __init__(self):
        self.outputs, self.changes, self.loads = [], [], []


def reference(workload, config):
    """The reference engine's account."""
    engine, told, now = Engine(config), Told(), 0.0
    engine._sampler = Script(workload)
    engine._changes.take()  # the first says that the cache is empty
    pages = pages_by_id(workload, config.page_size)
    coming, aborts = list(range(len(workload.trace))), sorted(workload.aborts)
    asleep = True
    while coming or not asleep:
        if asleep:
            now = max(now, float(workload.trace.arrival_seconds[coming[0]]))
        while coming and workload.trace.arrival_seconds[coming[0]] <= now:
            number = coming.pop(0)
            length = int(workload.trace.output_tokens[number])
            engine.submit(
                Request(str(number), workload.prompts[number], length, ignore_eos=True),
                float(workload.trace.arrival_seconds[number]),
            )
        while aborts and aborts[0][0] <= now:
            engine.abort(str(aborts.pop(0)[1]))
        step = engine.step(now)
        engine._check()
        if step.load is not None:
            told.loads.append((now, *step.load[:3], *step.load[4:6], *step.load[7:]))
        now += step.duration_seconds
        told.outputs += [(now, *output_of(output)) for output in step.outputs]
        if step.cache_changes:
            told.changes.append((now, [flat(change, pages) for change in step.cache_changes]))
        asleep = step.kind.value == "idle" and not engine.busy
    return told, engine


def output_of(output):
    return int(output.rid), output.cached_tokens, output.retractions, output.finish.type if output.finish else None


def pages_by_id(workload, page_size):
    hashes, pages = workload.content.hashes(page_size), {}
    for number, text in enumerate(workload.texts):
        ids = map(block_id, page_digests(text, page_size, b""))
        pages.update(zip(ids, hashes.of(number, len(text) // page_size).tolist(), strict=True))
    return pages


def flat(change, pages):
    assert isinstance(change, Stored | Removed)
    return (
        kernels.STORED if isinstance(change, Stored) else kernels.REMOVED,
        [pages[page] for page in change.block_ids],
    )


def fleet_account(workload, config, pauses):
    """The kernels' account of the same, with pauses anywhere."""
    fleet, told = EngineFleet(workload.content, [config, config]), Told()
    trace = workload.trace
    for number in range(len(trace)):
        arguments = trace.arrival_seconds[number], trace.input_tokens[number], trace.output_tokens[number]
        fleet.submit(number, 1, *arguments)
    aborts = sorted(workload.aborts)
    for pause in sorted([*pauses, *(time for time, _ in aborts), math.inf]):
        fleet.advance(pause)
        while aborts and aborts[0][0] <= pause:
            fleet.abort(aborts.pop(0)[1])
        for time, number, kind, cached in fleet.notices(math.inf).tolist():
            end = {kernels.FIRST_TOKEN: None, kernels.FINISH: "length", kernels.ABORT: "abort"}[kind]
            told.outputs.append((time, number, max(0, cached), end))
        told.changes += published(fleet, workload, config.page_size)
        told.loads += loads(fleet)
    return told, fleet


def published(fleet, workload, page_size):
    """Publications, as the reference's."""
    state, engine = fleet._state, fleet.engines[1]
    hashes, batches, row = workload.content.hashes(page_size), [], int(engine["published"])
    while row != kernels.NONE:
        change = state.changes[row]
        if not batches or batches[-1][0] != change["time"]:
            batches.append((float(change["time"]), []))
        pages = hashes.of(int(change["owner"]), int(change["end"]) // page_size)
        batches[-1][1].append((int(change["kind"]), pages[int(change["start"]) // page_size :].tolist()))
        row = int(change["next"])
    assert not list(fleet.changes(math.inf, page_size, hashes)) or batches
    return batches


def loads(fleet):
    rows, row = [], int(fleet.engines[1]["loads"])
    while row != kernels.NONE:
        time, following, *values = fleet._state.loads[row].tolist()
        rows.append((time, *values))
        row = following
    assert len(list(fleet.loads(math.inf))) == bool(rows)
    return rows


def joined(batches):
    """Runs of one kind as one list, however they were cut."""
    together = []
    for time, changes in batches:
        for kind, pages in changes:
            if together and together[-1][:2] == (time, kind):
                together[-1][2].extend(pages)
            else:
                together.append((time, kind, list(pages)))
    return together


@st.composite
def workloads(draw):
    chains = draw(st.lists(st.lists(st.integers(0, 3), max_size=12), min_size=1, max_size=4))
    row = st.tuples(
        st.floats(0, 0.6),
        st.integers(1, 260),
        st.one_of(st.integers(1, 30), st.integers(100, 300)),
        st.sampled_from(chains).flatmap(lambda chain: st.integers(0, len(chain)).map(lambda end: chain[:end])),
        st.one_of(st.none(), st.none(), st.floats(0.61, 1.0)),
    )
    return Workload(draw(st.lists(row, min_size=1, max_size=25)))


@pytest.mark.parametrize("page_size", [1, 16, 64])
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_equal_to_the_reference(page_size, data):
    workload = data.draw(workloads())
    config = EngineConfig(
        page_size=page_size,
        capacity_tokens=data.draw(st.integers(400, 1500)),
        chunked_prefill_tokens=data.draw(st.sampled_from([64, 128, 300])),
        max_prefill_tokens=data.draw(st.sampled_from([128, 600])),
        max_running_requests=data.draw(st.sampled_from([None, 3])),
        decode_log_interval=data.draw(st.sampled_from([1, 7, 40])),
        load_interval=data.draw(st.sampled_from([1, 15])),
        prefill_decode_interval=data.draw(st.sampled_from([0, 0, 3])),
        overlap_schedule=data.draw(st.booleans()),
        version=data.draw(st.sampled_from(["0.5.21", "0.5.22", "0.5.23"])),
        timing=TIMING,
    )
    expected, engine = reference(workload, config)
    told, fleet = fleet_account(workload, config, data.draw(st.lists(st.floats(0, 1.2), max_size=4)))
    compare(expected, told, engine, fleet)


def compare(expected, told, engine, fleet):
    first, seen = [], set()
    for time, number, cached, _, end in expected.outputs:
        if number not in seen and end != "abort":
            first.append((time, number, cached, None))
            seen.add(number)
        if end is not None:
            first.append((time, number, cached, end))
    assert told.outputs == first
    assert told.loads == expected.loads
    assert joined(told.changes) == joined(expected.changes)
    totals, row = engine.statistics(), fleet.engines[1]
    for name in ("prefill_steps", "decode_steps", "retractions", "cached_tokens", "generated_tokens", "evicted_tokens"):
        assert row[name] == getattr(totals, name), name
    for name in ("free_tokens", "evictable_tokens", "protected_tokens"):
        assert row[name] == getattr(totals, name), name
    assert fleet.sequences["retractions"].tolist() == [
        max((output[3] for output in expected.outputs if output[1] == number), default=0)
        for number in range(len(fleet.sequences))
    ]


@pytest.mark.parametrize("overlap", [False, True])
def test_equal_where_requests_are_retracted(overlap):
    rows = [(number / 50, 90, 200, [number % 5, number % 7, number % 3], None) for number in range(40)]
    config = EngineConfig(
        page_size=16,
        capacity_tokens=1000,
        chunked_prefill_tokens=128,
        overlap_schedule=overlap,
        version="0.5.21",
        timing=TIMING,
    )
    workload = Workload(rows)
    expected, engine = reference(workload, config)
    told, fleet = fleet_account(workload, config, [])
    compare(expected, told, engine, fleet)
    assert fleet.engines[1]["retractions"] > 0
    assert fleet.engines[1]["evicted_tokens"] > 0


@pytest.mark.parametrize(
    "field", [{"schedule_policy": "lpm"}, {"enable_mixed_chunk": True}, {"eos_after_tokens": 3}, {"host_tokens": 4096}]
)
def test_what_only_the_reference_does_is_refused(field):
    with pytest.raises(ValueError, match="the kernels know no other"):
        EngineFleet(Workload([(0.0, 10, 1, [], None)]).content, [EngineConfig(**field)])
