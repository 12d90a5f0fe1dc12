"""The engine's scheduler: what it computes, keeps, reports; and that nothing is ever lost."""

from typing import ClassVar

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from sim.engine import (
    Cleared,
    Engine,
    EngineConfig,
    Finish,
    Namespace,
    Removed,
    Request,
    StepKind,
    StepTiming,
    Stored,
)
from sim.engine.cache import PrefixCache
from sim.engine.queue import WaitingQueue
from sim.engine.request import Sequence


def array(tokens):
    return np.array(tokens, np.uint32)


def ask(rid, prompt, new=4, **fields):
    return Request(rid, array(prompt), max_new_tokens=new, **fields)


class Run:
    """An engine driven in virtual time, with what came out of it."""

    def __init__(self, **config):
        self.engine = Engine(EngineConfig(**{"capacity_tokens": 2048, "chunked_prefill_tokens": 512, **config}))
        self.now = 0.0
        self.steps = []
        self.tokens = {}
        self.outputs = {}

    def step(self):
        step = self.engine.step(self.now)
        self.engine._check()
        self.now += step.duration_seconds
        self.steps.append(step)
        for output in step.outputs:
            self.outputs[output.rid] = output
            if output.token is not None:
                self.tokens.setdefault(output.rid, []).append(output.token)
        return step

    def until_idle(self):
        begin = len(self.steps)
        while self.engine.busy:
            self.step()
        if self.steps[-1].kind is not StepKind.IDLE:
            self.step()
        return self.steps[begin:]

    def all(self, *requests):
        for request in requests:
            self.engine.submit(request, self.now)
        return self.until_idle()

    @property
    def kinds(self):
        return [step.kind.value for step in self.steps]


def test_a_request_prefills_once_and_decodes_one_token_a_step():
    run = Run()
    run.all(ask("a", range(40), 5))
    assert run.kinds == ["prefill", "decode", "decode", "decode", "decode", "idle"]
    assert len(run.tokens["a"]) == 5
    assert run.outputs["a"].finish == Finish("length")


def test_output_is_a_function_of_the_text_so_far():
    whole, again, resumed = Run(), Run(), Run()
    whole.all(ask("a", range(40), 12))
    again.all(ask("x", range(7), 3), ask("a", range(40), 12))
    assert whole.tokens["a"] == again.tokens["a"]
    resumed.all(ask("a", [*range(40), *whole.tokens["a"][:5]], 7))
    assert resumed.tokens["a"] == whole.tokens["a"][5:]
    other = Run(seed=1)
    other.all(ask("a", range(40), 12))
    assert other.tokens["a"] != whole.tokens["a"]


@pytest.mark.parametrize(
    ("page", "length", "cached"), [(16, 32, 16), (16, 33, 32), (16, 40, 32), (1, 12, 11), (16, 10, 0)]
)
def test_a_repeated_prompt_still_computes_a_token(page, length, cached):
    run = Run(page_size=page)
    run.all(ask("a", range(length), 1))
    run.all(ask("b", range(length), 1))
    assert [run.outputs[rid].cached_tokens for rid in "ab"] == [0, cached]


def test_generated_tokens_but_the_last_are_cached_at_the_end():
    run = Run()
    run.all(ask("a", range(20), 13))  # 32 tokens of KV: 2 pages
    run.all(ask("b", [*range(20), *run.tokens["a"], 7], 1))
    assert run.outputs["b"].cached_tokens == 32


def test_namespaces_share_nothing():
    run = Run()
    spaces = [Namespace(), Namespace("a"), Namespace("b"), Namespace(None, "a"), Namespace("a", "a")]
    for turn in range(2):
        for index, space in enumerate(spaces):
            run.all(ask(f"{turn}{index}", range(40), 1, namespace=space))
    assert [run.outputs[f"0{i}"].cached_tokens for i in range(5)] == [0] * 5
    assert [run.outputs[f"1{i}"].cached_tokens for i in range(5)] == [32] * 5


def test_a_prefill_stalls_decodes_unless_told_otherwise():
    def kinds(interval):
        run = Run(prefill_decode_interval=interval, chunked_prefill_tokens=128)
        run.engine.submit(ask("a", range(16), 30), 0)
        run.step()
        run.engine.submit(ask("b", range(100, 484), 2), 0)
        run.until_idle()
        return run.kinds[1:6]

    assert kinds(0) == ["prefill", "prefill", "prefill", "decode", "decode"]
    assert kinds(1) == ["decode", "prefill", "decode", "prefill", "decode"]


