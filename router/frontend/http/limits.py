"""How large, how many, how long."""

from __future__ import annotations

from typing import NamedTuple


class Limits(NamedTuple):
    """What a client may ask of a connection."""

    head_bytes: int = 64 * 1024
    """Of a request's line and headers; what came with the same read may be on top."""
    body_bytes: int = 32 * 1024 * 1024
    waiting_requests: int = 16
    """Sent before the answers to those before them (pipelined); they are answered in order."""
    head_seconds: float = 30.0
    """From a request's first byte to the end of its headers."""
    body_seconds: float = 60.0
    """Between two pieces of a body."""
    write_seconds: float = 120.0
    """In which a client that has as much as is buffered for it must take something."""
    keepalive_seconds: float = 620.0
    """Without a request: longer than the proxies that may stand in front keep theirs, so that they never meet a closed one."""
    linger_seconds: float = 2.0
    """How long the client of a refused request is still listened to, so that it reads the refusal before it meets a reset."""
