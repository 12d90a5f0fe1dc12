"""How a target is chosen: filter → score → pick.

`filters` take out targets that must not get the request; a policy scores the rest, lower is better; `pick` chooses by score. To add
a policy, subclass `Policy` and name the class in the entry-point group `warmpath.policies`; see docs/policies.md.
"""

from __future__ import annotations

import abc
import inspect
import logging
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Any, ClassVar

from router.core.policy import pick

if TYPE_CHECKING:
    from random import Random

    import numpy as np
    from numpy.typing import NDArray

    from router.core.fleet import FleetView
    from router.core.request import RoutingRequest

logger = logging.getLogger(__name__)

ENTRY_POINTS = "warmpath.policies"


class Policy(abc.ABC):
    """A way to choose. Stateless: what a decision depends on comes in as arguments, so it can be explained and repeated.

    `chance` is the only source of randomness: seeded by the scheduler, anew for every decision.
    """

    name: ClassVar[str]

    @abc.abstractmethod
    def score(self, fleet: FleetView, request: RoutingRequest, chance: Random) -> NDArray[np.float64]:
        """The cost of each target, float64 (slots,): lower is better, infinite is last choice, seconds where it can be.

        Entries of targets that are not eligible are not looked at; others must not be NaN.
        """

    def pick(self, scores: NDArray[np.float64], eligible: NDArray[np.bool_], chance: Random) -> int:
        """The slot to choose among the eligible ones, of which there is at least one: the lowest score, ties by chance."""
        return pick.lowest(scores, eligible, chance)

    def __repr__(self) -> str:
        options = ", ".join(f"{name.lstrip('_')}={value!r}" for name, value in vars(self).items())
        return f"{type(self).__name__}({options})"


_BUILT_IN = {
    point.name: point
    for point in (
        EntryPoint("warm", "router.core.policy.warm:Warm", ENTRY_POINTS),
        EntryPoint("linear", "router.core.policy.linear:Linear", ENTRY_POINTS),
        EntryPoint("cache-aware", "router.core.policy.cache_aware:CacheAware", ENTRY_POINTS),
        EntryPoint("lmetric", "router.core.policy.lmetric:LMetric", ENTRY_POINTS),
        EntryPoint("two-choices", "router.core.policy.two_choices:TwoChoices", ENTRY_POINTS),
        EntryPoint("affinity", "router.core.policy.affinity:Affinity", ENTRY_POINTS),
        EntryPoint("least-loaded", "router.core.policy.least_loaded:LeastLoaded", ENTRY_POINTS),
        EntryPoint("power-of-two", "router.core.policy.power_of_two:PowerOfTwo", ENTRY_POINTS),
        EntryPoint("round-robin", "router.core.policy.round_robin:RoundRobin", ENTRY_POINTS),
        EntryPoint("random", "router.core.policy.random:Random", ENTRY_POINTS),
        EntryPoint("decode-load", "router.core.policy.decode_load:DecodeLoad", ENTRY_POINTS),
    )
}


def names() -> list[str]:
    """The policies that `create` knows, built-in ones first."""
    return list(_known())


def create(name: str, **options: Any) -> Policy:
    """A policy by name; options are its class's keyword arguments.

    :raises ValueError: there is no such policy (the text lists them), it cannot be loaded, or an option or its value is not taken.

    >>> create("linear", temperature=0.5).name
    'linear'
    """
    known = _known()
    if name not in known:
        raise ValueError(f"no policy {name!r}; there are {', '.join(known)}")
    policy = _load(known[name])
    unknown = options.keys() - inspect.signature(policy).parameters.keys()
    if unknown:
        takes = ", ".join(inspect.signature(policy).parameters) or "none"
        raise ValueError(f"policy {name!r} has no option {', '.join(sorted(unknown))}; its options: {takes}")
    return policy(**options)


def _known() -> dict[str, EntryPoint]:
    known = dict(_BUILT_IN)
    for point in entry_points(group=ENTRY_POINTS):
        if known.setdefault(point.name, point) != point:
            logger.warning("policy %s of %s is ignored: another one has that name", point.name, point.value)
    return known


def _load(point: EntryPoint) -> type[Policy]:
    try:
        policy = point.load()
    except (ImportError, AttributeError) as error:
        raise ValueError(f"policy {point.name!r}: cannot load {point.value}: {error}") from error
    if not (isinstance(policy, type) and issubclass(policy, Policy)):
        raise ValueError(  # noqa: TRY004 - what is wrong is the name that was asked for
            f"policy {point.name!r}: {point.value} is no subclass of {Policy.__module__}.Policy"
        )
    return policy
