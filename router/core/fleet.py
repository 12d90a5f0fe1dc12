"""The targets as dense slot numbers, and what a policy sees of them."""

from __future__ import annotations

import heapq
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from router.core.columns import Columns
from router.core.request import Part

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from router.core.overlap import Overlap
    from router.core.request import Target

PARTS = tuple(Part)
"""In the order of their numbers in the column `part`."""


class FleetView(NamedTuple):
    """All that a policy may know of the targets, at one moment and for one request.

    Arrays have one entry per slot, shape (slots,); they are the scheduler's own: read, do not write, do not keep. Only entries
    where `eligible` is true mean anything.
    """

    block_size: int
    """Tokens in a block."""
    eligible: NDArray[np.bool_]
    """The targets that passed every filter."""
    overlap: Overlap
    """Leading blocks of the prompt per kind, int32."""
    active_blocks: Callable[[], NDArray[np.int32]]
    """Leading blocks of the prompt that are part of a request in flight there; counted when asked for, as few policies do."""
    held_blocks: Callable[[], NDArray[np.int64]]
    """Blocks held there, predicted ones included; counted when asked for."""
    uncached_tokens: NDArray[np.int64]
    """Tokens of the prompt to be prefilled there, at least 1."""
    prefill_tokens: NDArray[np.int64]
    """Uncached tokens booked there that still wait for their request's first token."""
    reported_prefill_tokens: NDArray[np.float64]
    """What the engine says of the same; a lower bound, 0 where it says nothing."""
    active_requests: NDArray[np.int64]
    """Requests in flight."""
    decode_blocks: NDArray[np.int64]
    """Distinct full prompt blocks of the requests in flight."""
    context_tokens: NDArray[np.int64]
    """Prompt and output tokens of the requests in flight."""
    prefill_rate: NDArray[np.float64]
    """Tokens per second."""
    capacity_blocks: NDArray[np.int64]
    max_running_requests: NDArray[np.int64]
    """-1: not known."""
    last_placed: NDArray[np.int64]
    """The number of the last decision in favour of the target; -1: there was none yet."""

    def queued_prefill_tokens(self) -> NDArray[np.float64]:
        """What is to be prefilled before this request: booked here, or more if the engine reports more (other routers, direct
        clients). float64 (slots,).
        """
        queued: NDArray[np.float64] = np.maximum(self.prefill_tokens, self.reported_prefill_tokens)
        return queued

    def ttft_seconds(self) -> NDArray[np.float64]:
        """Predicted time to first token: everything queued, then this prompt, at the target's rate. float64 (slots,)."""
        seconds: NDArray[np.float64] = (self.queued_prefill_tokens() + self.uncached_tokens) / self.prefill_rate
        return seconds

    def ttft_seconds_of(self, slot: int) -> float:
        """The same for one target. O(1)."""
        queued = max(self.prefill_tokens.item(slot), self.reported_prefill_tokens.item(slot))
        seconds: float = (queued + self.uncached_tokens.item(slot)) / self.prefill_rate.item(slot)
        return seconds


class Fleet:
    """Which target has which slot, and what its card says of it. A slot is reused after its target left, lowest first.

    Columns: `present`, `available` (it is `fit`, and not `held`), `exact`, `model` (an interned number), `part` (its place in
    `PARTS`), `caches` (whether prompts stay in its cache), `page_size`, `capacity_blocks`, `max_running_requests` (-1: not
    known), `last_placed` (-1: never), `precedence` (a billionth for each target that comes before it by name: breaks ties alike
    wherever the same targets are known).
    """

    def __init__(self) -> None:
        self.columns: Columns = Columns(
            present=np.bool_,
            available=np.bool_,
            fit=np.bool_,
            held=np.bool_,
            exact=np.bool_,
            model=np.int64,
            part=np.int64,
            caches=np.bool_,
            page_size=np.int64,
            capacity_blocks=np.int64,
            max_running_requests=np.int64,
            last_placed=np.int64,
            precedence=np.float64,
        )
        self._slots: dict[Target, int] = {}
        self._targets: dict[int, Target] = {}
        self._free: list[int] = []
        self._models: dict[str, int] = {}
        self._of_part = dict.fromkeys(PARTS, 0)

    def __len__(self) -> int:
        """Targets that are there."""
        return len(self._slots)

    @property
    def slots(self) -> int:
        """Slots ever used: the length of every column."""
        return self.columns.slots

    def add(
        self,
        target: Target,
        *,
        capacity_blocks: int,
        model: str,
        page_size: int,
        exact: bool,
        max_running_requests: int | None,
        part: Part = Part.WHOLE,
        caches: bool = True,
    ) -> int:
        """Give a target a slot.

        :raises ValueError: it has one.
        """
        if target in self._slots:
            raise ValueError(f"target {target} is there already")
        slot = heapq.heappop(self._free) if self._free else self.slots
        self.columns.reserve(slot + 1)
        self._slots[target], self._targets[slot] = slot, target
        self._of_part[part] += 1
        row = {
            "present": True,
            "available": True,
            "fit": True,
            "held": False,
            "exact": exact,
            "model": self._models.setdefault(model, len(self._models)),
            "part": PARTS.index(part),
            "caches": caches,
            "page_size": page_size,
            "capacity_blocks": capacity_blocks,
            "max_running_requests": -1 if max_running_requests is None else max_running_requests,
            "last_placed": -1,
        }
        for name, value in row.items():
            self.columns[name][slot] = value
        self._order()
        return slot

    def remove(self, target: Target) -> int:
        """Take a target's slot back.

        :raises KeyError: it has none.
        """
        slot = self._slots.pop(target)
        del self._targets[slot]
        self._of_part[self.part(slot)] -= 1
        self.columns.reset(slot)
        self._order()
        heapq.heappush(self._free, slot)
        return slot

    def slot(self, target: Target) -> int | None:
        """A target's slot. None: it is not there."""
        return self._slots.get(target)

    def target(self, slot: int) -> Target:
        """Who has a slot.

        :raises KeyError: nobody.
        """
        return self._targets[slot]

    def part(self, slot: int) -> Part:
        """What a target does of a request."""
        number: int = self.columns["part"].item(slot)
        return PARTS[number]

    def has(self, part: Part) -> bool:
        """Whether any target does this part. O(1)."""
        return self._of_part[part] > 0

    def count(self, part: Part) -> int:
        """How many targets do this part. O(1)."""
        return self._of_part[part]

    def items(self) -> list[tuple[int, Target]]:
        """Slots and their targets, in the order of slots."""
        return sorted(self._targets.items())

    def model_number(self, model: str) -> int:
        """A model's number in the column `model`; -1: no target ever served it."""
        return self._models.get(model, -1)

    def model_name(self, slot: int) -> str:
        """What model a target serves."""
        return list(self._models)[int(self.columns["model"][slot])]

    def _order(self) -> None:
        for place, target in enumerate(sorted(self._slots)):
            self.columns["precedence"][self._slots[target]] = place * 1e-9

    def _check(self) -> None:
        assert {slot: target for target, slot in self._slots.items()} == self._targets
        parts = [self.part(slot) for slot in self._targets]
        assert self._of_part == {part: parts.count(part) for part in PARTS}
        order = [self.columns["precedence"][slot] for _, slot in sorted(self._slots.items())]
        assert order == [place * 1e-9 for place in range(len(self))]
        assert np.flatnonzero(self.columns["present"]).tolist() == sorted(self._targets)
        assert sorted([*self._targets, *self._free]) == list(range(self.slots))

    def __repr__(self) -> str:
        return f"Fleet({', '.join(str(target) for _, target in self.items())})"
