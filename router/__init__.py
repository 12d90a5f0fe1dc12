"""Decides which worker answers a request, and carries it there.

`core` decides (no I/O, no clock), `service` feeds the core from the wire, `frontend` speaks OpenAI's HTTP, `dispatch` carries a
request to its worker and the answer back.
"""
