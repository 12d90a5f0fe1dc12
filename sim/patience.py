"""A word to those who wait."""

from __future__ import annotations

import sys
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

COMPILING = "compiling, this once: a minute or so"


@contextmanager
def patience(message: str, seconds: float = 5.0) -> Iterator[None]:
    """Say something on standard error if what is inside takes longer than that.

    >>> with patience("never said"):
    ...     pass
    """
    timer = threading.Timer(seconds, sys.stderr.write, [f"{message}\n"])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
