"""A trace in, an outcome out: the product's own router core against engine models, in virtual time.

=============  ==============================================================
`settings`     the fleet, its events, and what goes wrong
`routers`      the product's scheduler, once per router
`replay`       the loop
`outcome`      what became of every request
`command`      `python -m sim replay`
=============  ==============================================================
"""

from sim.replay.outcome import Outcome, Samples
from sim.replay.replay import Replay, replay
from sim.replay.settings import Kill, Settings

__all__ = ["Kill", "Outcome", "Replay", "Samples", "Settings", "replay"]
