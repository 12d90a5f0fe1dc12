"""The compiled kernels say what the xxhash package says, for every length and seed."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from events import blocks, xxh3

SEEDS = st.sampled_from([0, 1337, 2**64 - 1]) | st.integers(0, 2**64 - 1)
EDGES = [
    1,
    2,
    3,
    4,
    5,
    8,
    9,
    15,
    16,
    17,
    32,
    33,
    48,
    60,
    61,
    64,
    65,
    80,
    255,
    256,
    257,
    271,
    272,
    273,
    512,
    513,
    1024,
    1025,
]


@pytest.fixture
def kernels(monkeypatch):
    monkeypatch.setattr(blocks, "_kernels", None)
    blocks.load_kernels()


def random_tokens(count: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 1 << 32, count, np.uint32)


@pytest.mark.parametrize("seed", [0, 1337, 2**64 - 1, 0x1234_5678_9ABC_DEF0])
def test_every_length_of_a_block(seed):
    for size in [*range(1, 140), *EDGES]:
        tokens = random_tokens(2 * size + 1)[1:]  # aligned to four bytes only
        hashes = np.empty(2, np.uint64)
        xxh3.hash_blocks(tokens, size, seed, hashes)
        assert hashes.tolist() == [
            xxhash.xxh3_64_intdigest(tokens[start : start + size].tobytes(), seed) for start in (0, size)
        ]


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.integers(0, 700), st.sampled_from(EDGES), SEEDS, st.none() | st.integers(0, 2**64 - 1), st.integers(0, 99))
def test_kernels_and_package_agree(count, size, seed, parent, draw):
    tokens = random_tokens(count, draw)
    answers = []
    for kernels in (None, xxh3):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(blocks, "_kernels", kernels)
            one = blocks.block_hashes(tokens, size, seed)
            answers.append(
                (
                    one.tolist(),
                    blocks.chain(one, parent).tolist(),
                    blocks.sequence_hashes(tokens, size, seed, parent).tolist(),
                )
            )
    assert answers[0] == answers[1]


def test_the_vectors_hold_with_kernels(kernels):
    tokens = np.arange(1, 129, dtype=np.uint32)
    assert blocks.sequence_hashes(tokens, 64).tolist() == [17732852320395450624, 1050256074108617503]


def test_read_only_arrays_are_taken(kernels):
    tokens = np.frombuffer(np.arange(64, dtype=np.uint32).tobytes(), np.uint32)
    assert len(blocks.sequence_hashes(tokens, 16)) == 4


def test_the_compiler_is_not_loaded_before_it_is_wanted():
    code = "import sys, events.blocks; sys.exit('numba' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
