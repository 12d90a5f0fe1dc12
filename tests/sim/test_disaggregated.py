"""Two engines share a request out, and what comes out is what one would have said; KV under transfer is never freed."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sim.engine import DecodeEngine, Engine, EngineConfig, PrefillEngine, Request, Stored, TransferTiming

PAGE = 4
CONFIG = EngineConfig(capacity_tokens=512, page_size=PAGE, chunked_prefill_tokens=32, context_length=400)


def prompt(seed: int, length: int) -> np.ndarray:
    return (np.arange(length, dtype=np.uint32) * 7 + seed * 131) % 1000


def alone(request: Request) -> list[int]:
    engine = Engine(CONFIG)
    engine.submit(request, 0.0)
    return [output.token for _ in range(400) for output in engine.step(0.0).outputs if output.token is not None]


class Duo:
    """Both sides, and a wire that delivers when told to."""

    def __init__(self, config: EngineConfig = CONFIG, *, caches: bool = False) -> None:
        self.prefill, self.decode = PrefillEngine(config), DecodeEngine(config, caches=caches)
        self.tokens: dict[str, list[int]] = defaultdict(list)
        self.finished: dict[str, str] = {}
        self.prefill_ends: dict[str, str] = {}
        self.wire: list[tuple[str, int]] = []
        self.cached: dict[str, int] = {}

    def submit(self, request: Request) -> None:
        self.prefill.submit(request, 0.0)
        self.decode.submit(request, 0.0)

    def abort(self, rid: str) -> None:
        self.prefill.abort(rid)
        self.decode.abort(rid)

    def deliver(self) -> None:
        for rid, token in self.wire:
            self.decode.received(rid, token)
            self.prefill.sent(rid)
        self.wire.clear()

    def step(self) -> None:
        for output in self.decode.step(0.0).outputs:
            if output.token is not None:
                self.tokens[output.rid].append(output.token)
            if output.finish is not None:
                self.finished[output.rid] = output.finish.type
        for rid, cached in self.decode.take_allocated():
            self.cached[rid] = cached
            self.prefill.met(rid)
        for output in self.prefill.step(0.0).outputs:
            assert output.finish is not None
            self.prefill_ends[output.rid] = output.finish.type
        self.wire += [(rid, token) for rid, token, _ in self.prefill.take_prefilled()]
        self.prefill._check()
        self.decode._check()

    def run(self, steps: int = 400) -> None:
        for _ in range(steps):
            if not (self.prefill.busy or self.decode.busy):
                return
            self.step()
            self.deliver()
        raise AssertionError(f"{self.prefill!r} and {self.decode!r} do not come to an end")


@pytest.mark.parametrize("caches", [False, True])
def test_two_say_what_one_says(caches: bool) -> None:
    requests = [Request(f"r{i}", prompt(i % 3, 20 + 30 * i), max_new_tokens=1 + 5 * i) for i in range(5)]
    duo = Duo(caches=caches)
    for request in requests:
        duo.submit(request)
    duo.run()
    assert {rid: duo.tokens[rid] for rid in duo.tokens} == {request.rid: alone(request) for request in requests}
    assert set(duo.finished.values()) == set(duo.prefill_ends.values()) == {"length"}
    assert duo.decode.load().used_tokens == duo.prefill.load().used_tokens == 0


def test_a_decode_side_keeps_prefixes_only_when_told_to() -> None:
    for caches in (False, True):
        duo = Duo(caches=caches)
        for rid in ("first", "again"):
            duo.submit(Request(rid, prompt(1, 41), max_new_tokens=9))
            duo.run()
        assert duo.cached == {"first": 0, "again": 40 if caches else 0}
        stored = [change for change in duo.decode.step(0.0).cache_changes if isinstance(change, Stored)]
        assert duo.decode.statistics().evictable_tokens == (48 if caches else 0)
        assert stored == []


def test_nothing_runs_that_waits_for_the_other_side() -> None:
    duo = Duo()
    duo.prefill.submit(Request("r", prompt(0, 30), max_new_tokens=5), 0.0)
    assert duo.prefill.busy
    assert not duo.prefill.runnable
    duo.prefill.met("r")
    assert duo.prefill.runnable
    duo.decode.submit(Request("r", prompt(0, 30), max_new_tokens=5), 0.0)
    assert duo.decode.runnable
    duo.decode.step(0.0)
    assert not duo.decode.runnable


def test_kv_under_transfer_outlives_its_request() -> None:
    duo = Duo()
    duo.submit(Request("r", prompt(0, 30), max_new_tokens=5))
    while not duo.wire:
        duo.step()
    used = duo.prefill.load().used_tokens
    assert (duo.prefill.sending, used > 0) == (1, True)
    duo.prefill.abort("r")
    for _ in range(3):
        duo.step()
    assert (duo.prefill.load().used_tokens, duo.prefill_ends) == (used, {})
    duo.prefill.sent("r")
    duo.step()
    assert (duo.prefill.load().used_tokens, duo.prefill_ends) == (0, {"r": "abort"})


def test_prompts_wait_for_memory_on_the_decode_side() -> None:
    """Two fit beside what they reserve; the third's prefill does not even begin before one ends."""
    duo = Duo(EngineConfig(capacity_tokens=2048, page_size=PAGE, context_length=2000, chunked_prefill_tokens=1024))
    for index in range(3):
        duo.submit(Request(f"r{index}", prompt(index, 500), max_new_tokens=30))
    for _ in range(10):
        duo.step()
        duo.deliver()
    assert set(duo.cached) == {"r0", "r1"}
    duo.run()
    assert set(duo.finished) == {"r0", "r1", "r2"}


