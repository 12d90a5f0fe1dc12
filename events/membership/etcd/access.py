"""Where an etcd cluster is, and how to get in. Needs no etcd client: command lines check it before they import one."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from pathlib import Path

DEFAULT_URL = "http://127.0.0.1:2379"


@dataclass(frozen=True, kw_only=True)
class EtcdAccess:
    """A cluster's members, a user, and certificates.

    :raises ValueError: a URL is no http(s)://HOST:PORT, http and https are mixed, a certificate comes without its key, or a user
        without a password.
    """

    urls: tuple[str, ...] = (DEFAULT_URL,)
    """Members of one cluster; when one fails, the next is asked."""
    user: str | None = None
    password: str | None = field(default=None, repr=False)
    ca_file: Path | None = None
    """None: the system's authorities."""
    cert_file: Path | None = None
    key_file: Path | None = None

    def __post_init__(self) -> None:
        """Refuse what cannot work."""
        if not self.urls:
            raise ValueError("no URL of an etcd member")
        schemes = {_checked(url) for url in self.urls}
        if len(schemes) > 1:
            raise ValueError("http and https members cannot be mixed")
        if (self.user is None) != (self.password is None):
            raise ValueError("a user needs a password, and a password a user")
        if (self.cert_file is None) != (self.key_file is None):
            raise ValueError("a certificate needs its key, and a key its certificate")
        if (self.ca_file or self.cert_file) and not self.secure:
            raise ValueError(f"{self.urls[0]} is not https: certificates would have no effect")

    @property
    def secure(self) -> bool:
        """Whether the members speak TLS."""
        return self.urls[0].startswith("https:")

    @property
    def members(self) -> list[str]:
        """HOST:PORT of each."""
        return [urlsplit(url).netloc for url in self.urls]

    def __str__(self) -> str:
        return ", ".join(self.urls)


def _checked(url: str) -> str:
    """A member URL's scheme."""
    parts = urlsplit(url)
    try:
        complete = parts.scheme in ("http", "https") and parts.hostname and parts.port
    except ValueError:
        complete = False
    if not complete or parts.path.strip("/") or parts.query or parts.username:
        raise ValueError(f"{url!r} is not http://HOST:PORT or https://HOST:PORT")
    return parts.scheme