def test_a_long_prompt_is_cut_into_chunks_and_short_ones_share_a_batch():
    run = Run(
        timing=StepTiming(
            prefill_floor_seconds=0, prefill_base_seconds=0, prefill_token_seconds=1e-3, prefill_graph_tokens=0
        )
    )
    steps = run.all(ask("long", range(1100), 1), ask("x", range(2000, 2040), 1), ask("y", range(3000, 3040), 1))
    prefills = [step for step in steps if step.kind is StepKind.PREFILL]
    assert [round(step.duration_seconds, 2) for step in prefills] == [0.51, 0.51, 0.16]
    assert [output.rid for output in prefills[2].outputs] == ["long", "x", "y"]


def test_running_limit_queues_the_rest():
    run = Run(max_running_requests=2)
    for rid in "abc":
        run.engine.submit(ask(rid, [ord(rid)] * 20, 4), 0)
    run.step()
    load = run.engine.load()
    assert (load.running_requests, load.waiting_requests, load.waiting_uncached_tokens) == (2, 1, 20)
    run.until_idle()
    assert all(run.outputs[rid].finish for rid in "abc")
    assert run.outputs["c"].queue_seconds > run.outputs["a"].queue_seconds == 0


def test_a_full_pool_retracts_the_request_with_least_output_and_takes_it_back():
    # Admission counts on 70 % of the output, so three requests of 12 + 60 tokens are let into 200 tokens of memory.
    run, alone = Run(capacity_tokens=200, page_size=1), Run(capacity_tokens=200, page_size=1)
    run.all(*(ask(rid, [ord(rid)] * 12, 60) for rid in "abc"))
    alone.all(ask("c", [ord("c")] * 12, 60))
    assert [run.outputs[rid].retractions for rid in "abc"] == [0, 0, 1]
    assert [len(run.tokens[rid]) for rid in "abc"] == [60, 60, 60]
    assert run.tokens["c"] == alone.tokens["c"]  # retraction does not show in the text
    statistics = run.engine.statistics()
    assert statistics.retractions == 1
    assert statistics.free_tokens + statistics.evictable_tokens == 200


def test_abort_ends_a_request_wherever_it_is_and_keeps_what_was_computed():
    run = Run(max_running_requests=1)
    run.engine.submit(ask("a", range(40), 100), 0)
    run.engine.submit(ask("b", range(100, 140), 100), 0)
    run.step()
    assert run.engine.abort("a")
    assert run.engine.abort("b")
    assert not run.engine.abort("nobody")
    step = run.step()
    assert step.kind is StepKind.IDLE
    assert {(output.rid, output.token, output.finish) for output in step.outputs} == {
        ("a", None, Finish("abort")),
        ("b", None, Finish("abort")),
    }
    run.all(ask("c", range(41), 1), ask("d", range(100, 141), 1))
    assert (run.outputs["c"].cached_tokens, run.outputs["d"].cached_tokens) == (32, 0)


def test_abort_between_two_chunks_keeps_the_first():
    run = Run()
    run.engine.submit(ask("a", range(1500), 1), 0)
    run.step()
    run.engine.abort("a")
    run.until_idle()
    run.all(ask("b", range(1500), 1))
    assert run.outputs["b"].cached_tokens == 512


def test_stop_tokens_and_eos_end_early_unless_ignored():
    free = Run(eos_after_tokens=6)
    free.all(ask("a", range(9), 20), ask("b", range(9), 8, ignore_eos=True))
    assert free.outputs["a"].finish == Finish("stop", 2)
    assert len(free.tokens["a"]) == 6
    assert 2 not in free.tokens["b"]
    third = free.tokens["b"][2]
    assert third not in free.tokens["b"][:2]
    free.all(ask("c", range(9), 8, stop_token_ids=frozenset({third})))
    assert free.outputs["c"].finish == Finish("stop", third)
    assert free.tokens["c"] == free.tokens["b"][:3]


def test_flush_refuses_while_busy_and_publishes_when_idle():
    run = Run()
    run.engine.submit(ask("a", range(40), 3), 0)
    assert not run.engine.flush()
    run.until_idle()
    assert run.engine.flush()
    step = run.step()
    assert step.cache_changes == [Cleared()]
    assert run.engine.statistics().free_tokens == 2048


def test_changes_come_with_prefills_every_interval_and_at_rest():
    run = Run(decode_log_interval=10)
    steps = run.all(ask("short", range(20), 14), ask("long", range(100, 140), 34))
    published = [(index, step.kind.value) for index, step in enumerate(steps) if step.cache_changes]
    # 0: the start's Cleared and both prompts; 20: what "short" generated, which ended at step 13; last: what "long" did
    assert published == [(0, "prefill"), (20, "decode"), (len(steps) - 1, "idle")]


