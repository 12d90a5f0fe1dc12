"""SGLang's scheduler and prefix cache in small: a state machine without a clock and without I/O.

`Engine.submit` a `Request`, then call `Engine.step(now)` again and again; each `Step` says how long it takes, which tokens come
out of it and what changed in the cache. What drives it decides what time is: `sim.worker` sleeps the durations.

=============  ==============================================================
`request`      what is asked, and what comes out
`pool`         KV memory, counted in pages
`cache`        the radix tree of cached prefixes: match, insert, lock, evict
`host`         a second tier of the cache in host memory
`changes`      what changed in the cache, under SGLang's block ids
`sampling`     output tokens: a function of the text so far
`timing/`      how long a step takes: models, and profiles of engines
`config`       SGLang's options, and which version's scheduler
`queue`        what waits, and in which order
`admission`    which waiting requests join the next prefill
`door`         what is in front of the scheduler: requests reach it in order, a little later
`scheduler`    the loop: prefill before decode, retraction, finish, abort
`disaggregated`  the two sides of a request whose prompt is computed on one engine and continued on another
=============  ==============================================================

Details that decide whether a real engine's figures are met, in `sim.fleet`'s kernels as well as here:

* What a split cuts off counts as used. Each 32nd admission pass uses the prefixes that the queue waits for, head last (0.5.22 on).
* An admitted prompt is charged its whole output, and so is a running request that ignores EOS (0.5.22 on); of others the share of
  their output that is expected, which begins anew when the engine was idle.
* "Full" is noted at the running batch alone. It is dropped while a prompt is between chunks, while nothing runs, and once a
  request left: at the next plan (0.5.23 on) or at the next decode that is planned (before).
* A begun prompt's next chunk needs no page boundary, and may exceed the memory estimate.
* With `overlap_schedule` a step is planned before the one in flight is processed. Requests come through one `FrontDoor`, in order.
"""

from sim.engine.changes import Change, Cleared, Removed, Stored
from sim.engine.config import EngineConfig
from sim.engine.disaggregated import Allocated, DecodeEngine, Prefilled, PrefillEngine, TransferTiming
from sim.engine.door import FrontDoor
from sim.engine.request import Finish, Namespace, Output, Request
from sim.engine.scheduler import Engine, EngineStatistics, Load, Step, StepKind
from sim.engine.timing import PolynomialTiming, StepTiming, TableTiming, TimingModel

__all__ = [
    "Allocated",
    "Change",
    "Cleared",
    "DecodeEngine",
    "Engine",
    "EngineConfig",
    "EngineStatistics",
    "Finish",
    "FrontDoor",
    "Load",
    "Namespace",
    "Output",
    "PolynomialTiming",
    "PrefillEngine",
    "Prefilled",
    "Removed",
    "Request",
    "Step",
    "StepKind",
    "StepTiming",
    "Stored",
    "TableTiming",
    "TimingModel",
    "TransferTiming",
]
