import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from events.messages import Tier
from router.core.index import PrefixIndex
from router.core.presence import PresenceTable

PREFIXES = st.lists(st.integers(0, 15).map(lambda n: n * 0x0FFF_FFFF_FFFF_FFFF), max_size=8)


def u64(*values: int) -> np.ndarray:
    return np.array(values, np.uint64)


class IndexAgainstSets(RuleBasedStateMachine):
    """PrefixIndex and plain sets, given the same, tell the same."""

    targets = 8

    def __init__(self) -> None:
        super().__init__()
        self.index = PrefixIndex()
        self.held: dict[tuple[int, Tier], set[int]] = {}

    def target(self, number: int) -> int:
        return number * (self.targets - 1) // 4  # a few slots, the last among them, so that they meet each other

    @rule(number=st.integers(0, 4), hashes=PREFIXES, tier=st.sampled_from(Tier))
    def store(self, number: int, hashes: list[int], tier: Tier) -> None:
        held = self.held.setdefault((self.target(number), tier), set())
        assert self.index.store(self.target(number), u64(*hashes), tier) == len(set(hashes) - held)
        held.update(hashes)

    @rule(number=st.integers(0, 4), hashes=PREFIXES, tier=st.sampled_from(Tier))
    def remove(self, number: int, hashes: list[int], tier: Tier) -> None:
        held = self.held.setdefault((self.target(number), tier), set())
        before = self.index.statistics().unknown_removals
        known = len(set(hashes) & held)
        assert self.index.remove(self.target(number), u64(*hashes), tier) == known
        assert self.index.statistics().unknown_removals - before == len(hashes) - known
        held.difference_update(hashes)

    @rule(number=st.integers(0, 4))
    def clear(self, number: int) -> None:
        gone = sum(len(self.held.pop((self.target(number), tier), ())) for tier in Tier)
        assert self.index.clear(self.target(number)) == gone

    @rule(prompt=PREFIXES.filter(lambda hashes: len(set(hashes)) == len(hashes)))
    def match(self, prompt: list[int]) -> None:
        overlap = self.index.match(u64(*prompt), self.targets)
        kinds = [(Tier.DEVICE,), (Tier.DEVICE, Tier.HOST), tuple(Tier)]
        for target in range(self.targets):
            reach = []
            for tiers in kinds:
                known = set().union(*(self.held.get((target, tier), set()) for tier in tiers))
                reach.append(next((depth for depth, prefix in enumerate(prompt) if prefix not in known), len(prompt)))
            assert [blocks[target] for blocks in overlap] == [reach[0], reach[1] - reach[0], reach[2] - reach[1], 0]
            assert overlap.cached_blocks()[target] == reach[2]

    @rule(number=st.integers(0, 4), prefixes=PREFIXES)
    def hold(self, number: int, prefixes: list[int]) -> None:
        target = self.target(number)
        known = set().union(*(self.held.get((target, tier), set()) for tier in Tier))
        assert [prefix for prefix in prefixes if self.index.holds(target, prefix)] == [
            p for p in prefixes if p in known
        ]

    @invariant()
    def holds_the_same(self) -> None:
        self.index._check()
        for (target, tier), held in self.held.items():
            snapshot = self.index.held(target, tier)
            assert snapshot.dtype == np.uint64
            assert sorted(snapshot.tolist()) == sorted(held)
            assert self.index.held_blocks(target, tier) == len(held)
        counts = self.index.statistics()
        for tier in Tier:
            sets = [held for (_, its), held in self.held.items() if its is tier]
            assert counts.blocks[tier] == sum(map(len, sets))
            assert counts.prefixes[tier] == len(set().union(*sets))


class With64(IndexAgainstSets):
    targets = 64


class With65(IndexAgainstSets):
    targets = 65


class With256(IndexAgainstSets):
    targets = 256


class With1024(IndexAgainstSets):
    targets = 1024


SETTINGS = settings(max_examples=40, stateful_step_count=25, deadline=None, derandomize=True)
TestWith8 = IndexAgainstSets.TestCase
TestWith64 = With64.TestCase
TestWith65 = With65.TestCase
TestWith256 = With256.TestCase
TestWith1024 = With1024.TestCase
TestWith8.settings = TestWith64.settings = TestWith65.settings = TestWith256.settings = TestWith1024.settings = SETTINGS


def test_tiers_extend_each_other() -> None:
    index = PrefixIndex()
    index.store(0, u64(1, 2))
    index.store(0, u64(2, 3), Tier.HOST)
    index.store(0, u64(4), Tier.DISK)
    overlap = index.match(u64(1, 2, 3, 4, 5), 1)
    assert [int(blocks[0]) for blocks in overlap] == [2, 1, 1, 0]


def test_predictions_count_only_beyond_what_is_exact() -> None:
    index, predicted = PrefixIndex(), PresenceTable()
    index.store(0, u64(1, 2))
    predicted.add(0, [1, 2, 3])
    predicted.add(1, [1])
    overlap = index.match(u64(1, 2, 3), 2, predicted)
    assert overlap.device_blocks.tolist() == [2, 0]
    assert overlap.predicted_blocks.tolist() == [1, 1]


