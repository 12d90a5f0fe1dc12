"""Numbers in, decision out: which target takes a request. No I/O, no clock, no asyncio; times are passed in, in seconds.

=============  ===============================================================================================
`request`      what is asked: a routing request; and a target, as the world names it
`decision`     what is answered: a placement, its explanation, or why there is none
`fleet`        the targets as dense slot numbers, and what a policy sees of them
`presence`     sequence hash → set of targets, the table below index and predictions
`index`        who holds which prefix, by what the workers' events say
`predicted`    who should hold which prefix, because requests were sent there
`overlap`      how many leading blocks of a prompt each target holds, per kind of knowledge
`load`         what is booked on each target, and what the engines last said of themselves
`unheard`      what other routers book at this moment
`rate`         how many prompt tokens a second each target prefills, learned
`policy`       filter → score → pick; one module per policy
`paths`        as a whole at one target, or shared out to a prefill and a decode target
`decider`      the read path: match → filter → score → pick
`scheduler`    the composition: what is told of targets and requests, decisions, bookings
`states`       what it tells of itself
`pairs`        (sequence hash, target) → node, the table below predictions and bookings
`chance`       the randomness of a decision
`warmup`       everything compiled, loaded and run once, before the first request comes
=============  ===============================================================================================

Everything runs on one thread and returns at once: a decision sees every booking made before it.
"""

from router.core.decision import Candidate, Decision, NoTarget, Pair, Placement
from router.core.paths import Path, Paths
from router.core.request import Part, RoutingRequest, Target
from router.core.scheduler import Scheduler
from router.core.states import SchedulerStatistics, TargetState
from router.core.warmup import warm_up

__all__ = [
    "Candidate",
    "Decision",
    "NoTarget",
    "Pair",
    "Part",
    "Path",
    "Paths",
    "Placement",
    "RoutingRequest",
    "Scheduler",
    "SchedulerStatistics",
    "Target",
    "TargetState",
    "warm_up",
]
