"""Named numpy columns over the targets' slots."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


class Columns(dict[str, "NDArray[Any]"]):
    """A table with one row per slot, that grows as slots are used: column by name, of shape (slots,), contiguous.

    A column is a view, valid until the next `reserve` that returns True. A dict, since decisions look up dozens of them.

    >>> load = Columns(tokens=np.int64)
    >>> load.reserve(2)
    True
    >>> load["tokens"][1] += 5
    >>> load["tokens"]
    array([0, 5])
    """

    def __init__(self, **dtypes: type[np.generic] | type[float]) -> None:
        super().__init__((name, np.zeros(0, dtype)) for name, dtype in dtypes.items())
        self._rows = dict(self)
        self.slots = 0
        """How many rows there are."""

    def reserve(self, slots: int) -> bool:
        """Have at least that many rows; new ones are zero. Returns whether there were fewer. Amortised O(1) per row."""
        if slots <= self.slots:
            return False
        for name, rows in self._rows.items():
            if slots > len(rows):
                self._rows[name] = np.zeros(max(8, 2 * slots), rows.dtype)
                self._rows[name][: len(rows)] = rows
        self.slots = slots
        self.update((name, rows[:slots]) for name, rows in self._rows.items())
        return True

    def reset(self, slot: int) -> None:
        """Zero a row."""
        for column in self.values():
            column[slot] = 0

    def __repr__(self) -> str:
        return f"Columns({', '.join(self)}; {self.slots} slots)"
