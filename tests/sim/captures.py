"""Recordings of a real SGLang, if they are here: `WARMPATH_SHARED` or `../shared` beside the repository."""

import json
import os
from pathlib import Path

import pytest

SHARED = Path(os.environ.get("WARMPATH_SHARED", Path(__file__).parents[3] / "shared"))


def capture_path(name):
    path = SHARED / "sglang-cpu" / "captures" / name
    if not path.exists():
        pytest.skip(f"{name} needs the shared captures")
    return path


def capture_steps(name):
    """{step label: {"result": …, "frames": […]}} of a scenario, in order."""
    return {step["step"]: step for step in map(json.loads, capture_path(name).read_text().splitlines())}


def recording(*parts):
    """A recording of real engines on GPUs."""
    path = SHARED.joinpath("recordings", *parts)
    if not path.exists():
        pytest.skip(f"{path.name} needs the shared recordings of a real fleet")
    return path
