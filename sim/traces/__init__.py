"""Workloads: what is asked of a fleet, and when.

=============  ==============================================================
`trace`        `Trace`: the columns that all formats are read into
`formats`      `load`: which formats there are, and which one a file is in
`native`       our own JSON lines, which keep every column
`mooncake`     Mooncake's JSON lines; `delta`: their delta form
`bailian`      Qwen-Bailian's JSON lines
`azure`        Azure's CSV: arrivals and lengths
`reuse`        what caches of any size can keep: hits, reuse distances
`statistics`   a trace in figures; `table`: side by side
`cut`          a part; `scale`: other rates and lengths; `merge`: several as one
`synthesize`   made-up workloads, and fits of given ones
`draws`        random numbers that are the same everywhere
`command`      `python -m sim trace`
`builder`      from the rows of a file to a trace
`jsonlines`    JSON lines in pieces
`errors`       `TraceError`: file, line, field, reason
=============  ==============================================================
"""

from sim.traces.errors import TraceError
from sim.traces.formats import load
from sim.traces.trace import ALONE, Trace

__all__ = ["ALONE", "Trace", "TraceError", "load"]
