"""The table of pairs, through its two owners' kernels, against a plain dict."""

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from router.core import pair_kernels as kernels
from router.core.pairs import PairTable, resized

HASHES = st.lists(st.integers(0, 40) | st.integers(0, 2**64 - 1), max_size=30, unique=True).map(
    lambda values: np.array(values, np.uint64)
)
TARGETS = st.integers(0, 2)


class PairsAgainstCounts(RuleBasedStateMachine):
    """How often each pair is referenced; what is not, is not there."""

    @initialize()
    def start(self) -> None:
        self.table = PairTable()
        self.references = np.zeros(self.table.nodes, np.int32)
        self.counts: dict[tuple[int, int], int] = {}
        self.held: list[tuple[int, np.ndarray, np.ndarray]] = []

    @rule(slot=TARGETS, hashes=HASHES, many=st.booleans())
    def reference(self, slot: int, hashes: np.ndarray, many: bool) -> None:
        if many:  # enough to make the table grow
            hashes = np.concatenate([hashes, np.arange(len(self.held) * 300, dtype=np.uint64) + np.uint64(1000)])
            hashes = np.unique(hashes)
        if self.table.reserve(len(hashes)):
            self.references = resized(self.references, self.table.nodes)
        before = len(self.counts)
        for prefix in hashes.tolist():
            self.counts[prefix, slot] = self.counts.get((prefix, slot), 0) + 1
        nodes = np.empty(len(hashes), np.int32)
        new = kernels.reference(*self.arrays(), self.references, slot, hashes, nodes)
        assert new == len(self.counts) - before
        self.held.append((slot, hashes, nodes))

    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        if not self.held:
            return
        target, hashes, nodes = self.held.pop(data.draw(st.integers(0, len(self.held) - 1)))
        before = len(self.counts)
        for prefix in hashes.tolist():
            self.counts[prefix, target] -= 1
            if not self.counts[prefix, target]:
                del self.counts[prefix, target]
        assert kernels.release(*self.arrays(), self.references, nodes) == before - len(self.counts)

    def arrays(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return self.table.slots, self.table.keys, self.table.counts

    @invariant()
    def counts_the_same(self) -> None:
        self.table._check()
        assert len(self.table) == len(self.counts)
        for target, hashes, nodes in self.held:
            assert self.table.keys["prefix"][nodes].tolist() == hashes.tolist()
            assert set(self.table.keys["target"][nodes].tolist()) <= {target}
        for (prefix, target), count in self.counts.items():
            node = kernels.find(self.table.slots, self.table.keys, prefix, target)
            assert self.references[node] == count


TestPairs = PairsAgainstCounts.TestCase
TestPairs.settings = settings(max_examples=40, stateful_step_count=15, deadline=None, derandomize=True)


def test_a_stranger_has_no_node() -> None:
    table = PairTable()
    assert kernels.find(table.slots, table.keys, 7, 0) == kernels.NOBODY
    assert repr(table) == "PairTable(0 pairs in 1024 slots)"


def test_freed_nodes_are_used_again() -> None:
    table = PairTable()
    references = np.zeros(table.nodes, np.int32)
    for start in range(0, 100_000, 500):
        hashes = np.arange(start, start + 500, dtype=np.uint64)
        assert not table.reserve(500)
        nodes = np.empty(500, np.int32)
        kernels.reference(table.slots, table.keys, table.counts, references, 0, hashes, nodes)
        kernels.release(table.slots, table.keys, table.counts, references, nodes)
    table._check()


def test_hashes_may_be_any_view() -> None:
    table = PairTable()
    references = np.zeros(table.nodes, np.int32)
    read_only = np.frombuffer(b"\0" * 3 + np.arange(8, dtype=np.uint64).tobytes(), np.uint64, 8, 3)
    for view in (read_only, read_only[::2], read_only[::-1]):
        nodes = np.empty(len(view), np.int32)
        assert kernels.reference(table.slots, table.keys, table.counts, references, 0, view, nodes) in (8, 0)
    assert len(table) == 8
