"""The write path under loss, restarts and reconnects: afterwards the index holds what the adapter holds."""

from __future__ import annotations

import asyncio
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import numpy as np
import pytest

from events import messages, subjects
from events.bus.memory import MemoryBroker, MemoryBus
from events.messages import (
    BlocksRemoved,
    BlocksStored,
    CacheCleared,
    KvEvents,
    KvMark,
    SnapshotChunk,
    SnapshotRequest,
    Tier,
    WorkerLoad,
)
from events.snapshot import Snapshot, SnapshotError
from router.core import RoutingRequest, Scheduler, Target
from router.core.policy import create
from router.metrics import Metrics
from router.service import feed as feed_module
from router.service.event_collector import EventCollector
from router.service.feed import EventFeed
from router.service.snapshots import HistorySnapshots

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable

    from events.bus import Subscription
    from events.messages import CacheEvent

NAMESPACE = "test"
TARGET = Target("w0", 0)


class FakeAdapter:
    """One rank's truth: publishes what changes unless told to lose it, and answers snapshot requests."""

    def __init__(self, bus: MemoryBus, epoch: int = 1) -> None:
        self.bus = bus
        self.epoch = epoch
        self.seq = -1
        self.held: list[int] = []
        self.snapshots = 0
        self.doubts = 0
        self.chunk_count: int | None = None
        self.gate: asyncio.Event | None = None

    async def open(self) -> Subscription:
        return await self.bus.serve(subjects.snapshot(NAMESPACE, *TARGET), self.snapshot)

    async def snapshot(self, data: bytes) -> Iterable[bytes]:
        self.snapshots += 1
        request = messages.decode(data)
        assert isinstance(request, SnapshotRequest)
        self.doubts += request.distrusted
        if self.gate is not None:
            await self.gate.wait()
        stored = [BlocksStored(packed(self.held))] if self.held else []
        count = self.chunk_count or 1
        return [messages.encode(SnapshotChunk(*TARGET, self.epoch, self.seq, 0, count, stored))]

    async def publish(self, *events: CacheEvent, lose: bool = False) -> None:
        self.seq += 1
        if not lose:
            message = KvEvents(*TARGET, self.epoch, self.seq, list(events), time.time())
            await self.bus.publish(subjects.kv(NAMESPACE, *TARGET), messages.encode(message))

    async def store(self, *hashes: int, lose: bool = False) -> None:
        self.held += hashes
        await self.publish(BlocksStored(packed(hashes)), lose=lose)

    async def remove(self, *hashes: int, lose: bool = False) -> None:
        self.held = [held for held in self.held if held not in hashes]
        await self.publish(BlocksRemoved(packed(hashes)), lose=lose)

    async def clear(self, *, lose: bool = False) -> None:
        self.held = []
        await self.publish(CacheCleared(), lose=lose)

    async def mark(self, seq: int | None = None, **trouble: int) -> None:
        message = KvMark(*TARGET, self.epoch, self.seq if seq is None else seq, **trouble)
        await self.bus.publish(subjects.mark(NAMESPACE, *TARGET), messages.encode(message))

    async def load(self, epoch: int, waiting: int) -> WorkerLoad:
        load = WorkerLoad(*TARGET, epoch, 3, 1, 500, 65536, waiting_uncached_tokens=waiting)
        await self.bus.publish(subjects.load(NAMESPACE, *TARGET), messages.encode(load))
        return load

    def restart(self) -> None:
        self.epoch, self.seq, self.held = self.epoch + 1, -1, []


