"""How much of a prompt each target holds, by kind of knowledge."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from events.entry import entry
from router.core import decision_kernels as kernels

if TYPE_CHECKING:
    from numpy.typing import NDArray


_uncached = entry(kernels.uncached)


class Overlap(NamedTuple):
    """Leading blocks of a prompt per target; every field is int32 of shape (targets,).

    A slower kind only counts as what it adds: `host_blocks` are the *further* leading blocks when host counts as holding as well,
    and so on. The fields therefore add up.
    """

    device_blocks: NDArray[np.int32]
    host_blocks: NDArray[np.int32]
    disk_blocks: NDArray[np.int32]
    predicted_blocks: NDArray[np.int32]
    """Further leading blocks when predicted presence counts as well; 0 where events already tell of all."""

    def cached_blocks(self) -> NDArray[np.int32]:
        """Leading blocks of every kind together, int32 (targets,)."""
        total: NDArray[np.int32] = self.device_blocks + self.host_blocks + self.disk_blocks + self.predicted_blocks
        return total

    def uncached_tokens(
        self, prompt_tokens: int, block_size: int, page_size: NDArray[np.int64], out: NDArray[np.int64] | None = None
    ) -> NDArray[np.int64]:
        """Tokens of the prompt to be prefilled, at least 1, int64 (targets,); in `out`, if given.

        An engine takes only whole pages from its cache, of `page_size` tokens: int64 (targets,), 0 where there is no target.
        """
        tokens = np.empty(len(page_size), np.int64) if out is None else out
        _uncached(*self, page_size, block_size, prompt_tokens, tokens)
        return tokens
