"""The mirror against a model engine with a brute-force oracle, and against what real engines published."""

from __future__ import annotations

import hashlib
import random

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from events.blocks import salt_seed, sequence_hashes
from events.messages import BlocksRemoved, BlocksStored, CacheCleared, Tier, unpack_hashes
from workers.sglang import wire
from workers.sglang.mirror import CacheMirror
from workers.sglang.wire import EngineCleared, EngineRemoved, EngineStored, EventDecoder

from . import captures

SETTINGS = settings(
    max_examples=50, stateful_step_count=30, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
)


class Beliefs:
    """What a router believes after some cache events: hashes per tier. Asserts that each event says something new."""

    def __init__(self):
        self.held = {tier: set() for tier in Tier}

    def hear(self, events):
        for event in events:
            if isinstance(event, CacheCleared):
                self.__init__()
                continue
            hashes = unpack_hashes(event.hashes).tolist()
            assert len(set(hashes)) == len(hashes) > 0
            if isinstance(event, BlocksStored):
                assert not self.held[event.tier] & set(hashes)
                self.held[event.tier] |= set(hashes)
            else:
                assert self.held[event.tier] >= set(hashes)
                self.held[event.tier] -= set(hashes)


def page_id(tokens, page_size, salt):
    """An id as SGLang makes them: a digest of the salt and all tokens so far; blind for the extra key."""
    digest = hashlib.sha256(repr((salt, page_size)).encode() + np.asarray(tokens, np.uint32).tobytes()).digest()
    return int.from_bytes(digest[:8], "big", signed=True)


class ModelEngine:
    """A prefix cache over pages, as plain sets of token prefixes, one set per namespace and tier."""

    def __init__(self, page_size, block_size):
        self.page_size = page_size
        self.block_size = block_size
        self.held = {}  # (extra_key, salt, tier) -> set of token tuples, each a whole number of pages

    def prefixes(self, tokens):
        return [tuple(tokens[:end]) for end in range(self.page_size, len(tokens) + 1, self.page_size)]

    def insert(self, extra_key, salt, tokens, tier):
        """Store the pages that are missing, as one event each or all in one; the chain below must be there already."""
        held = self.held.setdefault((extra_key, salt, tier), set())
        missing = [prefix for prefix in self.prefixes(tokens) if prefix not in held]
        held.update(missing)
        return self._stored(missing, salt, tier) if missing else []

    def _stored(self, chain, salt, tier):
        first = len(chain[0]) - self.page_size
        parent = page_id(chain[0][:first], self.page_size, salt) if first else None
        ids = [page_id(prefix, self.page_size, salt) for prefix in chain]
        tokens = np.array(chain[-1][first:], np.uint32)
        return [EngineStored(ids, parent, tokens, self.page_size, tier, salt)]

    def leaves(self, tier):
        """(namespace, prefix) of pages that no other held page follows."""
        for namespace, held in sorted(self.held.items(), key=repr):
            if namespace[2] == tier:
                inner = {prefix[: -self.page_size] for prefix in held}
                yield from ((namespace, prefix) for prefix in sorted(held - inner))

    def evict(self, namespace, leaf, pages, generator):
        """A leaf and some pages above it that nothing else needs, in any order."""
        held, (_, salt, tier) = self.held[namespace], namespace
        gone = []
        while leaf and len(gone) < pages and not any(len(p) > len(leaf) and p[: len(leaf)] == leaf for p in held):
            held.remove(leaf)
            gone.append(page_id(leaf, self.page_size, salt))
            leaf = leaf[: -self.page_size]
        generator.shuffle(gone)
        return [EngineRemoved(gone, tier)]

    def oracle(self, tier):
        """Every block that ends within the last page of a held prefix."""
        blocks = set()
        for (_, salt, of), held in self.held.items():
            for prefix in held if of == tier else ():
                hashes = sequence_hashes(np.array(prefix, np.uint32), self.block_size, salt_seed(salt))
                before = (len(prefix) - self.page_size) // self.block_size
                blocks |= set(hashes[before:].tolist())
        return blocks


