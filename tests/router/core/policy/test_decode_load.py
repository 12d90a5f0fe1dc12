from collections.abc import Callable
from random import Random

import numpy as np

from router.core import Part, RoutingRequest
from router.core.fleet import FleetView
from router.core.policy.decode_load import DecodeLoad

REQUEST = RoutingRequest("r", np.arange(1, 11, dtype=np.uint64), 160, part=Part.DECODE)


def test_the_emptier_by_its_own_measure(view_of: Callable[..., FleetView]) -> None:
    """A target twice as large may carry twice as much; a request weighs like 400 tokens."""
    view = view_of(
        REQUEST,
        4,
        context_tokens=[1000, 1000, 600, 0],
        active_requests=[1, 1, 2, 2],
        capacity_blocks=[100, 200, 100, 0],
    )
    scores = DecodeLoad().score(view, REQUEST, Random(0))
    assert scores[0] == scores[2] == 2 * scores[1]
    assert np.isfinite(scores).all()


def test_what_is_held_needs_no_room(view_of: Callable[..., FleetView]) -> None:
    view = view_of(REQUEST, 2, device_blocks=[0, 10], capacity_blocks=[100, 100])
    scores = DecodeLoad().score(view, REQUEST, Random(0))
    assert scores[1] < scores[0]
