"""What differs between two looks at a registry."""

from __future__ import annotations

from typing import TYPE_CHECKING

from events.membership import Change, Joined, Left

if TYPE_CHECKING:
    from collections.abc import Mapping

    from events.membership import WorkerCard


def changes(before: Mapping[str, WorkerCard], after: Mapping[str, WorkerCard]) -> list[Change]:
    """Who left, then who joined or has another card. O(n)."""
    left: list[Change] = [Left(worker_id) for worker_id in before if worker_id not in after]
    return left + [Joined(card) for worker_id, card in after.items() if before.get(worker_id) != card]