class MirrorMachine(RuleBasedStateMachine):
    """Random lives of a cache: what the mirror holds and says equals what the oracle finds, after every step."""

    @initialize(
        page_size=st.sampled_from([1, 16, 48, 64, 100, 128]),
        block_size=st.sampled_from([16, 64]),
        seed=st.integers(0, 2**16),
    )
    def start(self, page_size, block_size, seed):
        self.engine = ModelEngine(page_size, block_size)
        self.mirror = CacheMirror(block_size)
        self.beliefs = Beliefs()
        self.generator = random.Random(seed)
        # For pages of one token, shorter prompts: the oracle is quadratic.
        self.longest = 400 if page_size > 1 else 80
        self.prompts = [self.fresh()]

    def fresh(self):
        return [self.generator.randrange(3) for _ in range(self.generator.randint(1, self.longest))]

    def hear(self, events):
        for event in events:
            self.beliefs.hear(self.mirror.apply(event))

    @rule(extra_key=st.sampled_from([None, "a"]), salt=st.sampled_from([None, "s"]), cut=st.floats(0, 1))
    def ask(self, extra_key, salt, cut):
        base = self.generator.choice(self.prompts)
        prompt = base[: int(cut * len(base))] + self.fresh()
        self.prompts.append(prompt)
        self.hear(self.engine.insert(extra_key, salt, prompt[: self.longest], Tier.DEVICE))

    @rule(whole=st.booleans())
    def back_up(self, whole):
        for (extra_key, salt, _), leaf in list(self.engine.leaves(Tier.DEVICE))[:3]:
            tokens = leaf if whole else leaf[: len(leaf) // 2]
            self.hear(self.engine.insert(extra_key, salt, tokens, Tier.HOST))

    @rule(tier=st.sampled_from([Tier.DEVICE, Tier.HOST]), pages=st.integers(1, 8))
    def evict(self, tier, pages):
        if leaves := list(self.engine.leaves(tier)):
            namespace, leaf = self.generator.choice(leaves)
            self.hear(self.engine.evict(namespace, leaf, pages, self.generator))

    @rule()
    def load_back(self):
        for (extra_key, salt, _), leaf in list(self.engine.leaves(Tier.HOST))[:1]:
            self.hear(self.engine.insert(extra_key, salt, leaf, Tier.DEVICE))

    @rule(really=st.integers(0, 9))
    def flush(self, really):
        if not really:
            self.engine.held.clear()
            self.hear([EngineCleared()])

    @invariant()
    def equals_the_oracle(self):
        if not hasattr(self, "engine"):
            return
        self.mirror._check()
        expected = {tier: self.engine.oracle(tier) for tier in Tier}
        assert self.beliefs.held == expected
        snapshot = Beliefs()
        snapshot.hear(self.mirror.held())
        assert snapshot.held == expected

    def teardown(self):
        if hasattr(self, "engine"):
            for tier in (Tier.HOST, Tier.DEVICE):
                while leaves := list(self.engine.leaves(tier)):
                    self.hear(self.engine.evict(*leaves[0], 1000, self.generator))
            assert self.mirror.statistics()[:5] == (0, 0, 0, 0, 0)
            assert self.mirror.statistics().unknown_removals == 0


MirrorMachine.TestCase.settings = SETTINGS
TestMirror = MirrorMachine.TestCase


def grown_engine(page_size, block_size, seed):
    """A model engine that heard 30 prompts in two tiers and two namespaces, and its events."""
    generator, engine, events = random.Random(seed), ModelEngine(page_size, block_size), []
    prompts = [[generator.randrange(3) for _ in range(300)]]
    for _ in range(30):
        base = generator.choice(prompts)
        prompts.append(base[: generator.randint(0, len(base))] + [generator.randrange(3) for _ in range(150)])
        key, tier = generator.choice([None, "a"]), generator.choice([Tier.DEVICE, Tier.HOST])
        events += engine.insert(key, None, prompts[-1], tier)
    return engine, events


@pytest.mark.parametrize("page_size", [16, 48, 100])
@pytest.mark.parametrize("seed", range(4))
def test_stores_in_any_order_end_the_same(page_size, seed):
    engine, events = grown_engine(page_size, 64, seed)
    random.Random(seed).shuffle(events)
    mirror, beliefs = CacheMirror(64), Beliefs()
    for event in events:
        beliefs.hear(mirror.apply(event))
        mirror._check()
    assert beliefs.held == {tier: engine.oracle(tier) for tier in Tier}
    assert mirror.statistics().parked_stores > 0
    assert mirror.statistics().waiting_pages == 0


def test_a_snapshot_lists_every_prefix_before_what_it_is_a_prefix_of():
    mirror = CacheMirror(16)
    engine, events = grown_engine(48, 16, 5)
    for event in events:
        mirror.apply(event)
    order = {tier: {} for tier in Tier}
    for part in mirror.held():
        order[part.tier] = {block: position for position, block in enumerate(unpack_hashes(part.hashes).tolist())}
    for (_, salt, tier), held in engine.held.items():
        for prefix in held:
            hashes = sequence_hashes(np.array(prefix, np.uint32), 16, salt_seed(salt)).tolist()
            positions = [order[tier][block] for block in hashes]
            assert positions == sorted(positions)


def stored(ids, parent, first, page_size=16, **fields):
    """Pages of consecutive tokens that begin with `first`."""
    tokens = np.arange(first, first + page_size * len(ids), dtype=np.uint32)
    return EngineStored(ids, parent, tokens, page_size, **fields)


def hashes_of(count, block_size=16, first=0):
    return sequence_hashes(np.arange(first, first + count, dtype=np.uint32), block_size).tolist()


def said(events):
    return [(type(event).__name__, getattr(event, "tier", None), event_hashes(event)) for event in events]


def event_hashes(event):
    return None if isinstance(event, CacheCleared) else unpack_hashes(event.hashes).tolist()


def test_pages_smaller_than_a_block_complete_it_with_the_last():
    mirror = CacheMirror(64)
    assert mirror.apply(stored([1, 2, 3], None, 0)) == []
    assert said(mirror.apply(stored([4, 5], 3, 48))) == [("BlocksStored", Tier.DEVICE, hashes_of(64, 64))]
    assert mirror.apply(EngineRemoved([5])) == []
    assert said(mirror.apply(EngineRemoved([4]))) == [("BlocksRemoved", Tier.DEVICE, hashes_of(64, 64))]


def test_pages_that_part_behind_a_block_share_it():
    mirror = CacheMirror(64)
    one, other = stored([1], None, 0, 100), stored([2], None, 0, 100)
    other.tokens[70:] = 9
    assert said(mirror.apply(one)) == [("BlocksStored", Tier.DEVICE, hashes_of(64, 64))]
    assert mirror.apply(other) == []
    assert mirror.apply(EngineRemoved([1])) == []
    assert said(mirror.apply(EngineRemoved([2]))) == [("BlocksRemoved", Tier.DEVICE, hashes_of(64, 64))]


def test_a_page_stored_twice_must_be_removed_twice():
    mirror = CacheMirror(16)
    mirror.apply(stored([1], None, 0))
    assert mirror.apply(stored([1, 2], None, 0)) != []  # another namespace: page 1 again, page 2 new
    assert mirror.apply(EngineRemoved([1])) == []
    assert said(mirror.apply(EngineRemoved([2, 1]))) == [("BlocksRemoved", Tier.DEVICE, hashes_of(32)[::-1])]


def test_tiers_are_apart_and_a_page_lives_until_the_last_one_lets_go():
    mirror = CacheMirror(16)
    mirror.apply(stored([1], None, 0))
    assert said(mirror.apply(stored([1], None, 0, tier=Tier.HOST))) == [("BlocksStored", Tier.HOST, hashes_of(16))]
    mirror.apply(EngineRemoved([1]))
    assert mirror.statistics().pages == 1
    assert said(mirror.apply(stored([2], 1, 16))) == [("BlocksStored", Tier.DEVICE, hashes_of(32)[1:])]
    mirror.apply(EngineRemoved([1], Tier.HOST))
    mirror.apply(EngineRemoved([2]))
    assert mirror.statistics()[:4] == (0, 0, 0, 0)


def test_salts_and_adapters_are_apart():
    mirror = CacheMirror(16)
    spaces = [{}, {"cache_salt": "a"}, {"lora_name": "a"}, {"cache_salt": "a", "lora_name": "a"}]
    for number, space in enumerate(spaces):
        (event,) = mirror.apply(stored([number], None, 0, **space))
        expected = sequence_hashes(np.arange(16, dtype=np.uint32), 16, salt_seed(**space)).tolist()
        assert event_hashes(event) == expected
    assert mirror.statistics().device_blocks == 4
    assert mirror.statistics().namespace_clashes == 0
    assert mirror.apply(stored([0], None, 0, lora_name="b")) == []
    assert mirror.statistics().namespace_clashes == 1


def test_a_store_before_its_parent_waits_and_may_be_removed_meanwhile():
    mirror = CacheMirror(16)
    assert mirror.apply(stored([2, 3], 1, 16)) == []
    assert mirror.apply(stored([4], 3, 48)) == []
    assert mirror.apply(EngineRemoved([4])) == []
    assert mirror.statistics().waiting_pages == 3
    (first, then) = mirror.apply(stored([1], None, 0))
    assert event_hashes(first) + event_hashes(then) == hashes_of(48)
    assert mirror.statistics()[:5] == (3, 3, 0, 0, 0)
    assert mirror.statistics().unknown_removals == 0


def test_too_many_waiting_pages_drop_the_oldest_and_say_so(caplog):
    mirror = CacheMirror(16, waiting_pages=3)
    mirror.apply(stored([2, 3], 1, 16))
    mirror.apply(stored([12, 13], 11, 16))
    mirror._check()
    assert mirror.statistics().dropped_pages == 2
    assert mirror.statistics().waiting_pages == 2
    assert any("oldest are dropped" in record.getMessage() for record in caplog.records)
    assert len(mirror.apply(stored([1], None, 0))) == 1  # 2 and 3 are forgotten
    assert len(mirror.apply(stored([11], None, 0))) == 1  # the same tokens: only what follows is new
    assert mirror.statistics().device_blocks == 3
    mirror.apply(EngineRemoved([3]))
    assert mirror.statistics().unknown_removals == 1


def test_a_page_that_names_itself_as_parent_never_surfaces():
    mirror = CacheMirror(16)
    assert mirror.apply(stored([1], 1, 0)) == []
    assert mirror.apply(stored([1], 1, 0)) == []
    mirror._check()


def test_clear_is_always_said():
    mirror = CacheMirror(16)
    assert said(mirror.apply(EngineCleared())) == [("CacheCleared", None, None)]
    mirror.apply(stored([1], None, 0))
    assert said(mirror.apply(EngineCleared())) == [("CacheCleared", None, None)]
    assert mirror.held() == []
    assert mirror.statistics().clears == 2
    assert "block_size=16" in repr(mirror)


@pytest.mark.parametrize("block_size", [16, 64, 48])
@pytest.mark.parametrize(
    ("name", "socket", "ends_flushed"),
    [
        ("basic_p16.jsonl", "kv0", True),
        ("dp2_p1_dynamo.jsonl", "kv0", True),
        ("dp2_p1_dynamo.jsonl", "kv1", True),
        ("hicache_p16.jsonl", "kv0", True),
        ("pd_nixl.jsonl", "kv0", False),
        ("pd_nixl.jsonl", "kv1", False),
    ],
)
def test_captured_lives(name, socket, ends_flushed, block_size):
    """Every step leaves what a plain set of token prefixes, kept from the same frames, implies; a flush leaves nothing."""
    mirror, beliefs, decoder = CacheMirror(block_size), Beliefs(), EventDecoder()
    truth = {tier: {} for tier in Tier}  # page -> [times, prefix tokens, page size, seed]
    for frame in captures.frames(name, socket):
        events = decoder.decode(frame.payload).events
        for event in events:
            follow(truth, event)
        for event in wire.coalesce(events):
            beliefs.hear(mirror.apply(event))
        mirror._check()
        assert beliefs.held == {tier: implied(pages, block_size) for tier, pages in truth.items()}, frame.step
    assert (mirror.statistics()[:4] == (0, 0, 0, 0)) == ends_flushed
    assert mirror.statistics()[4:9] == (0, 0, 0, 0, 0)


def follow(truth, event):
    if isinstance(event, EngineCleared):
        for pages in truth.values():
            pages.clear()
    elif isinstance(event, EngineRemoved):
        for page in event.ids:
            truth[event.tier][page][0] -= 1
            if not truth[event.tier][page][0]:
                del truth[event.tier][page]
    else:
        known = {page: entry[1] for pages in truth.values() for page, entry in pages.items()}
        prefix = known[event.parent] if event.parent is not None else ()
        for number, page in enumerate(event.ids):
            tokens = event.tokens[number * event.page_size : (number + 1) * event.page_size].tolist()
            prefix = (*prefix, *tokens)
            seed = salt_seed(event.cache_salt, event.lora_name)
            truth[event.tier].setdefault(page, [0, prefix, event.page_size, seed])[0] += 1


def implied(pages, block_size):
    blocks = set()
    for _, prefix, page_size, seed in pages.values():
        if len(prefix) // block_size > (len(prefix) - page_size) // block_size:
            hashes = sequence_hashes(np.array(prefix, np.uint32), block_size, seed)
            blocks |= set(hashes[(len(prefix) - page_size) // block_size :].tolist())
    return blocks


def test_a_fleet_under_load():
    """87 s of a real engine, a store per page, evictions among them; it starts within the engine's life, so nothing is unknown."""
    mirror, decoder, pages = CacheMirror(64), EventDecoder(), set()
    for payload in captures.fleet_payloads():
        events = decoder.decode(payload).events
        for event in events:
            change = pages.update if isinstance(event, EngineStored) else pages.difference_update
            change(event.ids)
        for event in wire.coalesce(events):
            mirror.apply(event)
    mirror._check()
    statistics = mirror.statistics()
    assert (statistics.pages, statistics.unknown_removals, statistics.parked_stores) == (len(pages), 0, 0)
    assert len(pages) == 31_759
    assert statistics.device_blocks == 7918


def test_removed_and_stored_again_in_one_batch():
    mirror = CacheMirror(16)
    mirror.apply(stored([1, 2], None, 0))
    changes = [*mirror.apply(EngineRemoved([2])), *mirror.apply(stored([2], 1, 16))]
    assert [type(change) for change in changes] == [BlocksRemoved, BlocksStored]
    assert event_hashes(changes[0]) == event_hashes(changes[1])
