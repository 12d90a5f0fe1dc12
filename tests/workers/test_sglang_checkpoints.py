"""When checkpoints are written, and what happens when they cannot be."""

from __future__ import annotations

import asyncio

import pytest

from events.bus.log import LogError
from workers.sglang.checkpoints import CheckpointPace, RankCheckpoints

from .fake_sglang import until

PACE = CheckpointPace(look_seconds=0.001, least_bytes=100, retry_seconds=0.001)


class Relay:
    """What a relay says of itself."""

    def __init__(self):
        self.published_bytes, self.seq, self.rebuilds = 0, -1, 0

    def publish(self, size):
        self.published_bytes += size
        self.seq += 1

    def snapshot(self, position):
        return [position]


class History:
    """Notes what is written; fails on demand."""

    def __init__(self):
        self.opened, self.written, self.fails, self.size = 0, [], False, 150

    async def open(self):
        self.opened += 1
        if self.fails:
            raise LogError("no streams here")

    async def write(self, taken):
        self.written.append(taken(7))
        return self.size


class Site:
    def __init__(self, **pace):
        self.relay, self.history = Relay(), History()
        self.checkpoints = RankCheckpoints(self.relay, self.history, PACE._replace(**pace))

    async def __aenter__(self):
        self.task = asyncio.create_task(self.checkpoints.run())
        return self

    async def __aexit__(self, *error):
        self.task.cancel()
        await asyncio.wait([self.task])

    async def wrote(self, count):
        await until(lambda: self.checkpoints.statistics().written == count)


async def test_the_first_is_written_at_once_and_the_next_when_enough_was_published():
    async with Site() as site:
        await site.wrote(1)
        assert site.history.written == [[7]]
        site.relay.publish(149)
        assert not site.checkpoints.due()  # the last one had 150
        site.relay.publish(1)
        await site.wrote(2)
        assert not site.checkpoints.due()
        assert site.history.opened == 1


@pytest.mark.parametrize(("pace", "changed"), [({"changed_seconds": 0.0}, True), ({"always_seconds": 0.0}, False)])
async def test_a_little_is_enough_after_a_while_and_nothing_after_long(pace, changed):
    site = Site(**pace)
    await site.checkpoints._write()
    assert site.checkpoints.due() is not changed
    site.relay.publish(1)
    assert site.checkpoints.due() is changed


async def test_a_mirror_that_was_built_anew_is_written_at_once():
    site = Site()
    await site.checkpoints._write()
    assert not site.checkpoints.due()
    site.relay.rebuilds = 1
    assert site.checkpoints.due()
    await site.checkpoints._write()
    assert not site.checkpoints.due()


async def test_trouble_is_said_once_and_tried_again(caplog):
    site = Site()
    site.history.fails = True
    async with site:
        await until(lambda: site.checkpoints.statistics().failed > 2)
        assert site.checkpoints.statistics().written == 0
        site.history.fails = False
        await site.wrote(1)
    assert sum("no streams here" in record.getMessage() for record in caplog.records) == 1
