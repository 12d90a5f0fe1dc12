"""Why a request has no handler."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable


class Refused(Exception):
    """The server's own objection to a request; after one to its form the connection is closed."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


class NoRoute(Refused):
    """No route has the path."""

    def __init__(self, method: str, path: str) -> None:
        super().__init__(404, f"no such route: {method} {path}")


class MethodNotAllowed(Refused):
    """The path's route takes other methods."""

    def __init__(self, method: str, path: str, allowed: Iterable[str]) -> None:
        self.allowed = ", ".join(sorted(allowed))
        super().__init__(405, f"{path} does not take {method}, but {self.allowed}")
