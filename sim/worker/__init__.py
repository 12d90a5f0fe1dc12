"""A live fake worker: the engine model in wall-clock time behind SGLang's own HTTP and ZMQ.

From the command line ``python -m sim.worker``; inside a test ``async with FakeWorker(WorkerConfig(…)) as worker: worker.url``.

=====================  =============================================================
`config`               the options
`text`                 tokenizer and chat template of the model folder
`rank`                 one engine, stepped by the clock
`wire`, `publisher`    KV events, replay and load as each SGLang version sends them
`rendezvous`           how a prefill and a decode worker find each other, and KV gets across
`generation`           one request under way, and SGLang's account of it
`shapes`, `reply`      bodies, events and errors in SGLang's shape
`service`              which rank takes a request, and how the reply is sent
`generation_routes`    /generate, /v1/chat/completions, /v1/completions
`admin_routes`         health, server info, loads, abort, flush, metrics, faults
`faults`               what can go wrong on demand
`server`               the worker's life
=====================  =============================================================
"""

from sim.worker.config import WorkerConfig
from sim.worker.server import FakeWorker, Ports

__all__ = ["FakeWorker", "Ports", "WorkerConfig"]
