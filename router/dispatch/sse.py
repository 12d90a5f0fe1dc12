"""Bytes → the `data` of server-sent events, however the network cut them.

Source of the format: WHATWG HTML, "Server-sent events". Fields other than `data` and comments are skipped.
"""

from __future__ import annotations

MAX_EVENT_BYTES = 64 * 1024 * 1024


class EventTooLong(Exception):
    """An event without an end in sight."""


class SseDecoder:
    r"""Splits a byte stream into events. Amortised O(bytes).

    >>> decoder = SseDecoder()
    >>> decoder.feed(b'data: {"a"')
    []
    >>> decoder.feed(b': 1}\n\ndata: [DONE]\n\n')
    [b'{"a": 1}', b'[DONE]']
    """

    def __init__(self, max_event_bytes: int = MAX_EVENT_BYTES) -> None:
        self._max_event_bytes = max_event_bytes
        self._line = bytearray()  # the line not yet ended
        self._data: list[bytes] = []  # `data` lines of the event not yet ended
        self._size = 0

    def __repr__(self) -> str:
        return f"SseDecoder({len(self._line) + self._size} bytes pending)"

    def feed(self, chunk: bytes) -> list[bytes]:
        """The events that this chunk completes.

        :raises EventTooLong: the pending event is larger than `max_event_bytes`.
        """
        *ended, rest = chunk.split(b"\n")
        events: list[bytes] = []
        for line in ended:
            self._line += line
            self._end_line(bytes(self._line.removesuffix(b"\r")), events)
            self._line.clear()
        self._line += rest
        if len(self._line) + self._size > self._max_event_bytes:
            raise EventTooLong(f"a server-sent event exceeds {self._max_event_bytes} bytes")
        return events

    def _end_line(self, line: bytes, events: list[bytes]) -> None:
        if line.startswith(b"data:"):
            value = line[5:].removeprefix(b" ")
            self._data.append(value)
            self._size += len(value)
        elif not line and self._data:
            events.append(b"\n".join(self._data))
            self._data.clear()
            self._size = 0
