"""Ports that nobody uses now."""

from __future__ import annotations

import os
import socket
from contextlib import ExitStack

FIRST, LAST = 20_000, 32_000
"""Below the ports that systems give to outgoing connections: they stay free until an engine has loaded its model."""


class NoPort(OSError):
    """No port is free."""


def free_run(length: int) -> int:
    """The first of `length` consecutive free ports. Where to look first depends on the process, so that several rarely meet.

    :raises NoPort: there is no such run.
    """
    span = LAST - FIRST - length
    start = os.getpid() * 97 % span
    for step in range(span // length):
        first = FIRST + (start + step * length) % span
        if all_free(first, length):
            return first
    raise NoPort(f"no {length} consecutive free ports between {FIRST} and {LAST}")


def all_free(first: int, length: int = 1) -> bool:
    """Whether nobody listens at these ports, on any address of this machine."""
    with ExitStack() as held:
        try:
            for port in range(first, first + length):
                probe = held.enter_context(socket.socket(socket.AF_INET, socket.SOCK_STREAM))
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(("", port))
        except OSError:
            return False
    return True


def address_towards(host: str, port: int) -> str:
    """Our own address on the way to another machine; nothing is sent. `127.0.0.1` where there is no way."""
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind) as probe:
            probe.connect(address)
            return str(probe.getsockname()[0])
    except OSError:
        return "127.0.0.1"
