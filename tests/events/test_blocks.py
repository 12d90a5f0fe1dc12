"""The identity of a prefix: known vectors, and what must hold for all."""

from __future__ import annotations

import numpy as np
import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from events.blocks import SEED, as_tokens, block_hashes, chain, salt_seed, sequence_hashes

TOKENS = st.lists(st.integers(0, 2**32 - 1), max_size=70).map(as_tokens)
SIZES = st.integers(1, 9)


def test_vectors():
    tokens = np.arange(1, 129, dtype=np.uint32)
    assert block_hashes(tokens, 64).tolist() == [17732852320395450624, 16977986247603081716]
    assert sequence_hashes(tokens, 64).tolist() == [17732852320395450624, 1050256074108617503]


def oracle(tokens, size, seed):
    """The definition, written out."""
    hashes = []
    for start in range(0, len(tokens) - size + 1, size):
        data = b"".join(int(token).to_bytes(4, "little") for token in tokens[start : start + size])
        block = xxhash.xxh3_64_intdigest(data, seed)
        if hashes:
            block = xxhash.xxh3_64_intdigest(hashes[-1].to_bytes(8, "little") + block.to_bytes(8, "little"), 1337)
        hashes.append(block)
    return hashes


@given(TOKENS, SIZES, st.sampled_from([SEED, salt_seed("tenant"), 2**64 - 1]))
def test_sequence_hashes_are_as_defined(tokens, size, seed):
    hashes = sequence_hashes(tokens, size, seed)
    assert hashes.dtype == np.uint64
    assert hashes.tolist() == oracle(tokens, size, seed)


@given(TOKENS, TOKENS, SIZES)
def test_a_longer_prompt_keeps_the_hashes_of_its_prefix(tokens, more, size):
    short, long = sequence_hashes(tokens, size), sequence_hashes(np.concatenate([tokens, more]), size)
    assert long[: len(short)].tolist() == short.tolist()


@given(TOKENS, SIZES, st.data())
def test_a_chain_goes_on_from_its_parent(tokens, size, data):
    blocks = block_hashes(tokens, size)
    cut = data.draw(st.integers(0, len(blocks)))
    head = chain(blocks[:cut])
    tail = chain(blocks[cut:], parent=int(head[-1]) if cut else None)
    assert np.concatenate([head, tail]).tolist() == chain(blocks).tolist()


@given(st.lists(st.integers(0, 2**32 - 1), min_size=8, max_size=40), st.data())
def test_another_token_changes_its_block_and_all_after_it(tokens, data):
    changed = list(tokens)
    position = data.draw(st.integers(0, len(tokens) // 4 * 4 - 1))
    changed[position] ^= 1
    before, after = sequence_hashes(as_tokens(tokens), 4), sequence_hashes(as_tokens(changed), 4)
    same = [one == other for one, other in zip(before.tolist(), after.tolist(), strict=True)]
    assert same == [block < position // 4 for block in range(len(before))]


def test_salts_and_adapters_are_namespaces_of_their_own():
    seeds = [
        salt_seed(*names) for names in [(None, None), ("a", None), (None, "a"), ("a", "b"), ("b", "a"), ("ab", None)]
    ]
    assert seeds[0] == salt_seed("", "") == SEED
    assert len(set(seeds)) == len(seeds)


@pytest.mark.parametrize(
    "tokens", [[-1], [2**32], [2**63], [2**64], [1.5], ["1"], [[1, 2]], [[1], [1, 2]], [None], [True]]
)
def test_what_is_no_token_is_refused(tokens):
    with pytest.raises(ValueError, match="token ids must"):
        as_tokens(tokens)


@pytest.mark.parametrize("tokens", [[], [0, 2**32 - 1], np.arange(5), np.arange(10, dtype=np.uint32)[::2], (1, 2)])
def test_tokens_become_a_contiguous_array(tokens):
    array = as_tokens(tokens)
    assert array.dtype == np.dtype("<u4")
    assert array.flags.c_contiguous
    assert array.tolist() == list(tokens)
