from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from router.dispatch.request import PromptHashes
from router.frontend.known_prompts import AGE_SECONDS, ENTRY_BYTES, KnownPrompts


def prompt(blocks: int) -> PromptHashes:
    return PromptHashes(np.arange(blocks, dtype=np.uint64), 16 * blocks)


FIELDS = st.lists(st.text("ab", max_size=2).map(str.encode), min_size=2, max_size=2)


@given(FIELDS, FIELDS)
def test_a_key_tells_fields_apart(one: list[bytes], other: list[bytes]) -> None:
    known = KnownPrompts()
    assert (known.key(one) == known.key(other)) == (one == other)


def test_what_is_old_is_not_believed() -> None:
    known = KnownPrompts()
    known.put(b"k", prompt(3), 100.0)
    assert known.get(b"k", 100.0 + AGE_SECONDS) is not None
    assert known.get(b"k", 101.0 + AGE_SECONDS) is None
    known.put(b"k", prompt(4), 800.0)
    kept = known.get(b"k", 900.0)
    assert kept is not None
    assert kept.tokens == 64


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 6), st.integers(0, 40)), max_size=60))
def test_it_is_bounded_and_keeps_what_was_used_last(steps: list[tuple[bool, int, int]]) -> None:
    limit = 3 * ENTRY_BYTES
    known, order = KnownPrompts(limit), dict[bytes, int]()
    for asks, number, blocks in steps:
        key = bytes([number])
        if asks:
            found = known.get(key, 0.0)
            assert (found and found.tokens // 16) == order.get(key)
            if found:
                order[key] = order.pop(key)
        else:
            order.pop(key, None)
            order[key] = blocks
            known.put(key, prompt(blocks), 0.0)
            while sum(8 * size + ENTRY_BYTES for size in order.values()) > limit:
                del order[next(iter(order))]
        known._check()
        assert len(known) == len(order)
