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
        self,
        reason: str,
        *,
        path: Path | str | None = None,
        line: int | None = None,
        row: int | None = None,
        field: str | None = None,
    ) -> None:
        self.reason, self.path, self.line, self.row, self.field = reason, path, line, row, field
        numbers = (("line", line), ("request", row))
        place = [str(path)] * bool(path) + [f"{what} {number}" for what, number in numbers if number is not None]
        super().__init__(": ".join(part for part in (", ".join(place), field, reason) if part))
