"""Compiled kernels without numba's look at their arguments' types."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable


def entry(kernel: Any) -> Callable[..., Any]:
    """The compiled function of a kernel that has one signature: a call costs 0.2 µs less, a third to a half of a small kernel's.

    Integers and floats are converted as usual, and what is no array of the right kind raises TypeError; but an array of other
    values of the same size, or not contiguous where the signature says so, goes unnoticed: for callers that know what they have.
    """
    (signature,) = kernel.signatures
    compiled: Callable[..., Any] = kernel.overloads[signature].entry_point
    return compiled
