from collections.abc import Callable
from random import Random

import numpy as np

from router.core.fleet import FleetView
from router.core.policy.least_loaded import LeastLoaded
from router.core.request import RoutingRequest


def test_waiting_tokens_first_then_requests(
    request_of: Callable[..., RoutingRequest], view_of: Callable[..., FleetView]
) -> None:
    request = request_of()
    view = view_of(
        request, 4, prefill_tokens=[1, 0, 0, 2], active_requests=[0, 1000, 999, 0], device_blocks=[8, 0, 0, 8]
    )
    assert np.argsort(LeastLoaded().score(view, request, Random(0))).tolist() == [2, 1, 0, 3]
