"""Kernels that are entered directly take what they would misread only from callers that look: these do."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from events.blocks import as_tokens, load_kernels, sequence_hashes
from events.entry import entry
from events.xxh3 import hash_sequence
from router.core.index import PrefixIndex

HASHES = np.arange(100, 116, dtype=np.uint64)
TOKENS = np.arange(64, dtype=np.uint32)


def read_only(array: np.ndarray) -> np.ndarray:
    copy = array.copy()
    copy.flags.writeable = False
    return copy


FORMS: dict[str, Any] = {
    "as it is": lambda array: array,
    "read-only": read_only,
    "every second": lambda array: np.repeat(array, 2)[::2],
    "backwards": lambda array: array[::-1].copy()[::-1],
    "wider or signed": lambda array: array.astype(np.int64),
    "of the other byte order": lambda array: array.astype(array.dtype.newbyteorder()),
    "a part of another": lambda array: np.concatenate([array, array])[len(array) :],
    "unaligned": lambda array: np.frombuffer(b"\0" * 3 + array.tobytes(), array.dtype, offset=3),
}


@pytest.mark.parametrize("form", FORMS)
def test_the_index_takes_hashes_in_any_form(form: str) -> None:
    index, given = PrefixIndex(), FORMS[form](HASHES)
    assert index.store(3, given) == len(HASHES)
    assert index.match(given, targets=4).device_blocks.tolist() == [0, 0, 0, len(HASHES)]
    assert sorted(index.held(3).tolist()) == HASHES.tolist()
    assert index.remove(3, given[4:]) == len(HASHES) - 4
    index._check()


def test_the_index_takes_lists() -> None:
    index = PrefixIndex()
    assert index.store(0, HASHES.tolist()) == len(HASHES)
    assert index.remove(0, HASHES.tolist()) == len(HASHES)


@pytest.mark.parametrize("form", FORMS)
def test_tokens_are_hashed_in_any_form(form: str) -> None:
    load_kernels()
    assert sequence_hashes(FORMS[form](TOKENS), 16).tolist() == sequence_hashes(TOKENS, 16).tolist()
    assert as_tokens(FORMS[form](TOKENS)).tolist() == TOKENS.tolist()


def test_several_dimensions_are_an_error() -> None:
    load_kernels()
    index = PrefixIndex()
    for call in (
        lambda: index.store(0, HASHES.reshape(4, 4)),
        lambda: index.remove(0, HASHES.reshape(4, 4)),
        lambda: index.match(HASHES.reshape(4, 4), targets=1),
        lambda: sequence_hashes(TOKENS.reshape(8, 8), 16),
    ):
        with pytest.raises(ValueError, match="one dimension"):
            call()


@pytest.mark.parametrize("wrong", [[1, 2], np.zeros(4, np.uint64), None])
def test_what_is_no_such_array_is_an_error(wrong: Any) -> None:
    with pytest.raises(TypeError):
        entry(hash_sequence)(wrong, 16, 1337, 0, False, np.empty(0, np.uint64))
