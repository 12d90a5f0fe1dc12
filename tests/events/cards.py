"""Worker cards, and a watch that remembers, for tests of registries."""

from __future__ import annotations

import asyncio

from events.membership import Joined, Listed, WorkerCard


def card(worker_id="w1", epoch=1, **fields):
    return WorkerCard(
        worker_id=worker_id,
        epoch=epoch,
        model="tiny",
        endpoint="http://127.0.0.1:30000",
        capacity_tokens=1000,
        context_tokens=500,
        **fields,
    )


class Watch:
    """All changes that a registry's watch gives, as they come; and how many there were when it said that it had listed all."""

    def __init__(self, registry):
        self.changes = []
        self.listed = []
        self.task = asyncio.create_task(self._run(registry))

    async def _run(self, registry):
        async for change in registry.watch():
            if isinstance(change, Listed):
                assert change.cards == len(self.changes)
                self.listed.append(change.cards)
            else:
                self.changes.append(change)

    @property
    def present(self):
        present = {}
        for change in self.changes:
            if isinstance(change, Joined):
                present[change.card.worker_id] = change.card
            else:
                del present[change.worker_id]
        return present