class Site:
    """A feed, its scheduler, and the adapter it follows."""

    def __init__(self, broker: MemoryBroker) -> None:
        self.metrics = Metrics()
        self.scheduler = Scheduler(create("warm"), 64)
        self.bus = MemoryBus(broker, name="router")
        self.feed = EventFeed(self.bus, self.scheduler, namespace=NAMESPACE, metrics=self.metrics, clock=time.monotonic)
        self.adapter = FakeAdapter(MemoryBus(broker, name="adapter"))
        self.serving: Subscription | None = None

    def believed(self, hashes: list[int]) -> int:
        """Leading blocks of a prompt that the index holds for the target."""
        request = RoutingRequest("probe", np.array(hashes, np.uint64), 64 * len(hashes))
        (candidate,) = self.scheduler.explain(request, time.monotonic()).candidates
        return candidate.device_blocks

    @property
    def state(self):
        (state,) = self.scheduler.targets()
        return state

    def in_step(self) -> bool:
        """Whether all that the adapter did has been applied."""
        statistics = self.feed.statistics(TARGET)
        assert statistics is not None
        held = self.scheduler._index.held(0, Tier.DEVICE)
        return statistics.live and self.state.exact and set(held.tolist()) == set(self.adapter.held)

    def count(self, name: str, **labels: str) -> float:
        return self.metrics.registry.get_sample_value(name, labels) or 0.0


def packed(hashes: Iterable[int]) -> bytes:
    return messages.pack_hashes(np.array(list(hashes), np.uint64))


@asynccontextmanager
async def opened(*, follow: bool = True) -> AsyncIterator[Site]:
    site = Site(MemoryBroker())
    async with site.bus, site.adapter.bus:
        site.serving = await site.adapter.open()
        await site.feed.open()
        site.scheduler.add_target(TARGET, capacity_tokens=65536, model="m", exact=False)
        if follow:
            site.feed.follow(TARGET)
        yield site
        await site.feed.close()


async def test_history_comes_by_snapshot_and_the_rest_by_events(eventually) -> None:
    async with opened(follow=False) as site:
        await site.adapter.store(1, 2, 3)
        site.feed.follow(TARGET)
        await eventually(site.in_step)
        assert site.believed([1, 2, 3, 4]) == 3
        await site.adapter.store(4)
        await site.adapter.remove(2)
        await eventually(site.in_step)
        assert site.believed([1, 2, 3, 4]) == 1
        assert site.adapter.snapshots == 1


async def test_a_gap_is_found_and_filled_by_a_snapshot(eventually) -> None:
    async with opened() as site:
        await site.adapter.store(1)
        await eventually(site.in_step)
        await site.adapter.store(2, lose=True)
        await site.adapter.remove(1, lose=True)
        await site.adapter.store(3)
        await eventually(site.in_step)
        assert (site.believed([1]), site.believed([2, 3])) == (0, 2)
        statistics = site.feed.statistics(TARGET)
        assert statistics is not None
        assert (statistics.gaps, site.adapter.snapshots) == (1, 2)


async def test_a_restarted_worker_leaves_no_ghosts(eventually) -> None:
    async with opened() as site:
        await site.adapter.store(1, 2)
        await eventually(site.in_step)
        old = KvEvents(*TARGET, site.adapter.epoch, site.adapter.seq + 1, [BlocksStored(packed([9]))])
        site.adapter.restart()
        await site.adapter.store(5)
        await eventually(site.in_step)
        await site.adapter.bus.publish(subjects.kv(NAMESPACE, *TARGET), messages.encode(old))
        await site.adapter.store(6)
        await eventually(site.in_step)
        assert (site.believed([1, 2]), site.believed([5, 6]), site.believed([9])) == (0, 2, 0)
        statistics = site.feed.statistics(TARGET)
        assert statistics is not None
        assert statistics.stale == 1


async def test_after_a_reconnect_nothing_is_taken_for_granted(eventually) -> None:
    async with opened() as site:
        await site.adapter.store(1)
        await eventually(site.in_step)
        await site.adapter.clear(lose=True)  # the last event before a silence: no later one shows the gap
        await site.feed.resynchronise()
        assert not site.state.exact
        await eventually(site.in_step)
        assert site.believed([1]) == 0


async def test_an_incomplete_snapshot_is_asked_for_again(eventually) -> None:
    async with opened(follow=False) as site:
        site.adapter.chunk_count = 2  # claims a chunk that never comes
        await site.adapter.store(1)
        site.feed.follow(TARGET)
        await eventually(lambda: site.count("warmpath_failed_snapshots_total") >= 2)
        assert not site.state.exact
        site.adapter.chunk_count = None
        await eventually(site.in_step)
        assert site.believed([1]) == 1


