"""How long an engine's steps take.

============  ==============================================================
`model`       what a timing model answers
`step`        `StepTiming`: linear in what a step has to compute and read
`polynomial`  `PolynomialTiming`: the formulas of NVIDIA Dynamo's mock engine
`table`       `TableTiming`: measured grids, interpolated
`kernels`     the formulas, compiled: the same for the models here and for `sim.replay`
`profile`     models as JSON files, with their origin
============  ==============================================================
"""

from sim.engine.timing.model import TimingModel
from sim.engine.timing.polynomial import PolynomialTiming
from sim.engine.timing.profile import Profile
from sim.engine.timing.step import StepTiming
from sim.engine.timing.table import TableTiming

__all__ = ["PolynomialTiming", "Profile", "StepTiming", "TableTiming", "TimingModel"]
