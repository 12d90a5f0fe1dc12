"""Where a message is published: `warmpath.<namespace>.<kind>.<worker>.<rank>`, so that a subscriber can choose any part.

Namespace and worker are single tokens of the subject: anything outside [A-Za-z0-9_-] is replaced (a NATS subject's separators and
wildcards would change its meaning). The true worker id is inside the message; the subject is only for choosing.
"""

from __future__ import annotations

import re

ROOT = "warmpath"


def token(name: str) -> str:
    """One token of a subject. O(n).

    >>> token("10.0.0.1:30000")
    '10_0_0_1_30000'
    """
    return re.sub(r"[^A-Za-z0-9_-]", "_", name) or "_"


def kv(namespace: str, worker_id: str, rank: int) -> str:
    """Cache events of one rank (`KvEvents`)."""
    return f"{ROOT}.{token(namespace)}.kv.{token(worker_id)}.{rank}"


def mark(namespace: str, worker_id: str, rank: int) -> str:
    """Where one rank's cache events stand (`KvMark`)."""
    return f"{ROOT}.{token(namespace)}.mark.{token(worker_id)}.{rank}"


def load(namespace: str, worker_id: str, rank: int) -> str:
    """Load reports of one rank (`WorkerLoad`)."""
    return f"{ROOT}.{token(namespace)}.load.{token(worker_id)}.{rank}"


def snapshot(namespace: str, worker_id: str, rank: int) -> str:
    """Snapshot requests to one rank's adapter (`SnapshotRequest` → `SnapshotChunk`, one or more)."""
    return f"{ROOT}.{token(namespace)}.snapshot.{token(worker_id)}.{rank}"


def hold(namespace: str, worker_id: str) -> str:
    """Orders to one adapter to have requests kept away from its worker (`HoldOrder` → the same)."""
    return f"{ROOT}.{token(namespace)}.hold.{token(worker_id)}"


def router(namespace: str, router_id: str) -> str:
    """What a router tells the others of its requests (`RouterChanges`, `RouterStatement`)."""
    return f"{ROOT}.{token(namespace)}.router.{token(router_id)}"


def checkpoint(namespace: str, worker_id: str, rank: int) -> str:
    """Snapshots of one rank to be kept at the broker (`SnapshotChunk`, one or more)."""
    return f"{ROOT}.{token(namespace)}.checkpoint.{token(worker_id)}.{rank}"


def every(namespace: str, kind: str) -> str:
    """Pattern: all messages of a kind (`kv`, `mark`, `load`, `checkpoint`, `router`) in a namespace.

    >>> every("default", "kv")
    'warmpath.default.kv.>'
    """
    return f"{ROOT}.{token(namespace)}.{kind}.>"
