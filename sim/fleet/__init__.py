"""Many engines at once in virtual time: `sim.engine`, compiled.

=============  ==============================================================
`content`      what requests consist of, and the hashes of their routing blocks
`state`        the kernels' memory
`kernels`      the engines: cache, admission, steps, on arrays
`fleet`        calls with names; memory that grows
=============  ==============================================================
"""

from sim.fleet.content import Content, Hashes
from sim.fleet.fleet import Changes, EngineFleet, gap_edges

__all__ = ["Changes", "Content", "EngineFleet", "Hashes", "gap_edges"]
