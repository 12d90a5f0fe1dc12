"""The whole scheduler under arbitrary histories: everything booked is freed once, and its parts agree."""

from itertools import count
from typing import Any

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, rule

from events.messages import BlocksRemoved, BlocksStored, CacheCleared, Tier, WorkerLoad, pack_hashes
from router.core import NoTarget, RoutingRequest, Scheduler, Target
from router.core.policy import create, names

BLOCK_SIZE = 4
FLEET = [Target("w", rank) for rank in range(4)]
TARGETS = st.sampled_from(FLEET)
MODELS = st.sampled_from([None, "small", "large"])


def prompt(branch: int, blocks: int) -> np.ndarray:
    """Three families of prompts that share their first two blocks."""
    return np.array([depth + 1 + (1000 * branch if depth > 1 else 0) for depth in range(blocks)], np.uint64)


PROMPTS = st.builds(prompt, st.integers(0, 2), st.integers(0, 8))


class AnyHistory(RuleBasedStateMachine):
    requests = Bundle("requests")

    @initialize(policy=st.sampled_from(names()))
    def start(self, policy: str) -> None:
        self.scheduler = Scheduler(create(policy), BLOCK_SIZE, seed=3)
        self.numbers = count()
        self.now = 0.0
        self.cards: dict[Target, dict[str, Any]] = {}
        self.available: dict[Target, bool] = {}
        self.booked: dict[str, Target] = {}
        self.elsewhere: dict[str, Target] = {}
        self.exact: dict[tuple[Target, Tier], set[int]] = {}

    @rule(
        where=TARGETS,
        capacity=st.sampled_from([4, 20, 4000]),
        model=st.sampled_from(["small", "large"]),
        exact=st.booleans(),
        page=st.sampled_from([1, 4, 8]),
    )
    def join(self, where: Target, capacity: int, model: str, exact: bool, page: int) -> None:
        if where not in self.cards:
            self.cards[where] = {"capacity_tokens": capacity, "model": model, "exact": exact, "page_size": page}
            self.available[where] = True
            self.scheduler.add_target(where, **self.cards[where])

    @rule(where=TARGETS)
    def leave(self, where: Target) -> None:
        self.cards.pop(where, None)
        expected = {request_id for request_id, target in self.booked.items() if target == where}
        assert set(self.scheduler.remove_target(where)) == expected
        self.booked = {request_id: target for request_id, target in self.booked.items() if target != where}
        self.elsewhere = {request_id: target for request_id, target in self.elsewhere.items() if target != where}
        for tier in Tier:
            self.exact.pop((where, tier), None)

    @rule(where=TARGETS, available=st.booleans())
    def set_available(self, where: Target, available: bool) -> None:
        self.scheduler.set_available(where, available)
        if where in self.cards:
            self.available[where] = available

    @rule(
        target=requests,
        hashes=PROMPTS,
        extra=st.integers(1, 9),
        model=MODELS,
        excluded=st.frozensets(TARGETS, max_size=3),
        pinned=st.none() | TARGETS,
    )
    def place(
        self, hashes: np.ndarray, extra: int, model: str | None, excluded: frozenset[Target], pinned: Target | None
    ) -> str:
        request_id = f"r{next(self.numbers)}"
        asked = RoutingRequest(request_id, hashes, len(hashes) * BLOCK_SIZE + extra, None, excluded, pinned, model)
        eligible = {
            where
            for where, card in self.cards.items()
            if self.available[where]
            and where not in excluded
            and model in (None, card["model"])
            and pinned in (None, where)
        }
        expected = self.scheduler.explain(asked, self.now)
        assert {row.target for row in expected.candidates} == self.cards.keys()
        assert {row.target for row in expected.candidates if row.eligible} == eligible
        try:
            placement = self.scheduler.place(asked, self.now)
        except NoTarget:
            assert not eligible
            assert expected.chosen is None
            return request_id
        assert placement.target in eligible
        assert placement.target == expected.chosen
        assert 0 <= placement.predicted_blocks <= placement.overlap_blocks <= len(hashes)
        assert placement.cached_tokens + placement.uncached_tokens == asked.prompt_tokens
        assert placement.uncached_tokens >= 1
        self.booked[request_id] = placement.target
        return request_id

    @rule(place=st.sampled_from([(0, 1), (0, 2), (2, 3)]))
    def share(self, place: tuple[int, int]) -> None:
        self.scheduler.share(*place, 0.005)

    @rule(target=requests, author=st.sampled_from("xy"), where=TARGETS, hashes=PROMPTS, uncached=st.integers(1, 40))
    def book_elsewhere(self, author: str, where: Target, hashes: np.ndarray, uncached: int) -> str:
        request_id = f"{author}/r{next(self.numbers)}"
        asked = RoutingRequest(request_id, hashes, len(hashes) * BLOCK_SIZE + 1)
        assert self.scheduler.book_elsewhere(author, asked, where, uncached, self.now) == (where in self.cards)
        assert not self.scheduler.book_elsewhere(author, asked, where, uncached, self.now)
        if where in self.cards:
            self.elsewhere[request_id] = where
        return request_id

    @rule(request_id=requests, cached=st.none() | st.integers(0, 40))
    def first_token(self, request_id: str, cached: int | None) -> None:
        self.scheduler.first_token(request_id, cached, self.now)

    @rule(request_id=requests, tokens=st.integers(0, 100))
    def progress(self, request_id: str, tokens: int) -> None:
        self.scheduler.progress(request_id, tokens)

    @rule(request_id=requests, failed=st.booleans(), generated=st.none() | PROMPTS)
    def free(self, request_id: str, failed: bool, generated: np.ndarray | None) -> None:
        self.booked.pop(request_id, None)
        self.elsewhere.pop(request_id, None)
        self.scheduler.free(request_id, self.now, failed=failed, generated=generated)

    @rule(where=TARGETS, hashes=PROMPTS, tier=st.sampled_from(Tier))
    def store(self, where: Target, hashes: np.ndarray, tier: Tier) -> None:
        self.scheduler.apply(where, BlocksStored(pack_hashes(hashes), tier))
        if where in self.cards:
            self.exact.setdefault((where, tier), set()).update(hashes.tolist())

    @rule(where=TARGETS, hashes=PROMPTS, start=st.integers(0, 4), tier=st.sampled_from(Tier))
    def remove(self, where: Target, hashes: np.ndarray, start: int, tier: Tier) -> None:
        self.scheduler.apply(where, BlocksRemoved(pack_hashes(hashes[start:]), tier))
        self.exact.get((where, tier), set()).difference_update(hashes[start:].tolist())

    @rule(where=TARGETS)
    def clear(self, where: Target) -> None:
        self.scheduler.apply(where, CacheCleared())
        for tier in Tier:
            self.exact.pop((where, tier), None)

    @rule(where=TARGETS, device=PROMPTS, host=PROMPTS)
    def restore(self, where: Target, device: np.ndarray, host: np.ndarray) -> None:
        self.scheduler.restore(where, [BlocksStored(pack_hashes(device)), BlocksStored(pack_hashes(host), Tier.HOST)])
        if where in self.cards:
            self.exact[where, Tier.DEVICE], self.exact[where, Tier.HOST] = set(device.tolist()), set(host.tolist())
            self.exact.pop((where, Tier.DISK), None)

    @rule(
        where=TARGETS,
        waiting=st.none() | st.integers(0, 10_000),
        tokens=st.integers(0, 100_000),
        epoch=st.integers(0, 1),
    )
    def report(self, where: Target, waiting: int | None, tokens: int, epoch: int) -> None:
        load = WorkerLoad(where.worker_id, where.rank, epoch, 1, 1, 10, 100, waiting, None, tokens, tokens / 1000)
        self.scheduler.report_load(where, load, self.now)

    @rule(seconds=st.sampled_from([0.0, 0.01, 1.0, 6.0, 200.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @invariant()
    def the_parts_agree(self) -> None:
        self.scheduler._check()
        states = {state.target: state for state in self.scheduler.targets()}
        assert states.keys() == self.cards.keys()
        for where, state in states.items():
            assert set(state.requests) == {request_id for request_id, target in self.booked.items() if target == where}
            assert state.requests_elsewhere == list(self.elsewhere.values()).count(where)
            held = [len(self.exact.get((where, tier), ())) for tier in Tier]
            assert [state.device_blocks, state.host_blocks, state.disk_blocks] == held
            assert state.predicted_blocks <= state.capacity_blocks

    def teardown(self) -> None:
        for author in "xy":
            known = {request_id for request_id in self.elsewhere if request_id.startswith(author)}
            assert self.scheduler.booked_elsewhere(author).keys() == known
        for request_id in [*self.booked, *self.elsewhere]:
            self.scheduler.free(request_id, self.now)
        self.scheduler._check()
        assert self.scheduler.statistics().requests == self.scheduler.statistics().requests_elsewhere == 0
        for state in self.scheduler.targets():
            assert (state.prefill_tokens, state.decode_blocks, state.context_tokens, state.requests) == (0, 0, 0, [])


TestAnyHistory = AnyHistory.TestCase
TestAnyHistory.settings = settings(max_examples=100, stateful_step_count=40, deadline=None, derandomize=True)