def test_a_hole_ends_the_match_until_it_is_mended() -> None:
    index = PrefixIndex()
    index.store(3, u64(1, 2, 3))
    index.remove(3, u64(2))
    assert index.match(u64(1, 2, 3), 4).device_blocks.tolist() == [0, 0, 0, 1]
    index.store(3, u64(2))
    assert index.match(u64(1, 2, 3), 4).device_blocks.tolist() == [0, 0, 0, 3]


def test_a_cleared_number_can_be_given_away() -> None:
    index = PrefixIndex()
    index.store(0, u64(1, 2))
    index.store(0, u64(1), Tier.HOST)
    assert index.clear(0) == 3
    assert index.match(u64(1, 2), 1).cached_blocks().tolist() == [0]
    assert index.store(0, u64(2)) == 1


def test_what_is_ignored_is_counted() -> None:
    index = PrefixIndex()
    index.store(0, u64(1, 2))
    assert index.store(0, u64(2, 3)) == 1
    assert index.remove(0, u64(3, 9), Tier.DEVICE) == 1
    assert index.remove(0, u64(1), Tier.HOST) == 0
    counts = index.statistics()
    assert (counts.stored, counts.already_held, counts.removed, counts.unknown_removals) == (3, 1, 1, 2)
    assert repr(index) == "PrefixIndex(2 device, 0 host, 0 disk blocks)"


def chains(count: int, length: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 1 << 64, (count, length), np.uint64)


def test_it_grows_and_shrinks_without_losing_any() -> None:
    index, prompts = PrefixIndex(), chains(40, 200)
    sizes = [index.statistics().bytes]
    for number, prompt in enumerate(prompts):
        for start in range(0, 200, 40):
            assert index.store(number % 7, prompt[start : start + 40]) == 40
        sizes.append(index.statistics().bytes)
        for earlier in range(number + 1):
            assert index.match(prompts[earlier], 7).device_blocks[earlier % 7] == 200
    index._check()
    assert len(set(sizes)) > 5
    assert 0.4 <= index.statistics().load_factor <= 0.8
    for number, prompt in enumerate(prompts[:-1]):
        assert index.remove(number % 7, prompt[::-1]) == 200
    index._check()
    assert index.match(prompts[-1], 7).device_blocks[39 % 7] == 200
    assert index.statistics().bytes < max(sizes) / 4


def test_a_prompt_that_was_stored_piecemeal_still_matches() -> None:
    index, prompts = PrefixIndex(), chains(8, 100)
    for position in range(100):
        for target, prompt in enumerate(prompts):
            index.store(target, prompt[position : position + 1])
    for target, prompt in enumerate(prompts):
        assert index.match(prompt, 8).device_blocks.tolist() == [100 * (one == target) for one in range(8)]


def test_targets_drop_out_one_by_one() -> None:
    index, prompt = PrefixIndex(), chains(1, 300)[0]
    for target in range(300):
        index.store(target, prompt[: target + 1])
    index._check()
    assert index.match(prompt, 300).device_blocks.tolist() == list(range(1, 301))


@pytest.mark.parametrize("bound", [1, 100, 1500])
def test_a_bound_is_kept_and_what_it_costs_is_counted(bound: int) -> None:
    index, prompts = PrefixIndex(max_blocks=bound), chains(30, 150)
    for number, prompt in enumerate(prompts):
        index.store(number % 5, prompt)
        index._check()
        assert index.statistics().prefixes[0] <= bound
    counts = index.statistics()
    assert counts.evicted == counts.stored - counts.prefixes[0] > 0
    assert counts.blocks[0] == counts.prefixes[0]


def test_what_is_matched_often_is_kept() -> None:
    index, prompts = PrefixIndex(max_blocks=4096), chains(100, 128)
    index.store(0, prompts[0])
    for prompt in prompts[1:]:
        assert index.match(prompts[0], 1).device_blocks[0] == 128
        index.store(0, prompt)
    assert index.statistics().evicted > 0


def test_a_matcher_goes_on_while_the_index_grows() -> None:
    index, prompts = PrefixIndex(), chains(30, 100)
    matcher = index.matcher(200)
    for target, prompt in enumerate(prompts):
        index.store(target + 150, prompt)
        overlap = matcher(prompt)
        assert overlap.device_blocks[:200].sum() == (100 if target < 50 else 0)
        assert overlap.device_blocks is matcher.overlap.device_blocks


def test_hashes_may_be_read_only_or_strided() -> None:
    index = PrefixIndex()
    frozen = np.frombuffer(u64(1, 2, 3, 4).tobytes(), "<u8")
    assert index.store(0, frozen) == 4
    assert index.match(frozen, 1).device_blocks.tolist() == [4]
    assert index.remove(0, frozen[::-2]) == 2
    assert sorted(index.held(0).tolist()) == [1, 3]


def test_a_bound_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match="max_prefixes"):
        PrefixIndex(max_blocks=0)


def test_a_wrong_tier_is_refused() -> None:
    with pytest.raises(LookupError):
        PrefixIndex().store(0, u64(1), 7)  # type: ignore[arg-type] - that is the point
