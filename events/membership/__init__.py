"""Who is there: a card per worker, and registries that hold them.

A worker's adapter registers its card, keeps it alive and withdraws it; routers watch. `MemoryRegistry` (one process),
`FileRegistry` (one machine, or a shared folder), `EtcdRegistry` and `KubernetesRegistry` (clusters) pass the same conformance
suite, `tests/events/test_membership.py`; `discovery` opens the one that a command line asks for.
"""

from __future__ import annotations

import abc
import enum
from typing import TYPE_CHECKING, NamedTuple

import msgspec

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


class Role(enum.StrEnum):
    """What part of a request a worker does."""

    AGGREGATED = "aggregated"
    PREFILL = "prefill"
    DECODE = "decode"


class WorkerCard(msgspec.Struct, frozen=True, kw_only=True):
    """What a router must know of a worker, as its adapter found it."""

    worker_id: str
    """Stable over restarts of the same server; host:port unless chosen."""
    epoch: int
    """Changes with every start of engine or adapter; a later start has a greater one."""
    model: str
    """The name clients ask for."""
    endpoint: str
    """Base URL of the SGLang server, e.g. http://10.0.0.1:30000."""
    ranks: int = 1
    """Data-parallel ranks; targets are (worker, 0 … ranks - 1)."""
    block_size: int = 64
    """Routing block size of its events, tokens."""
    page_size: int = 1
    """The engine's own page, tokens: it caches whole pages only."""
    capacity_tokens: int
    """KV tokens a rank can hold."""
    context_tokens: int
    """Longest input that the engine takes, tokens."""
    max_running_requests: int | None = None
    kv_events: bool = True
    """False: this worker publishes no cache events; its cache must be predicted."""
    tiers: tuple[str, ...] = ("device",)
    prefix_cache: bool = True
    """False: the engine keeps nothing of a prompt after its request, as decode workers do unless told otherwise."""
    role: Role = Role.AGGREGATED
    bootstrap_host: str | None = None
    bootstrap_port: int | None = None
    """Where a decode worker finds this prefill worker's KV (role prefill)."""
    engine_version: str = ""
    hash_vector: tuple[int, ...] = ()
    """`events.parity.hash_vector` as its adapter computes it; empty: it does not say."""
    text_tokens: tuple[int, ...] = ()
    """`events.parity.TEXT` as its engine tokenizes it; empty: it does not say."""
    parity_failure: str | None = None
    """Why its events cannot be trusted, as its adapter's probe found."""
    embedding: bool = False
    """It answers embeddings, rankings and classifications, and generates nothing."""
    migration_limit: int | None = None
    """How often a request for its model may go on elsewhere; None: as the router has it."""
    engine_tokenizes: bool = False
    """The engine itself applies template and tokenizer: bodies are passed through to it."""
    tool_call_parser: str | None = None
    """What the engine finds tool calls with, by SGLang's name."""
    reasoning_parser: str | None = None
    """What the engine tells reasoning from the answer with, by SGLang's name."""
    chat_template: str | None = None
    """Jinja source, instead of the template in the model's folder."""
    named_template: str | None = None
    """One of the engine's own templates, which only the engine has."""
    adapters: tuple[str, ...] = ()
    """LoRA adapters that it has loaded, by name."""
    held: tuple[str, ...] = ()
    """Why no new requests are to go to it, as an administrator wants it; none: they are."""
    engine_routes: tuple[tuple[str, str], ...] = ()
    """Further routes that routers may open to their administrators: the name there, the path at the engine."""
    records_experts: bool = False
    """The engine was started with an expert-distribution recorder: without, asking it to record kills SGLang 0.5.23."""


class Joined(NamedTuple):
    """A worker is there: newly, or with another card (a greater epoch: it restarted)."""

    card: WorkerCard


class Left(NamedTuple):
    """A worker is gone: it withdrew, or its card expired."""

    worker_id: str


class Listed(NamedTuple):
    """All that were there when a watch began have been said."""

    cards: int


Change = Joined | Left | Listed


class RegistryStatistics(NamedTuple):
    """Counts since the registry object was made."""

    registered: int
    """Cards of our own, now."""
    heartbeats: int
    """Times that a card of ours was kept alive."""
    recreated: int
    """Cards of ours that were gone (we were silent too long) and are there again."""
    superseded: int
    """Cards of ours that another process replaced by one of a newer or the same epoch: no longer ours."""
    expired: int
    """Cards of others that we saw expire."""
    unreadable: int
    """Times that a card was found unreadable, or of an unknown version."""
    failures: int
    """Times that the registry could not be read or written."""


class RegistryError(Exception):
    """The registry cannot be used; the text names the place and the reason."""


class Registry(abc.ABC):
    """Holds the cards of a namespace's workers."""

    @abc.abstractmethod
    async def register(self, card: WorkerCard) -> None:
        """Add or replace a worker's card, and keep it alive until `unregister` or `close` (heartbeats run by themselves).

        :raises RegistryError: the registry does not take it.
        """

    @abc.abstractmethod
    async def unregister(self, worker_id: str) -> None:
        """Withdraw a card; unknown ids are ignored."""

    @abc.abstractmethod
    async def cards(self) -> dict[str, WorkerCard]:
        """All living cards by worker id.

        :raises RegistryError: the registry cannot be read.
        """

    @abc.abstractmethod
    def watch(self) -> AsyncIterator[Change]:
        """All living cards as `Joined`, `Listed` once, then every change, without end.

        An unreadable card is skipped, counted and said once.

        :raises RegistryError: the registry cannot be read at the first look.
        """

    @abc.abstractmethod
    def statistics(self) -> RegistryStatistics:
        """Counts since the registry object was made."""

    @abc.abstractmethod
    async def close(self) -> None:
        """Stop heartbeats and withdraw what this object registered. Idempotent."""
