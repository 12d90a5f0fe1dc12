"""Starts warmpath's parts together: `python -m launch.demo` shows what it is for, `python -m launch.up` leaves it serving."""
