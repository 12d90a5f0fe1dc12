"""Published traces, if they are here: `WARMPATH_SHARED` or `../shared` beside the repository."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

SHARED = Path(os.environ.get("WARMPATH_SHARED", Path(__file__).parents[4] / "shared"))


def published(name: str) -> Path:
    """A trace's file; the test is skipped without it."""
    path = SHARED / "traces" / name
    if not path.exists():
        pytest.skip(f"{name} is no part of the project (set WARMPATH_SHARED)")
    return path
