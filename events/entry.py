"""Compiled kernels without numba's look at their arguments' types."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable


def entry(kernel: Any) -> Callable[..., Any]:
    """The compiled function of a kernel that has one signature: a call costs 0.2 µs less, a third to a half of a small kernel's.

    Integers and floats are converted as usual, and no array, or one of items of another size, raises TypeError. But an array of
    other items of that size, of more dimensions, or not contiguous where the signature says so, goes unnoticed, and may crash the
    process: for callers that know what they have.
    """
    (signature,) = kernel.signatures
    compiled: Callable[..., Any] = kernel.overloads[signature].entry_point
    return compiled