def test_a_transfer_takes_time_by_its_tokens() -> None:
    assert TransferTiming().seconds(4096) == pytest.approx(2e-3 + 4096 * 2.6e-6)
    assert TransferTiming(speed=2.0).seconds(0) == 1e-3


ACTIONS = st.lists(
    st.one_of(
        st.tuples(st.just("submit"), st.integers(0, 3), st.integers(1, 120)),
        st.tuples(st.just("abort"), st.integers(0, 20), st.sampled_from(["prefill", "decode", "both"])),
        st.tuples(st.just("step"), st.integers(1, 8), st.booleans()),
    ),
    max_size=40,
)


@settings(derandomize=True, deadline=None, max_examples=80)
@given(ACTIONS, st.booleans())
def test_any_order_of_events_leaves_both_sides_sound(actions: list[tuple[str, int, object]], caches: bool) -> None:
    duo, sent = Duo(caches=caches), dict[str, Request]()
    for number, (kind, first, second) in enumerate(actions):
        if kind == "submit":
            assert isinstance(second, int)
            request = Request(f"r{number}", prompt(first, second), max_new_tokens=1 + number % 7)
            sent[request.rid] = request
            duo.submit(request)
        elif kind == "abort" and sent:
            rid = sorted(sent)[first % len(sent)]
            if second in ("prefill", "both"):
                duo.prefill.abort(rid)
            if second in ("decode", "both"):
                duo.decode.abort(rid)
        elif kind == "step":
            for _ in range(first):
                duo.step()
                if second:
                    duo.deliver()
    for rid in sent:  # whoever lost its other side is told so, as the driver does
        if duo.finished.get(rid) == "abort" or duo.prefill_ends.get(rid) == "abort":
            duo.abort(rid)
    for _ in range(600):
        if not (duo.prefill.busy or duo.decode.busy):
            break
        duo.step()
        duo.deliver()
        for rid in {**duo.finished, **duo.prefill_ends}:
            if "abort" in (duo.finished.get(rid), duo.prefill_ends.get(rid)):
                duo.abort(rid)
    assert not duo.prefill.busy
    assert not duo.decode.busy
    for rid, request in sent.items():
        if duo.finished[rid] != "abort":
            assert duo.tokens[rid] == alone(request)
