"""What replays came to: figures, a table, a page with plots, every request.

=============  ==============================================================
`report`       `Report`: several policies' outcomes on one trace
`figures`      one outcome in figures
`bounds`       what caches could have given at most
`series`       what changes over time
`document`     JSON; its schema is in docs/simulator.md
`table`        for a terminal
`html`         one self-contained page
`requests`     every request, as CSV
`perfetto`     every request, as a trace for ui.perfetto.dev
`options`      the report's part of a command line
`progress`     how far a replay is
=============  ==============================================================
"""
