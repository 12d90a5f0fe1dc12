"""What can go wrong on the wire."""

from __future__ import annotations


class HttpError(Exception):
    """Base of the client's errors."""


class ConnectFailed(HttpError):
    """No connection: refused, unknown host, or not in time."""


class ConnectionLost(HttpError):
    """The connection ended within an exchange."""

    def __init__(self, message: str, *, answered: bool) -> None:
        super().__init__(message)
        self.answered = answered
        """Whether a byte of the answer had come."""


class TimedOut(HttpError):
    """The server was silent for too long."""


class MalformedResponse(HttpError):
    """The answer is not HTTP/1.1, or larger than allowed."""


class PoolFull(HttpError):
    """As many connections to the origin as may be are in use."""
