"""Several parts as one: started in order, stopped in the reverse one."""

from __future__ import annotations

import abc
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from types import TracebackType


class Assembly(abc.ABC):
    """Its kinds start their parts, the end of each entered in `_exits`; when one does not come up, those before it end."""

    def __init__(self) -> None:
        self._exits = AsyncExitStack()

    @abc.abstractmethod
    async def _start(self) -> None:
        """Start all parts."""

    async def __aenter__(self) -> Self:
        try:
            await self._start()
        except BaseException:
            await self._exits.aclose()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._exits.aclose()
