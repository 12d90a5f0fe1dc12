"""A fleet as policies see it, made of what a test cares about."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from router.core.fleet import FleetView
from router.core.overlap import Overlap
from router.core.request import RoutingRequest

BLOCK_SIZE = 64


def make_request(blocks: int = 8, prompt_tokens: int | None = None, **fields: Any) -> RoutingRequest:
    tokens = blocks * BLOCK_SIZE if prompt_tokens is None else prompt_tokens
    return RoutingRequest("r", np.arange(1, blocks + 1, dtype=np.uint64), tokens, **fields)


def make_view(request: RoutingRequest, targets: int, **columns: Any) -> FleetView:
    """Idle, empty, alike targets, except for the columns that are given; overlap by its kinds: `device_blocks` and so on."""

    def column(name: str, default: float, dtype: Any = np.int64) -> Any:
        return np.broadcast_to(np.asarray(columns.pop(name, default), dtype), (targets,)).copy()

    overlap = Overlap(*(column(kind, 0, np.int32) for kind in Overlap._fields))
    active_blocks = column("active_blocks", 0, np.int32)
    held_blocks = column("held_blocks", 0)
    cached_tokens = np.minimum(overlap.cached_blocks().astype(np.int64) * BLOCK_SIZE, request.prompt_tokens - 1)
    view = FleetView(
        block_size=BLOCK_SIZE,
        eligible=column("eligible", True, np.bool_),
        overlap=overlap,
        active_blocks=lambda: active_blocks,
        held_blocks=lambda: held_blocks,
        uncached_tokens=request.prompt_tokens - cached_tokens,
        prefill_tokens=column("prefill_tokens", 0),
        reported_prefill_tokens=column("reported_prefill_tokens", 0.0, np.float64),
        active_requests=column("active_requests", 0),
        decode_blocks=column("decode_blocks", 0),
        context_tokens=column("context_tokens", 0),
        prefill_rate=column("prefill_rate", 1000.0, np.float64),
        capacity_blocks=column("capacity_blocks", 10_000),
        max_running_requests=column("max_running_requests", -1),
        last_placed=column("last_placed", -1),
    )
    assert not columns, f"no such column: {columns}"
    return view


@pytest.fixture(scope="session")
def request_of() -> Callable[..., RoutingRequest]:
    return make_request


@pytest.fixture(scope="session")
def view_of() -> Callable[..., FleetView]:
    return make_view
