"""What one rank holds: engine pages in, routing blocks out.

The engine caches pages of its own size and names them by ids that only it understands; routers count in blocks named by
sequence hashes. A page that ends at depth e (tokens) *completes* the blocks that end in (e - page_size, e]. An engine's cache is
closed under prefixes, so a block is held exactly while some page that completes it is held:

* several pages can complete one block: where the page size does not divide the block size, prompts may part ways inside the
  page but behind the block. Hence a count of held pages per block and tier.
* one page can be stored several times: the engine keeps it once per namespace that its id does not tell apart. Hence a count
  per page and tier.

Pages of one store share a `Run`; any of them may become the parent of a later store.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, NamedTuple

import msgspec
import numpy as np

from events.blocks import salt_seed, sequence_hashes
from events.messages import BlocksRemoved, BlocksStored, CacheCleared, Tier, pack_hashes

from .wire import EngineCleared, EngineRemoved, EngineStored

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

    from events.messages import CacheEvent

    from .wire import EngineEvent, PageId

logger = logging.getLogger(__name__)

DEFAULT_WAITING_PAGES = 65_536


class Boundary(NamedTuple):
    """The end of a page, where a chain may go on."""

    carry: NDArray[np.uint32]
    """Tokens since the last full block, fewer than a block."""
    last_hash: int | None
    """Sequence hash of the last full block; None: there is none yet."""


ROOT = Boundary(np.empty(0, np.uint32), None)


class Run:
    """The pages of one store. `rooted`: the prefix before them is known, so their blocks have names."""

    __slots__ = ("_before", "_block_size", "_carried", "_hashes", "_tokens", "ids", "page_size", "rooted", "seed")

    def __init__(self, event: EngineStored, block_size: int) -> None:
        self.ids = event.ids
        self.page_size = event.page_size
        self.seed = salt_seed(event.cache_salt, event.lora_name)
        self.rooted = False
        self._block_size = block_size
        self._tokens = event.tokens
        self._carried = 0
        """How many of `_tokens` lie before the first page: `_tokens` begins at a block boundary."""
        self._hashes: NDArray[np.uint64]
        self._before: int | None = None

    def __repr__(self) -> str:
        return f"<Run of {len(self.ids)} pages of {self.page_size}, {'rooted' if self.rooted else 'waiting'}>"

    def root(self, at: Boundary) -> None:
        """Name the blocks, given the prefix that the first page follows. O(tokens)."""
        self._tokens = np.concatenate((at.carry, self._tokens)) if len(at.carry) else self._tokens
        self._carried = len(at.carry)
        self._before = at.last_hash
        self._hashes = sequence_hashes(self._tokens, self._block_size, self.seed, at.last_hash)
        self.rooted = True
        if not self._carried and self.page_size % self._block_size == 0:
            self._tokens = ROOT.carry  # every page ends with a block: no tokens to carry on

    def completed(self, index: int) -> list[int]:
        """Sequence hashes of the blocks that page `index` completes; none while waiting."""
        if not self.rooted:
            return []
        first, last = self._full_blocks(index), self._full_blocks(index + 1)
        blocks: list[int] = self._hashes[first:last].tolist() if first < last else []
        return blocks

    def boundary(self, index: int) -> Boundary | None:
        """The end of page `index`; None while waiting."""
        if not self.rooted:
            return None
        full, end = self._full_blocks(index + 1), self._carried + (index + 1) * self.page_size
        last_hash = int(self._hashes[full - 1]) if full else self._before
        return Boundary(self._tokens[full * self._block_size : end], last_hash)

    def _full_blocks(self, pages: int) -> int:
        """Blocks of `_hashes` that end within the first `pages` pages."""
        return (self._carried + pages * self.page_size) // self._block_size


class Place(msgspec.Struct, frozen=True, gc=False):
    """Where a page is described. A struct outside the garbage collector: there may be a million of them (page size 1)."""

    run: Run
    index: int

    def completed(self) -> list[int]:
        """Sequence hashes of the blocks that the page completes."""
        return self.run.completed(self.index)


class TierTable:
    """What is held in one tier."""

    __slots__ = ("blocks", "pages")

    def __init__(self) -> None:
        self.pages: dict[PageId, int] = {}
        """How many times each page is stored."""
        self.blocks: dict[int, int] = {}
        """How many held pages complete each block. In order of arrival, hence every prefix before what it is a prefix of."""

    def add(self, blocks: list[int]) -> list[int]:
        """Count one more page for these blocks; those that were not held before."""
        fresh = [block for block in blocks if block not in self.blocks]
        for block in blocks:
            self.blocks[block] = self.blocks.get(block, 0) + 1
        return fresh

    def take(self, blocks: list[int]) -> list[int]:
        """Count one page less for these blocks; those that are not held any more."""
        for block in blocks:
            self.blocks[block] -= 1
        gone = [block for block in blocks if not self.blocks[block]]
        for block in gone:
            del self.blocks[block]
        return gone


class MirrorStatistics(NamedTuple):
    """What is held now, then counts since the start."""

    pages: int
    device_blocks: int
    host_blocks: int
    disk_blocks: int
    waiting_pages: int
    """Pages (of stores) whose parent is not known (yet): held by the engine, but nobody can name their blocks."""
    parked_stores: int
    """Stores that had to wait for their parent."""
    dropped_pages: int
    """Waiting pages forgotten because too many waited."""
    unknown_removals: int
    """Removed pages that were not held."""
    namespace_clashes: int
    """Stores of pages known under another salt or adapter: the engine's ids do not tell them apart, the first one counts."""
    clears: int


