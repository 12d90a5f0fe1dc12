from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from events.blocks import salt_seed, sequence_hashes
from router.dispatch.errors import EngineFailed
from router.dispatch.journey import Journey
from router.dispatch.request import TokenRequest

tokens = st.lists(st.integers(0, 9), min_size=1, max_size=40)


@given(tokens, st.lists(st.integers(0, 9), max_size=40), st.sampled_from([None, "salt"]))
def test_the_hashes_of_what_is_cached_at_the_end(prompt: list[int], output: list[int], salt: str | None) -> None:
    request = TokenRequest("r", "m", np.array(prompt, np.uint32), max_new_tokens=100, cache_salt=salt)
    journey = Journey(request, block_size=4)
    begun = journey.hashes(journey.tokens())
    journey.generated += output
    computed = np.array(prompt + output[:-1], np.uint32)
    assert journey.extended(begun).tolist() == sequence_hashes(computed, 4, salt_seed(salt)).tolist()
    assert journey.tokens().tolist() == prompt + output
    assert journey.remaining_tokens == 100 - len(output)


def test_repr_tells_the_story() -> None:
    journey = Journey(TokenRequest("r", "m", np.arange(5, dtype=np.uint32), max_new_tokens=9), block_size=4)
    journey.generated += [1, 2]
    journey.fail(EngineFailed("x"), set())
    assert repr(journey) == "Journey(r, 5 + 2 tokens, 1 failures)"
