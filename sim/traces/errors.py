"""What is wrong with a trace, and where."""

from __future__ import annotations

from typing import TYPE_CHECKING

from events.command import UsageError

if TYPE_CHECKING:
    from pathlib import Path


class TraceError(UsageError):
    """A trace that cannot be used. The message is one line: file, line, field, reason.

    >>> str(TraceError("must be at least 1, not 0", path="a.jsonl", line=3, field="input_length"))
    'a.jsonl, line 3: input_length: must be at least 1, not 0'
    """

    def __init__(
        self, reason: str, *, path: Path | str | None = None, line: int | None = None, field: str | None = None
    ) -> None:
        self.reason, self.path, self.line, self.field = reason, path, line, field
        place = ", ".join(part for part in (str(path) if path else "", f"line {line}" if line else "") if part)
        super().__init__(": ".join(part for part in (place, field, reason) if part))
