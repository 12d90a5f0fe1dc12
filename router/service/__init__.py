"""Feeds the core from the wire: who is there (`roster`) and fits (`parity`), what their caches hold (`feed`), whether that comes
true (`accounting`), which of them are fit (`health`), and what other routers do with them (`replicas`).
"""