class CacheMirror:
    """One rank's cache, block by block, as its engine tells it.

    Time per event: O(tokens) for pages that are new, O(pages) otherwise. Memory: 4 bytes a token and about 200 a page.
    """

    def __init__(self, block_size: int, waiting_pages: int = DEFAULT_WAITING_PAGES) -> None:
        self.block_size = block_size
        self._waiting_limit = waiting_pages
        self._parked = self._dropped = self._unknown = self._clashes = self._clears = 0
        self._reset()

    def _reset(self) -> None:
        self._tiers = {tier: TierTable() for tier in Tier}
        self._places: dict[PageId, Place] = {}
        """Every page that some tier holds."""
        self._waiting: dict[PageId, list[Run]] = {}
        """Unrooted runs by the parent they wait for, the longest waiting parent first."""
        self._waiting_pages = 0

    def __repr__(self) -> str:
        return f"<CacheMirror block_size={self.block_size} {self.statistics()}>"

    def apply(self, event: EngineEvent) -> list[CacheEvent]:
        """What changed for routers, in causal order: nothing, if only page counts did."""
        match event:
            case EngineStored():
                return self._store(event)
            case EngineRemoved():
                return _changes(BlocksRemoved, self._remove(event), event.tier)
            case EngineCleared():
                return self.clear()

    def clear(self) -> list[CacheEvent]:
        """Hold nothing any more."""
        self._reset()
        self._clears += 1
        return [CacheCleared()]

    def holds(self, hashes: list[int], tier: Tier = Tier.DEVICE) -> bool:
        """Whether all these blocks are held in a tier. O(n)."""
        return all(block in self._tiers[tier].blocks for block in hashes)

    def beyond(self, other: CacheMirror) -> int:
        """How many blocks are held here, tier by tier, that the other does not hold. O(blocks)."""
        return sum(
            block not in other._tiers[tier].blocks for tier, table in self._tiers.items() for block in table.blocks
        )

    def held(self) -> list[BlocksStored]:
        """All that is held, per tier, every prefix before what it is a prefix of. O(blocks)."""
        return [
            BlocksStored(_packed(table.blocks, len(table.blocks)), tier)
            for tier, table in self._tiers.items()
            if table.blocks
        ]

    def statistics(self) -> MirrorStatistics:
        """What is held now, and counts since the start. O(1)."""
        device, host, disk = (len(table.blocks) for table in self._tiers.values())
        return MirrorStatistics(
            len(self._places),
            device,
            host,
            disk,
            self._waiting_pages,
            self._parked,
            self._dropped,
            self._unknown,
            self._clashes,
            self._clears,
        )

    # stores

    def _store(self, event: EngineStored) -> list[CacheEvent]:
        if any(page not in self._places for page in event.ids):
            self._learn(event)
        self._clashes += self._places[event.ids[0]].run.seed != salt_seed(event.cache_salt, event.lora_name)
        stored = _changes(BlocksStored, self._hold(event), event.tier)
        if self._waiting:
            stored += self._adopt(event.ids)
            self._drop_oldest()
        return stored

    def _learn(self, event: EngineStored) -> None:
        """Describe the pages that are new; the others keep the description that they have."""
        run = Run(event, self.block_size)
        at = ROOT if event.parent is None else self._boundary(event.parent)
        if at is None:
            self._park(run, event.parent)
        else:
            run.root(at)
        for index, page in enumerate(event.ids):
            self._places.setdefault(page, Place(run, index))

    def _boundary(self, page: PageId) -> Boundary | None:
        place = self._places.get(page)
        return place.run.boundary(place.index) if place else None

    def _hold(self, event: EngineStored) -> list[int]:
        """Count each page once more; the blocks that are newly held."""
        table, fresh = self._tiers[event.tier], []
        for page in event.ids:
            times = table.pages.get(page, 0)
            table.pages[page] = times + 1
            if not times:
                fresh += table.add(self._places[page].completed())
        return fresh

    # stores that came before their parent

    def _park(self, run: Run, parent: PageId | None) -> None:
        assert parent is not None
        if not self._parked:
            logger.warning("a store follows page %s, which is not known: it waits until that page is stored", parent)
        self._parked += 1
        self._waiting.setdefault(parent, []).append(run)
        self._waiting_pages += len(run.ids)

    def _adopt(self, parents: Iterable[PageId]) -> list[CacheEvent]:
        """Root the runs that wait for one of these pages, then those that wait for theirs."""
        found: list[CacheEvent] = []
        candidates = list(parents)
        while candidates and self._waiting:
            page = candidates.pop()
            at = self._boundary(page)
            if at is None:
                continue
            for run in self._waiting.pop(page, ()):
                self._waiting_pages -= len(run.ids)
                run.root(at)
                found += self._surface(run)
                candidates += run.ids
        return found

    def _surface(self, run: Run) -> list[CacheEvent]:
        """Count the blocks of a run's pages that were held already while it waited."""
        found: list[CacheEvent] = []
        for tier, table in self._tiers.items():
            fresh: list[int] = []
            for page in self._described_by(run):
                if page in table.pages:
                    fresh += table.add(self._places[page].completed())
            found += _changes(BlocksStored, fresh, tier)
        return found

    def _described_by(self, run: Run) -> list[PageId]:
        return [page for page in run.ids if page in self._places and self._places[page].run is run]

    def _drop_oldest(self) -> None:
        while self._waiting_pages > self._waiting_limit:
            parent, runs = next(iter(self._waiting.items()))
            self._forget(runs.pop(0))
            if not runs:
                del self._waiting[parent]

    def _forget(self, run: Run) -> None:
        self._waiting_pages -= len(run.ids)
        pages = self._described_by(run)
        if pages and not self._dropped:
            logger.warning("more than %d pages wait for unknown parents: the oldest are dropped", self._waiting_limit)
        self._dropped += len(pages)
        for page in pages:
            del self._places[page]
            for table in self._tiers.values():
                table.pages.pop(page, None)

    # removals

    def _remove(self, event: EngineRemoved) -> list[int]:
        """Count each page once less; the blocks that are not held any more."""
        table, gone = self._tiers[event.tier], []
        for page in event.ids:
            times = table.pages.get(page, 0)
            if times > 1:
                table.pages[page] = times - 1
            elif times:
                del table.pages[page]
                gone += table.take(self._places[page].completed())
                self._release(page)
            else:
                self._unknown += 1
        return gone

    def _release(self, page: PageId) -> None:
        """Forget a page that no tier holds."""
        if not any(page in table.pages for table in self._tiers.values()):
            del self._places[page]

    def _check(self) -> None:
        """Assert what must always hold. O(everything)."""
        held = {page for table in self._tiers.values() for page in table.pages}
        assert held == self._places.keys()
        for table in self._tiers.values():
            counts: dict[int, int] = {}
            for page, times in table.pages.items():
                assert times > 0
                for block in self._places[page].completed():
                    counts[block] = counts.get(block, 0) + 1
            assert counts == table.blocks
        waiting = [run for runs in self._waiting.values() for run in runs]
        assert all(self._waiting.values())
        assert not any(run.rooted for run in waiting)
        assert sum(len(run.ids) for run in waiting) == self._waiting_pages <= self._waiting_limit
        unrooted = {id(place.run) for place in self._places.values() if not place.run.rooted}
        assert unrooted <= {id(run) for run in waiting}


def _changes(kind: type[BlocksStored | BlocksRemoved], hashes: list[int], tier: Tier) -> list[CacheEvent]:
    return [kind(_packed(hashes, len(hashes)), tier)] if hashes else []


def _packed(hashes: Iterable[int], count: int) -> bytes:
    return pack_hashes(np.fromiter(hashes, np.uint64, count))
