"""`python -m sim validate`: plays a recorded run again on the engine model and compares, request by request.

Each request is sent to the worker that it was sent to, at the time it was sent; everything after that is the model's: when it is
admitted, what it finds in the cache, in which steps it is computed, and how long those take.

============  ======================================================================
`texts`       prompts from a trace's content ids
`playback`    the run, on engines in virtual time
`comparison`  what was recorded against what was played, and the goals
`command`     the command line
============  ======================================================================
"""
