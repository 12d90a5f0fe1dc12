"""Named numpy columns over the targets' slots."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


class Columns:
    """A table with one row per slot, that grows as slots are used.

    >>> load = Columns(tokens=np.int64)
    >>> load.reserve(2)
    >>> load["tokens"][1] += 5
    >>> load["tokens"]
    array([0, 5])
    """

    def __init__(self, **dtypes: type[np.generic] | type[float]) -> None:
        self._rows: dict[str, NDArray[Any]] = {name: np.zeros(0, dtype) for name, dtype in dtypes.items()}
        self._columns = self._rows
        self._slots = 0

    def __len__(self) -> int:
        return self._slots

    def __getitem__(self, name: str) -> NDArray[Any]:
        """A column, shape (slots,), contiguous: a view, valid until the next `reserve`. O(1).

        :raises KeyError: there is no such column.
        """
        return self._columns[name]

    def reserve(self, slots: int) -> None:
        """Have at least that many rows; new ones are zero. Amortised O(1) per row."""
        if slots <= self._slots:
            return
        for name, rows in self._rows.items():
            if slots > len(rows):
                self._rows[name] = np.zeros(max(8, 2 * slots), rows.dtype)
                self._rows[name][: len(rows)] = rows
        self._slots = slots
        self._columns = {name: rows[:slots] for name, rows in self._rows.items()}

    def reset(self, slot: int) -> None:
        """Zero a row."""
        for column in self._columns.values():
            column[slot] = 0

    def __repr__(self) -> str:
        return f"Columns({', '.join(self._columns)}; {self._slots} slots)"
