"""Header fields, in and out."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from functools import lru_cache
from http import HTTPStatus
from typing import TypeVar, overload

_Other = TypeVar("_Other")


class Headers(Mapping[str, str]):
    """A request's header fields; names in any case. Values of a repeated field are joined by commas (RFC 9110, 5.3).

    >>> headers = Headers()
    >>> headers.add(b"X-Request-Id", b"7")
    >>> headers["x-request-id"], headers.get("Accept")
    ('7', None)
    """

    __slots__ = ("_values",)

    def __init__(self) -> None:
        self._values: dict[bytes, bytes] = {}

    def add(self, name: bytes, value: bytes) -> None:
        """One more field, as it was sent."""
        key = name.lower()
        values = self._values
        values[key] = b"%b, %b" % (values[key], value) if key in values else value

    def raw(self, name: bytes) -> bytes | None:
        """A field's value as it was sent; `name` in lower case. O(1)."""
        return self._values.get(name)

    @overload
    def get(self, key: str, /) -> str | None: ...

    @overload
    def get(self, key: str, /, default: str | _Other) -> str | _Other: ...

    def get(self, key: str, /, default: str | _Other | None = None) -> str | _Other | None:
        """A field's value; of one that is missing the default. O(1)."""
        value = self._values.get(key.lower().encode("latin-1", "replace"))
        return default if value is None else value.decode("latin-1")

    def __getitem__(self, name: str) -> str:
        return self._values[name.lower().encode("latin-1", "replace")].decode("latin-1")

    def __iter__(self) -> Iterator[str]:
        return (name.decode("latin-1") for name in self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        return f"Headers({list(self)})"


def head(status: int, headers: Mapping[str, str]) -> bytes:
    """A reply's status line and headers, without the blank line that ends them.

    :raises ValueError: a header has a line break or is not Latin-1.
    """
    text = "".join([f"{name}: {value}\r\n" for name, value in headers.items()])
    if text.count("\n") != len(headers) or text.count("\r") != len(headers) or "\0" in text:
        raise ValueError("a header must not have a line break")
    return b"%b%b%b" % (_status_line(status), _date(int(time.time())), text.encode("latin-1"))


@lru_cache(maxsize=128)
def _status_line(status: int) -> bytes:
    try:
        phrase = HTTPStatus(status).phrase
    except ValueError:
        phrase = ""
    return f"HTTP/1.1 {status} {phrase}\r\n".encode()


@lru_cache(maxsize=2)
def _date(seconds: int) -> bytes:
    """In the one form that HTTP allows to be sent, whatever the locale (RFC 9110, 5.6.7)."""
    year, month, day, hour, minute, second, weekday = time.gmtime(seconds)[:7]
    days = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
    months = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
    date = f"{days[weekday]}, {day:02} {months[month - 1]} {year} {hour:02}:{minute:02}:{second:02} GMT"
    return f"Date: {date}\r\n".encode()
