"""What a card must say for its worker to be used, and what is said when it does not."""

from __future__ import annotations

import msgspec
import pytest

from events.membership import WorkerCard
from events.parity import TEXT, hash_vector
from router.metrics import Metrics
from router.service.parity import Parity

GOOD = WorkerCard(
    worker_id="w",
    epoch=1,
    model="m",
    endpoint="http://w",
    capacity_tokens=1,
    context_tokens=1,
    block_size=64,
    hash_vector=hash_vector(64),
    text_tokens=(1, 2, 3),
)
FAULTS = [
    ("block size", {"block_size": 16}, "blocks of 16 tokens"),
    ("probe", {"parity_failure": "no event came"}, "probe failed: no event came"),
    ("hashes", {"hash_vector": (1, 2, 3)}, "[1, 2, 3]"),
    ("tokens", {"text_tokens": (1, 2, 4)}, "[1, 2, 4]"),
]


def parity(metrics=None, **options):
    return Parity(64, metrics, lambda model, text: [1, 2, 3] if (model, text) == ("m", TEXT) else None, **options)


@pytest.mark.parametrize("missing", [{}, {"hash_vector": ()}, {"text_tokens": ()}, {"model": "unknown here"}], ids=str)
def test_what_fits_or_is_not_said_is_no_objection(missing):
    assert parity().objection(msgspec.structs.replace(GOOD, **missing)) is None


@pytest.mark.parametrize(("kind", "fault", "reason"), FAULTS)
def test_what_does_not_fit_is_refused_with_the_reason_and_counted(kind, fault, reason):
    metrics = Metrics()
    said = parity(metrics).objection(msgspec.structs.replace(GOOD, **fault))
    assert said is not None
    assert reason in said
    assert metrics.registry.get_sample_value("warmpath_parity_failures_total", {"kind": kind}) == 1


@pytest.mark.parametrize(("kind", "fault", "reason"), FAULTS)
def test_told_not_to_refuse_it_says_so_and_only_another_block_size_stays_out(kind, fault, reason, caplog):
    said = parity(refuse=False).objection(msgspec.structs.replace(GOOD, **fault))
    assert (said is not None) == (kind == "block size")
    assert said or reason in caplog.text


def test_a_router_without_a_tokenizer_compares_no_tokens():
    assert Parity(64).objection(msgspec.structs.replace(GOOD, text_tokens=(9,))) is None


def test_the_vector_tells_namespaces_and_block_sizes_apart():
    assert len({*hash_vector(64), *hash_vector(16)}) == 6