@pytest.mark.parametrize(
    ("reason", "data"),
    [
        ("undecodable", b"\xc1"),
        ("unexpected", messages.encode(messages.SnapshotRequest("w0", 0))),
        ("unknown rank", messages.encode(KvEvents("stranger", 0, 1, 0, []))),
    ],
)
async def test_what_cannot_be_used_is_counted_and_disturbs_nobody(eventually, reason: str, data: bytes) -> None:
    async with opened() as site:
        await site.adapter.bus.publish(subjects.kv(NAMESPACE, *TARGET), data)
        await site.adapter.store(1)
        await eventually(site.in_step)
        assert site.count("warmpath_events_dropped_total", reason=reason) == 1
        assert site.believed([1]) == 1


async def test_malformed_hashes_fence_the_rank_until_a_snapshot(eventually) -> None:
    async with opened() as site:
        await site.adapter.store(1)
        await eventually(site.in_step)
        await site.adapter.publish(BlocksStored(b"123"))
        await site.adapter.store(2)
        await eventually(site.in_step)
        assert site.believed([1, 2]) == 2
        assert site.count("warmpath_events_dropped_total", reason="malformed hashes") == 1


@pytest.mark.parametrize("events", [True, False], ids=["with events", "without events"])
async def test_load_reports_reach_the_scheduler_and_stale_ones_do_not(eventually, events: bool) -> None:
    async with opened(follow=False) as site:
        site.feed.follow(TARGET, epoch=2, events=events)
        assert (site.feed.statistics(TARGET) is not None) is events
        await site.adapter.load(epoch=1, waiting=9000)
        load = await site.adapter.load(epoch=2, waiting=700)
        await eventually(lambda: site.state.reported is not None)
        assert site.state.reported.load == load
        assert site.count("warmpath_stale_epoch_total", kind="load") == 1


async def test_a_load_report_of_nobody_known_is_counted(eventually) -> None:
    async with opened(follow=False) as site:
        await site.adapter.load(epoch=1, waiting=700)
        await eventually(lambda: site.count("warmpath_events_dropped_total", reason="unknown rank") == 1)
        assert site.state.reported is None


async def test_a_loss_before_a_silence_is_found_by_the_mark(eventually, monkeypatch) -> None:
    monkeypatch.setattr(feed_module, "MARK_GRACE_SECONDS", 0.01)
    async with opened() as site:
        await site.adapter.store(1)
        await eventually(site.in_step)
        await site.adapter.mark()
        await site.adapter.clear(lose=True)
        await site.adapter.mark()
        await eventually(site.in_step)
        assert site.believed([1]) == 0
        assert site.adapter.snapshots == 2
        assert site.count("warmpath_gaps_total", hop="bus") == 1


async def test_a_mark_that_overtakes_its_events_costs_nothing(eventually, monkeypatch) -> None:
    monkeypatch.setattr(feed_module, "MARK_GRACE_SECONDS", 0.05)
    async with opened() as site:
        await eventually(site.in_step)
        await site.adapter.mark(seq=site.adapter.seq + 1)
        await eventually(lambda: site.feed.statistics(TARGET).mark is not None)
        await site.adapter.store(1)
        await eventually(site.in_step)
        await asyncio.sleep(0.1)  # the mark's grace is over: nothing was missing by then
        assert site.feed.statistics(TARGET).live
        assert site.adapter.snapshots == 1


async def test_a_mark_of_a_new_epoch_is_news_enough(eventually, monkeypatch) -> None:
    monkeypatch.setattr(feed_module, "MARK_GRACE_SECONDS", 0.01)
    async with opened() as site:
        await site.adapter.store(1)
        await eventually(site.in_step)
        site.adapter.restart()
        await site.adapter.mark()
        await eventually(lambda: site.feed.statistics(TARGET).epoch == site.adapter.epoch)
        await eventually(site.in_step)
        assert site.believed([1]) == 0


