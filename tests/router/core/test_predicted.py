import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from router.core.predicted import PredictedPresence

TTL = 10.0


def chain(*path: int) -> np.ndarray:
    """Sequence hashes of the prefixes of a path: equal hashes, equal prefixes."""
    return np.array(
        [1 + int("".join(map(str, path[: depth + 1])), 4) + 4 ** (depth + 2) for depth in range(len(path))], np.uint64
    )


PATHS = st.lists(st.integers(0, 2), max_size=6).map(lambda path: chain(*path))
TARGETS = st.integers(0, 2)


class PredictedAgainstLists(RuleBasedStateMachine):
    """PredictedPresence against a plain list per target, least recently used first: [hash, expiry, authors]."""

    def __init__(self) -> None:
        super().__init__()
        self.predicted = PredictedPresence()
        self.entries: dict[int, list[tuple[int, float, frozenset[int]]]] = {}
        self.capacity: dict[int, int] = {}
        self.now = 0.0
        self.counts = dict.fromkeys(("made", "promoted", "retracted", "expired", "evicted", "cleared"), 0)
        self.made: list[tuple[int, np.ndarray, int]] = []

    @initialize(capacities=st.tuples(*[st.sampled_from([0, 3, 8, 100])] * 3))
    def fleet(self, capacities: tuple[int, ...]) -> None:
        for target, capacity in enumerate(capacities):
            self.predicted.add_target(target, TTL * (target + 1), capacity)
            self.entries[target], self.capacity[target] = [], capacity

    def drop(self, target: int, hashes: set[int], reason: str) -> int:
        before = self.entries[target]
        self.entries[target] = [entry for entry in before if entry[0] not in hashes]
        gone = len(before) - len(self.entries[target])
        self.counts[reason] += gone
        return gone

    def expire_one(self, target: int) -> int:
        return self.drop(
            target, {prefix for prefix, expiry, _ in self.entries[target] if expiry <= self.now}, "expired"
        )

    @rule(slot=TARGETS, hashes=PATHS)
    def predict(self, slot: int, hashes: np.ndarray) -> None:
        author = len(self.made)
        self.made.append((slot, hashes, author))
        self._predict(slot, hashes, author)

    @precondition(lambda self: self.made)
    @rule(data=st.data(), longer=PATHS)
    def predict_again(self, data: st.DataObject, longer: np.ndarray) -> None:
        target, _, author = data.draw(st.sampled_from(self.made))
        self._predict(target, longer, author)

    def _predict(self, target: int, hashes: np.ndarray, author: int) -> None:
        self.expire_one(target)
        wanted = hashes[: self.capacity[target]].tolist()
        known = {prefix: authors for prefix, _, authors in self.entries[target]}
        expiry = self.now + TTL * (target + 1)
        kept = [entry for entry in self.entries[target] if entry[0] not in wanted]
        fresh = [(prefix, expiry, known.get(prefix, frozenset()) | {author}) for prefix in reversed(wanted)]
        new = len(wanted) - len(known.keys() & set(wanted))
        self.entries[target] = kept + fresh
        self.counts["made"] += new
        excess = max(0, len(self.entries[target]) - self.capacity[target])
        self.drop(target, {entry[0] for entry in self.entries[target][:excess]}, "evicted")
        assert self.predicted.predict(target, hashes, self.now, author) == new

    @rule(slot=TARGETS, hashes=PATHS)
    def promote(self, slot: int, hashes: np.ndarray) -> None:
        assert self.predicted.promote(slot, hashes) == self.drop(slot, set(hashes.tolist()), "promoted")

    @precondition(lambda self: self.made)
    @rule(data=st.data())
    def retract(self, data: st.DataObject) -> None:
        target, hashes, author = data.draw(st.sampled_from(self.made))
        alone = {prefix for prefix, _, authors in self.entries[target] if authors == {author}} & set(hashes.tolist())
        assert self.predicted.retract(target, hashes, author) == self.drop(target, alone, "retracted")

    @rule(seconds=st.sampled_from([0.0, 1.0, TTL / 2, TTL, 3 * TTL]))
    def expire(self, seconds: float) -> None:
        self.now += seconds
        assert self.predicted.expire(self.now) == sum(self.expire_one(target) for target in self.entries)
        for target in self.entries:
            assert not any(expiry <= self.now for _, expiry, _ in self.entries[target])

    @rule(seconds=st.sampled_from([1.0, TTL]))
    def pass_time(self, seconds: float) -> None:
        self.now += seconds

    @rule(slot=TARGETS, leaves=st.booleans())
    def clear(self, slot: int, leaves: bool) -> None:
        gone = self.drop(slot, {entry[0] for entry in self.entries[slot]}, "cleared")
        if leaves:
            self.predicted.remove_target(slot)
            self.predicted.add_target(slot, TTL * (slot + 1), self.capacity[slot])
        else:
            assert self.predicted.clear(slot) == gone

    @invariant()
    def holds_the_same(self) -> None:
        self.predicted._check()
        for target, entries in self.entries.items():
            assert self.predicted.held(target).tolist() == [prefix for prefix, _, _ in entries]
            assert self.predicted.held_blocks(target) == len(entries)
        assert self.predicted.statistics()._asdict() == {"blocks": sum(map(len, self.entries.values())), **self.counts}


