"""A link to a NATS server that can lose, repeat, swap and hold back the messages that its client publishes."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING

from launch.link import Link

if TYPE_CHECKING:
    from launch.link import Change

HELD_SECONDS = 0.3


class NatsLink(Link):
    """Disturbs the next messages whose subject holds `subject_part`; everything else passes as it is."""

    def __init__(self, port: int, subject_part: bytes = b".kv.") -> None:
        super().__init__(port)
        self._subject_part = subject_part
        self._orders: deque[str] = deque()
        self.disturbed = 0

    def disturb(self, kind: str, count: int) -> None:
        """Let this happen to the next `count` messages: drop, duplicate, reorder or delay."""
        self._orders.extend([kind] * count)

    def forgive(self) -> None:
        """Disturb nothing more."""
        self._orders.clear()

    def outward(self) -> Change:
        """One connection's protocol: lines, and after PUB and HPUB a payload of the length that the line ends with."""
        pending = bytearray()
        swapped: list[bytes] = []

        async def change(data: bytes) -> bytes:
            pending.extend(data)
            passed = []
            while (frame := _take_frame(pending)) is not None:
                kind = self._next() if self._is_ours(frame) else None
                if kind == "delay":
                    await asyncio.sleep(HELD_SECONDS)
                if kind == "reorder":
                    swapped.append(frame)
                    continue
                if kind != "drop":
                    passed += [frame] * (2 if kind == "duplicate" else 1)
                if swapped and self._is_ours(frame):
                    passed += swapped
                    swapped.clear()
            return b"".join(passed)

        return change

    def _is_ours(self, frame: bytes) -> bool:
        words = frame[: frame.find(b"\r\n")].split(b" ")
        return words[0] in (b"PUB", b"HPUB") and self._subject_part in words[1]

    def _next(self) -> str | None:
        if not self._orders:
            return None
        self.disturbed += 1
        return self._orders.popleft()


def _take_frame(pending: bytearray) -> bytes | None:
    """The first whole protocol message, taken out; None: it is not all there."""
    end = pending.find(b"\r\n")
    if end < 0:
        return None
    line = bytes(pending[:end])
    size = end + 2
    if line.startswith((b"PUB ", b"HPUB ")):
        size += int(line.rsplit(b" ", 1)[1]) + 2
    if len(pending) < size:
        return None
    frame = bytes(pending[:size])
    del pending[:size]
    return frame