async def test_what_a_mark_tells_of_the_engine_is_counted_once(eventually) -> None:
    async with opened() as site:
        await eventually(site.in_step)
        for gaps, lost in ((1, 0), (1, 0), (3, 7)):
            await site.adapter.mark(gaps=gaps, lost=lost, resets=1, orphans=5, rebuilds=2, corrections=1)
        await eventually(lambda: site.count("warmpath_gaps_total", hop="engine") == 3)
        assert site.count("warmpath_engine_events_lost_total") == 7
        assert site.count("warmpath_mirror_resets_total") == 1
        assert site.count("warmpath_mirror_rebuilds_total") == 2
        assert site.count("warmpath_mirror_corrections_total") == 1
        site.metrics.registry.register(EventCollector(site.feed))
        assert site.count("warmpath_orphans", target=str(TARGET)) == 5
        assert site.count("warmpath_rank_live", target=str(TARGET)) == 1


async def test_a_rank_that_is_not_heard_is_predicted_until_it_is(eventually, monkeypatch, caplog) -> None:
    monkeypatch.setattr(feed_module, "SILENT_SECONDS", 0.05)
    monkeypatch.setattr(feed_module, "LISTEN_SECONDS", 0.01)
    async with opened() as site:
        await site.adapter.store(1)
        await site.adapter.mark()
        await eventually(site.in_step)
        await site.serving.cancel()
        await eventually(lambda: site.feed.statistics(TARGET).silent)
        assert not site.state.exact
        assert site.count("warmpath_silences_total") == 1
        await site.adapter.clear(lose=True)
        site.serving = await site.adapter.open()
        await eventually(site.in_step)
        assert site.believed([1]) == 0
    assert any("not heard any more" in record.getMessage() for record in caplog.records)


async def test_a_snapshot_of_a_life_before_the_card_is_refused(eventually) -> None:
    """An adapter that stood still while its successor registered still answers."""
    async with opened(follow=False) as site:
        await site.adapter.store(1)
        site.feed.follow(TARGET, epoch=site.adapter.epoch + 1)
        await eventually(lambda: site.count("warmpath_stale_epoch_total", kind="snapshot") > 0)
        assert not site.state.exact
        assert site.believed([1]) == 0
        site.adapter.restart()
        await site.adapter.store(2)
        await eventually(site.in_step)
        assert site.believed([2]) == 1


class Source:
    """A source of snapshots that knows what it was told."""

    def __init__(self, name: str, *answers: Snapshot | Exception) -> None:
        self.name = name
        self.answers = list(answers)
        self.asked = 0

    async def fetch(self, target: Target, epoch: int | None, *, distrusted: bool = False) -> Snapshot:
        self.asked += 1
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer


async def test_a_history_is_enough_and_nobody_is_asked(eventually) -> None:
    async with opened(follow=False) as site:
        following = [KvEvents(*TARGET, 1, seq, [BlocksStored(packed([seq]))]) for seq in (5, 6)]
        snapshot = Snapshot(*TARGET, 1, 4, [BlocksStored(packed([1, 2]))], following)
        adapter = Source("adapter", SnapshotError("nobody"))
        site.feed._sources = [Source("history", snapshot), adapter]
        site.adapter.seq, site.adapter.held = 6, [1, 2, 5, 6]
        site.feed.follow(TARGET, epoch=1)
        await eventually(site.in_step)
        await site.adapter.store(7)
        await eventually(site.in_step)
        assert adapter.asked == 0
        assert site.count("warmpath_resyncs_total", source="history") == 1


@pytest.mark.parametrize("behind", [True, False], ids=["behind", "absent"])
async def test_a_history_that_does_not_suffice_is_followed_by_the_adapter(eventually, behind: bool) -> None:
    async with opened(follow=False) as site:
        old = Snapshot(*TARGET, 1, 0, [BlocksStored(packed([99]))]) if behind else SnapshotError("no checkpoint")
        site.feed._sources.insert(0, Source("history", old))
        for block in (1, 2, 3):
            await site.adapter.store(block, lose=True)
        site.feed.follow(TARGET, epoch=1)
        await site.adapter.store(4)
        await eventually(site.in_step)
        assert (site.believed([1, 2, 3, 4]), site.believed([99])) == (4, 0)
        assert site.adapter.snapshots == 1