def test_load_reports_every_load_interval_and_with_each_prefill():
    run = Run()
    steps = run.all(ask("a", range(20), 40))
    loads = [(step.load.running_requests, step.load.used_tokens) for step in steps if step.load]
    assert loads == [(0, 32), (1, 48), (1, 64), (0, 0)]


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (ask("a", []), "empty"),
        (ask("a", range(3000)), r"Input length \(3000 tokens\) exceeds the maximum allowed length \(2042 tokens\)"),
        (ask("a", [1], -1), "max_new_tokens"),
        (ask("twice", [1]), "Duplicate request ID detected: twice"),
    ],
)
def test_bad_requests_are_refused(request_, message):
    run = Run()
    run.engine.submit(ask("twice", [1]), 0)
    with pytest.raises(ValueError, match=message):
        run.engine.submit(request_, 0)


@pytest.mark.parametrize(
    "bad",
    [
        {"page_size": 0},
        {"capacity_tokens": 3},
        {"chunked_prefill_tokens": 1},
        {"max_running_requests": 0},
        {"context_length": 4},
        {"eos_after_tokens": 0},
        {"schedule_policy": "sjf"},
        {"version": "main"},
    ],
)
def test_bad_options_name_themselves(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        EngineConfig(**bad)


def test_an_overlapped_step_is_planned_before_the_one_before_it_brought_its_tokens():
    run = Run(overlap_schedule=True, chunked_prefill_tokens=64)
    run.engine.submit(ask("a", range(40), 3), 0)
    run.step()  # a's prefill; its first decode is launched by now
    run.engine.submit(ask("b", range(100, 140), 3), 0)
    run.until_idle()
    assert run.kinds == ["prefill", "decode", "prefill", "decode", "decode", "idle"]
    assert [[output.rid for output in step.outputs] for step in run.steps[:-1]] == [
        ["a"],
        ["a"],
        ["b"],
        ["a", "b"],
        ["b"],
    ]


def test_what_a_step_in_flight_computes_is_not_in_the_cache_yet():
    def cached(**config):
        run = Run(chunked_prefill_tokens=48, **config)
        run.all(ask("a", range(40), 1), ask("b", range(48), 1))
        return run.outputs["b"].cached_tokens

    assert (cached(), cached(overlap_schedule=True)) == (32, 0)


@pytest.mark.parametrize(("version", "sequences"), [("0.5.21", [2, 2, 2, 1, 1]), ("0.5.22", [2, 2, 1, 1])])
def test_older_schedulers_decode_a_request_once_more_while_its_last_token_is_in_flight(version, sequences):
    seen = []

    class Watched(StepTiming):
        def decode_seconds(self, count, kv_tokens, capacity_tokens):
            seen.append(count)
            return super().decode_seconds(count, kv_tokens, capacity_tokens)

    run = Run(overlap_schedule=True, version=version, timing=Watched())
    run.engine.submit(ask("a", range(40), 5), 0)
    run.engine.submit(ask("b", range(100, 140), 3), 0)
    run.until_idle()
    assert seen == sequences
    assert [len(run.tokens[rid]) for rid in "ab"] == [5, 3]


def test_requests_that_ignore_eos_reserve_their_whole_output():
    def running(version):
        run = Run(capacity_tokens=208, page_size=1, version=version)
        run.engine.submit(ask("a", range(10), 100, ignore_eos=True), 0)
        run.step()
        run.engine.submit(ask("b", range(50, 60), 100, ignore_eos=True), 0)
        run.step()
        return run.engine.load().running_requests

    assert (running("0.5.21"), running("0.5.22")) == (2, 1)


def test_the_expected_share_of_outputs_begins_anew_when_idle():
    run = Run()
    run.all(ask("a", range(40), 50))
    assert run.engine._ratio.value == run.engine._ratio.START
    run.engine.submit(ask("a", range(40), 50), 0)
    for _ in range(10):
        run.step()
    assert run.engine._ratio.value < run.engine._ratio.START


def test_the_longest_cached_prefix_goes_first_and_one_of_those_that_share_a_new_one():
    run = Run(schedule_policy="lpm", chunked_prefill_tokens=128)
    run.all(ask("seed", range(1000, 1200), 1))
    fresh, same, warm = array(range(160)), array([*range(100), *range(300, 360)]), array(range(1000, 1201))
    for rid, prompt in {"fresh": fresh, "same": same, "warm": warm}.items():
        run.engine.submit(Request(rid, prompt, 1), run.now)
    order = [output.rid for step in run.until_idle() for output in step.outputs]
    assert order == ["warm", "fresh", "same"]
    assert (run.outputs["warm"].cached_tokens, run.outputs["same"].cached_tokens) == (192, 96)


def test_a_mixed_prefill_takes_the_running_requests_along():
    run = Run(enable_mixed_chunk=True, chunked_prefill_tokens=65)
    run.engine.submit(ask("a", range(40), 6), 0)
    run.step()
    run.engine.submit(ask("b", range(100, 260), 2), 0)
    run.until_idle()
    assert run.kinds == ["prefill", "prefill", "prefill", "prefill", "decode", "decode", "idle"]
    assert [[output.rid for output in step.outputs] for step in run.steps[1:5]] == [
        ["a"],
        ["a"],
        ["b", "a"],
        ["a", "b"],
    ]
    alone = Run()
    alone.all(ask("a", range(40), 6))
    assert run.tokens["a"] == alone.tokens["a"]


def test_prefixes_that_the_queue_waits_for_are_used_each_32nd_pass():
    def survivor(passes):
        cache, queue = PrefixCache(page_size=1), WaitingQueue()
        queue.append(Sequence(ask("waits", range(11)), max_new_tokens=1))
        for _ in range(passes):
            queue.refresh(cache)
        cache.insert(array(range(10)), Namespace())
        cache.insert(array(range(100, 110)), Namespace())
        queue.refresh(cache)
        cache.evict(10)
        return cache.match(array(range(10)), Namespace()).tokens

    assert [survivor(passes) for passes in (0, 1, 31, 32)] == [10, 0, 0, 10]


class EngineUnderRandomLoad(RuleBasedStateMachine):
    """A small pool, long outputs, shared prefixes, aborts and flushes: the invariants hold at each step."""

    options: ClassVar[dict] = {}

    def __init__(self):
        super().__init__()
        config = EngineConfig(
            capacity_tokens=96,
            page_size=4,
            chunked_prefill_tokens=16,
            max_running_requests=4,
            decode_log_interval=3,
            vocabulary=np.arange(5, dtype=np.uint32),
            eos_token=99,
            **self.options,
        )
        self.engine = Engine(config)
        self.ids = 0
        self.open = {}
        self.mirror = []

    @rule(seed=st.integers(0, 3), length=st.integers(1, 60), new=st.integers(1, 60), key=st.sampled_from([None, "k"]))
    def submit(self, seed, length, new, key):
        prompt = [seed, *(i % 5 for i in range(length - 1))]
        rid = str(self.ids)
        self.ids += 1
        self.engine.submit(ask(rid, prompt, new, namespace=Namespace(key)), 0)
        self.open[rid] = [min(new, 96 - 2 - length), 0]

    @rule(index=st.integers(0, 10))
    def abort(self, index):
        if self.open:
            assert self.engine.abort(sorted(self.open)[index % len(self.open)])

    @rule(count=st.integers(1, 12))
    def steps(self, count):
        for _ in range(count):
            self.step()

    @rule()
    def flush(self):
        assert self.engine.flush() == (not self.engine.busy)

    def step(self):
        step = self.engine.step(0)
        for output in step.outputs:
            wanted = self.open[output.rid]
            wanted[1] += output.token is not None
            if output.finish is not None:
                assert output.finish.type == "abort" or wanted[0] == wanted[1]
                del self.open[output.rid]
        for change in step.cache_changes:
            match change:
                case Cleared():
                    self.mirror.clear()
                case Removed(ids):
                    for one in ids:
                        self.mirror.remove(one)
                case Stored(ids, parent, tokens):
                    assert parent is None or parent in self.mirror
                    assert len(tokens) == 4 * len(ids)
                    self.mirror.extend(ids)
        return step

    @invariant()
    def nothing_is_lost(self):
        self.engine._check()
        assert self.engine.busy >= bool(self.open)
        assert self.engine.load().used_tokens <= 96

    def teardown(self):
        for _ in range(20_000):
            if not self.engine.busy:
                break
            self.step()
        assert not self.open, "requests starved"
        self.step()
        self.engine._check()
        statistics = self.engine.statistics()
        assert 4 * len(self.mirror) == statistics.evictable_tokens == 96 - statistics.free_tokens


class OverlappedEngine(EngineUnderRandomLoad):
    options: ClassVar[dict] = {"overlap_schedule": True}


class OldOverlappedEngine(EngineUnderRandomLoad):
    options: ClassVar[dict] = {"overlap_schedule": True, "version": "0.5.17"}


class MixedEngine(EngineUnderRandomLoad):
    options: ClassVar[dict] = {"overlap_schedule": True, "enable_mixed_chunk": True, "schedule_policy": "lpm"}


SETTINGS = settings(max_examples=30, stateful_step_count=30, deadline=None, derandomize=True)
TestEngineUnderRandomLoad = EngineUnderRandomLoad.TestCase
TestEngineUnderRandomLoad.settings = SETTINGS
TestOverlappedEngine = OverlappedEngine.TestCase
TestOverlappedEngine.settings = SETTINGS
TestOldOverlappedEngine = OldOverlappedEngine.TestCase
TestOldOverlappedEngine.settings = SETTINGS
TestMixedEngine = MixedEngine.TestCase
TestMixedEngine.settings = SETTINGS
