"""The flat table against sets, while it grows, shrinks, forgets and is matched together with another one."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from router.core.index import PrefixIndex
from router.core.presence import PresenceTable

PROMPTS = st.lists(st.integers(0, 9), max_size=10, unique=True)
HELD = st.dictionaries(st.integers(0, 70), st.sets(st.integers(0, 9), max_size=10), max_size=6)


def leading(prompt: list[int], held: set[int]) -> int:
    return next((depth for depth, prefix in enumerate(prompt) if prefix not in held), len(prompt))


@settings(max_examples=200, deadline=None, derandomize=True)
@given(PROMPTS, HELD, HELD, HELD, st.integers(0, 71))
def test_predictions_go_on_where_events_end(prompt, device, host, guessed, targets) -> None:
    index, predicted = PrefixIndex(), PresenceTable()
    for tier, held in enumerate((device, host)):
        for target, prefixes in held.items():
            index._table.add(target, prefixes, tier)
    for target, prefixes in guessed.items():
        predicted.add(target, prefixes)
    overlap = index.match(np.array(prompt, np.uint64), targets, predicted)
    for target in range(targets):
        one, two, three = (held.get(target, set()) for held in (device, host, guessed))
        reach = [leading(prompt, one), leading(prompt, one | two), leading(prompt, one | two | three)]
        expected = [reach[0], reach[1] - reach[0], 0, reach[2] - reach[1]]
        assert [int(blocks[target]) for blocks in overlap] == expected


@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 300), st.integers(1, 300), st.booleans()), max_size=30))
def test_random_additions_and_removals_at_changing_sizes(steps) -> None:
    """Long runs of keys, so that the table is often between two sizes."""
    table, held, keys = PresenceTable(), {}, np.arange(600 * 5, dtype=np.uint64) * np.uint64(0x9E37_79B9_0000_0001)
    for target, start, length, adds in steps:
        part = keys[5 * start : 5 * (start + length)]
        mine = held.setdefault(target, set())
        if adds:
            assert table.add(target, part) == len(set(part.tolist()) - mine)
            mine.update(part.tolist())
        else:
            assert table.discard(target, part) == len(set(part.tolist()) & mine)
            mine.difference_update(part.tolist())
    table._check(held)
    for target, mine in held.items():
        assert set(table.held(target).tolist()) == mine


def test_keys_that_meet_in_one_slot() -> None:
    table = PresenceTable()
    same = [number << 60 for number in range(16)] + [number << 52 for number in range(1, 256)]
    table.add(0, same)
    table._check({0: set(same)})
    table.discard(0, same[::2])
    table._check({0: set(same[1::2]) - set(same[::2])})
    assert len(table) == len(set(same[1::2]) - set(same[::2]))


def test_sets_that_nobody_has_any_more_are_forgotten() -> None:
    table, draw = PresenceTable(), np.random.default_rng(1)
    keys = np.arange(500, dtype=np.uint64)
    for target in range(20):
        table.add(target, keys[draw.random(500) < 0.5])
    assert table.size().shared_sets > 400
    table._check()
    for target in range(20):
        table.clear(target)
        table._check()
    assert len(table) == table.size().shared_sets == 0


def test_a_table_says_how_large_it_is() -> None:
    table = PresenceTable()
    table.add(0, range(700))
    assert repr(table) == f"PresenceTable(700 prefixes, load factor 0.68, {table.size().bytes} bytes)"
    assert table.size().prefixes == len(table) == 700