@pytest.mark.parametrize("kept", [1, 3], ids=["earlier", "later"])
async def test_a_history_of_another_life_is_passed_over(kept: int) -> None:
    """A later one as well: the worker's clock may have jumped back."""

    class Kept:
        async def recall(self, worker_id: str, rank: int) -> Snapshot:
            return Snapshot(worker_id, rank, kept, 0, [])

    source = HistorySnapshots(Kept())
    with pytest.raises(SnapshotError, match=f"of epoch {kept}, not 2"):
        await source.fetch(TARGET, 2)
    assert (await source.fetch(TARGET, None)).epoch == kept


async def test_a_snapshot_asked_for_before_the_latest_doubt_is_worth_nothing(eventually) -> None:
    async with opened() as site:
        await site.adapter.store(1)
        await eventually(site.in_step)
        site.adapter.gate = asyncio.Event()
        site.feed.distrust(TARGET)
        await eventually(lambda: site.adapter.snapshots == 2)
        site.feed.distrust(TARGET)
        site.adapter.gate.set()
        await eventually(site.in_step)
        assert site.adapter.snapshots == 3


async def test_a_doubt_of_the_mirror_reaches_the_adapter_once_through_whatever_fails(eventually) -> None:
    async with opened() as site:
        await site.adapter.store(1)
        await eventually(site.in_step)
        assert site.adapter.doubts == 0
        await site.serving.cancel()
        site.feed.distrust(TARGET, mirror=True)
        await eventually(lambda: site.count("warmpath_failed_snapshots_total") >= 2)
        site.serving = await site.adapter.open()
        await eventually(site.in_step)
        assert site.adapter.doubts == 1
        site.feed.distrust(TARGET)
        await eventually(site.in_step)
        assert (site.adapter.snapshots, site.adapter.doubts) == (3, 1)


async def test_a_doubt_of_the_mirror_is_not_answered_by_its_checkpoint(eventually) -> None:
    class Kept:
        async def recall(self, worker_id: str, rank: int) -> Snapshot:
            return Snapshot(worker_id, rank, 1, 0, [BlocksStored(packed([1]))])

    async with opened() as site:
        site.feed._sources.insert(0, HistorySnapshots(Kept()))
        await site.adapter.store(1)
        await eventually(site.in_step)
        asked = site.adapter.snapshots
        site.feed.distrust(TARGET)
        await eventually(site.in_step)
        assert site.adapter.snapshots == asked  # the checkpoint was enough
        site.feed.distrust(TARGET, mirror=True)
        await eventually(site.in_step)
        assert (site.adapter.snapshots, site.adapter.doubts) == (asked + 1, 1)


async def test_tiers_stay_apart(eventually) -> None:
    async with opened() as site:
        await eventually(site.in_step)
        await site.adapter.publish(BlocksStored(packed([1, 2, 3]), Tier.HOST), BlocksStored(packed([1]), Tier.DEVICE))
        await eventually(lambda: site.state.host_blocks == 3)
        assert site.state.device_blocks == 1


async def test_a_dropped_rank_is_forgotten(eventually) -> None:
    async with opened() as site:
        await eventually(site.in_step)
        site.feed.drop(TARGET)
        await site.adapter.store(1)
        await eventually(lambda: site.count("warmpath_events_dropped_total", reason="unknown rank") == 1)
        assert site.feed.statistics(TARGET) is None


async def test_a_full_index_says_so_once(eventually, caplog: pytest.LogCaptureFixture) -> None:
    async with opened() as site:
        await eventually(site.in_step)
        site.scheduler = Scheduler(create("warm"), 64, max_index_blocks=64)
        site.scheduler.add_target(TARGET, capacity_tokens=2**20, model="m")
        site.feed._scheduler = site.scheduler
        for start in range(1, 4001, 1000):
            await site.adapter.store(*range(start, start + 1000))
        await eventually(lambda: site.scheduler.evicted_prefixes > 0)
        await site.adapter.store(9999)
        await eventually(lambda: site.feed.statistics(TARGET).applied == 5)
        assert sum("--max-index-blocks" in record.message for record in caplog.records) == 1
