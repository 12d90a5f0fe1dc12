from collections.abc import Callable
from random import Random

import pytest

from router.core.fleet import FleetView
from router.core.policy.lmetric import LMetric
from router.core.request import RoutingRequest


def test_the_formula(request_of: Callable[..., RoutingRequest], view_of: Callable[..., FleetView]) -> None:
    request = request_of(blocks=10)  # 640 tokens
    view = view_of(
        request,
        3,
        device_blocks=[5, 0, 0],
        prefill_tokens=[100, 0, 10],
        reported_prefill_tokens=[0.0, 0.0, 60.0],
        active_requests=[3, 0, 1],
    )
    assert LMetric().score(view, request, Random(0)).tolist() == pytest.approx([420 * 4, 640, 700 * 2])
