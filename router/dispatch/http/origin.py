"""Scheme, host and port: what a connection is made to."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple
from urllib.parse import urlsplit

DEFAULT_PORTS = {"http": 80, "https": 443}


class Origin(NamedTuple):
    """Where a server is."""

    scheme: str
    host: str
    port: int

    def __str__(self) -> str:
        return f"{self.scheme}://{self.authority}"

    @property
    def authority(self) -> str:
        """The `Host` header's value."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == DEFAULT_PORTS[self.scheme] else f"{host}:{self.port}"


class Location(NamedTuple):
    """An origin, and the path there, query included."""

    origin: Origin
    path: str


@lru_cache(maxsize=4096)
def locate(url: str) -> Location:
    """A URL's origin and path.

    :raises ValueError: its scheme is not http or https, it has no host, or a character that would break the request's head.

    >>> locate("http://10.0.0.1:30000/generate")
    Location(origin=Origin(scheme='http', host='10.0.0.1', port=30000), path='/generate')
    """
    parts = urlsplit(url)
    if parts.scheme not in DEFAULT_PORTS or not parts.hostname:
        raise ValueError(f"not a URL like http://HOST:PORT/PATH: {url!r}")
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    if not (path + parts.hostname).isascii() or any(character.isspace() for character in url):
        raise ValueError(f"a URL must be ASCII, and without spaces: {url!r}")
    return Location(Origin(parts.scheme, parts.hostname, parts.port or DEFAULT_PORTS[parts.scheme]), path)
