"""How far a replay is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

from rich.console import Console
from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

if TYPE_CHECKING:
    from collections.abc import Callable

PATIENCE_STEPS = 0.002
"""A bar moves when so much more is done."""


class Progress:
    """Bars on standard error, one per replay, if that is a terminal; they are gone when all is done.

    >>> with Progress() as progress:
    ...     tell = progress.bar("warm")
    ...     tell(0.5)
    """

    def __init__(self) -> None:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        console = Console(stderr=True)
        self._bars = Bars(*columns, console=console, transient=True, disable=not console.is_terminal)

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._bars.stop()

    def bar(self, label: str) -> Callable[[float], None]:
        """A new bar; call what is returned with the share that is done, from 0 to 1. O(1) and cheap between two steps."""
        task = self._bars.add_task(label, total=1.0)
        shown = 0.0

        def tell(share: float) -> None:
            nonlocal shown
            if share - shown >= PATIENCE_STEPS or share >= 1.0:
                shown = share
                self._bars.update(task, completed=share)

        return tell