TestPredicted = PredictedAgainstLists.TestCase
TestPredicted.settings = settings(max_examples=80, stateful_step_count=30, deadline=None, derandomize=True)


def predictions(capacity: int = 100) -> PredictedPresence:
    predicted = PredictedPresence()
    predicted.add_target(0, TTL, capacity)
    return predicted


def test_a_prefix_outlives_its_extensions() -> None:
    predicted = predictions(capacity=4)
    predicted.predict(0, chain(1, 1, 1), 0.0, author=1)
    predicted.predict(0, chain(1, 2, 2), 1.0, author=2)
    assert set(predicted.held(0).tolist()) == {*chain(1, 2, 2).tolist(), chain(1, 1)[-1]}


def test_more_than_fits_keeps_the_beginning() -> None:
    predicted = predictions(capacity=2)
    assert predicted.predict(0, chain(1, 2, 1, 2), 0.0, author=1) == 2
    assert sorted(predicted.held(0).tolist()) == sorted(chain(1, 2).tolist())


def test_reuse_gives_more_time() -> None:
    predicted = predictions()
    predicted.predict(0, chain(1, 2), 0.0, author=1)
    predicted.predict(0, chain(1), 9.0, author=2)
    assert predicted.expire(TTL) == 1
    assert predicted.held(0).tolist() == chain(1).tolist()
    assert predicted.expire(9.0 + TTL) == 1


def test_a_failure_takes_back_only_what_it_alone_predicted() -> None:
    predicted = predictions()
    predicted.predict(0, chain(1), 0.0, author=1)
    predicted.predict(0, chain(1, 2, 2), 0.0, author=2)
    predicted.predict(0, chain(1, 2), 0.0, author=3)
    assert predicted.retract(0, chain(1, 2, 2), author=2) == 1
    assert sorted(predicted.held(0).tolist()) == sorted(chain(1, 2).tolist())


def test_a_known_target_is_not_added_twice() -> None:
    predicted = predictions()
    with pytest.raises(ValueError, match="target 0"):
        predicted.add_target(0, TTL, 10)
    predicted.predict(0, chain(1), 0.0, author=1)
    assert repr(predicted) == "PredictedPresence(1 blocks of 1 targets)"


def test_what_is_past_its_time_was_not_there_before() -> None:
    predicted = predictions()
    predicted.predict(0, chain(1, 2), 0.0, author=1)
    assert predicted.predict(0, chain(1, 2), TTL, author=2) == 2
    assert predicted.statistics().expired == 2
    assert predicted.retract(0, chain(1, 2), author=2) == 2


def test_what_several_count_on_is_taken_back_by_none_of_them() -> None:
    predicted = predictions()
    predicted.predict(0, chain(1), 0.0, author=1)
    assert predicted.predict(0, chain(1), 1.0, author=2) == 0
    assert predicted.retract(0, chain(1), author=2) == 0
    assert predicted.retract(0, chain(1), author=1) == 0
    assert predicted.held(0).tolist() == chain(1).tolist()


def test_an_empty_chain_predicts_nothing() -> None:
    predicted = predictions()
    predicted.predict(0, chain(1), 0.0, author=1)
    assert predicted.predict(0, chain(), TTL, author=2) == 0
    assert predicted.held_blocks(0) == 0
