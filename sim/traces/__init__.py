"""Workloads: what is asked of a fleet, and when.

=============  ==============================================================
`trace`        `Trace`: the columns that all formats are read into
`mooncake`     Mooncake's JSON lines
`errors`       `TraceError`: file, line, field, reason
=============  ==============================================================
"""

from sim.traces.errors import TraceError
from sim.traces.trace import ALONE, Trace

__all__ = ["ALONE", "Trace", "TraceError"]
