"""The report as one HTML file that needs nothing else: no network, no library; light and dark.

==============  ==============================================================
`page`          the whole page
`plots`         which plots there are, and what is in them
`chart`         lines in a frame, as SVG
`axis`          from numbers to places, and where the ticks are
`heatmap`       workers over time, as an image
`scoreboard`    the table at the top
==============  ==============================================================
"""
