"""Feeds the core from the wire: who is there (`roster`), what their caches hold (`feed`), which of them are fit
(`health`), and what other routers do with them (`replicas`).
"""
