"""What can go wrong at an engine, in families.

After all but `EngineRefused` the request may be tried elsewhere.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from router.core.request import Target

    Blamed = tuple[Target] | tuple[Target, Target]
    """Whose fault a failure is: a target's, or that of a prefill and a decode target together."""


class EngineError(Exception):
    """Base of the engine's errors; `kind` is the label in metrics and logs."""

    kind: ClassVar[str] = "error"


class EngineUnreachable(EngineError):
    """No connection, or it was closed before any answer."""

    kind = "unreachable"


class EngineTimeout(EngineError):
    """No first token, or no further one, in time."""

    kind = "timeout"


class EngineFailed(EngineError):
    """A server error, a broken stream, or an answer that makes no sense."""

    kind = "failed"


class EngineAborted(EngineFailed):
    """The engine gave the request up without being asked to (its operator aborted it, or it ran out of memory)."""

    kind = "aborted"


class RendezvousFailed(EngineFailed):
    """A prefill and a decode worker did not come together: the fault is the pair's, of which side nobody knows."""

    kind = "rendezvous"


class EngineBusy(EngineError):
    """As many connections to the engine are open as may be; nothing was sent, and nothing is wrong with it."""

    kind = "busy"


class EngineRefused(EngineError):
    """The engine finds the request itself wrong; no other worker would take it."""

    kind = "refused"

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
