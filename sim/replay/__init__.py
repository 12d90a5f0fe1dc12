"""A trace in, an outcome out: the product's own router core against engine models, in virtual time.

=============  ==============================================================
`settings`     the fleet, its events, and what goes wrong
`routers`      the product's scheduler, once per router
`service`      how a request is served: placed, worked on, accounted for
`paired`       the same with prefill and decode on separate workers
`replay`       the loop
`outcome`      what became of every request
`command`      `python -m sim replay`
=============  ==============================================================
"""

from sim.replay.outcome import Outcome, Samples
from sim.replay.replay import Replay, replay
from sim.replay.settings import Kill, Settings

__all__ = ["Kill", "Outcome", "Replay", "Samples", "Settings", "replay"]
