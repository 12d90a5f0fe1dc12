"""`python -m sim calibrate`: fits a `step` profile to an engine.

===========  ==================================================================================
`features`   what a step's time is linear in
`fit`        relative least squares with coefficients of at least 0, and how well they fit
`probes`     single requests to an idle engine, and decode series
`logs`       a profile from step logs
`live`       a profile from a live server: which requests to send, and what their times say
`client`     sends them
`command`    the command line
===========  ==================================================================================
"""
