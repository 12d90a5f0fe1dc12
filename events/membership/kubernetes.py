"""A registry in Kubernetes: one Lease object per worker, its card in an annotation, kept alive by its time of renewal.

Leases (coordination.k8s.io/v1) are what a cluster uses for heartbeats of its own; they need no resource definition. The API server
expires none of them: whoever looks takes away what was not renewed for its time to live. Needs the extra `kubernetes`, and rights
on leases: adapters create, get, update and delete; routers list and delete.
"""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from datetime import UTC, datetime
from hashlib import blake2s
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import aiohttp
from kubernetes_asyncio import client, config
from kubernetes_asyncio.client.exceptions import ApiException

from events import subjects
from events.membership import Registry, RegistryError, RegistryStatistics, card_codec
from events.membership.card_codec import UnreadableCard
from events.membership.changes import changes

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from events.membership import Change, WorkerCard

logger = logging.getLogger(__name__)

LABEL = "warmpath.dev/namespace"
CARD = "warmpath.dev/card"
BEATS_PER_TTL = 3  # two heartbeats may fail before the card expires
CALL_SECONDS = 5.0
NAMESPACE_FILE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
NOT_FOUND, CONFLICT = 404, 409


async def connect() -> client.ApiClient:
    """A client with the pod's service account, else with the user's kubeconfig.

    :raises RegistryError: there is neither.
    """
    try:
        try:
            config.load_incluster_config()  # type: ignore[no-untyped-call]
        except config.ConfigException:
            await config.load_kube_config()
    except (config.ConfigException, OSError) as error:
        raise RegistryError(f"registry in Kubernetes: no service account and no kubeconfig: {error}") from error
    return client.ApiClient()


def own_namespace() -> str:
    """The namespace of this pod; outside of one, `default`."""
    return NAMESPACE_FILE.read_text(encoding="utf-8").strip() if NAMESPACE_FILE.is_file() else "default"


class _Sighting(NamedTuple):
    """A lease, as it was when it was last renewed."""

    version: str
    renewed_at: float  # by our monotonic clock
    card: WorkerCard | None  # None: unreadable


class KubernetesRegistry(Registry):
    """The cards of a namespace of warmpath's, as leases in a namespace of Kubernetes'.

    At the first look at a lease its age is by the wall clock, so clocks must agree within the time to live; after that by ours.
    """

    def __init__(
        self,
        namespace: str,
        ttl_seconds: float = 10.0,
        poll_seconds: float = 1.0,
        *,
        kubernetes_namespace: str | None = None,
        connect: Callable[[], Awaitable[client.ApiClient]] = connect,
    ) -> None:
        self._namespace = subjects.token(namespace)
        self._place = kubernetes_namespace or own_namespace()
        self._ttl_seconds = ttl_seconds
        self._poll_seconds = poll_seconds
        self._connect = connect
        self._client: client.ApiClient | None = None
        self._identity = uuid.uuid4().hex
        self._own: dict[str, WorkerCard] = {}
        self._sightings: dict[str, _Sighting] = {}
        self._away = False  # the last look failed
        self._lock = asyncio.Lock()
        self._closed = asyncio.Event()
        self._heart: asyncio.Task[None] | None = None
        self._said: set[str] = set()  # what the log has said and not taken back
        self._heartbeats = self._recreated = self._superseded = self._expired = self._unreadable = self._failures = 0

    async def register(self, card: WorkerCard) -> None:
        """Add or replace a worker's card, and keep it alive until `unregister` or `close`.

        :raises RegistryError: the registry is closed, or the API server does not take the card.
        """
        async with self._lock:
            if self._closed.is_set():
                raise RegistryError(f"{self!r} is closed")
            await self._do(lambda leases: self._put(leases, card))
            self._own[card.worker_id] = card
        if self._heart is None:
            self._heart = asyncio.create_task(self._beat(), name=f"heartbeats of {self!r}")

    async def unregister(self, worker_id: str) -> None:
        """Withdraw a card of ours; others are not touched.

        :raises RegistryError: the API server cannot be reached (the card will expire).
        """
        async with self._lock:
            if self._own.pop(worker_id, None) is not None:
                await self._do(lambda leases: self._withdraw(leases, worker_id))

    async def cards(self) -> dict[str, WorkerCard]:
        """All living cards by worker id. One request; O(n).

        :raises RegistryError: the API server cannot be reached.
        """
        async with self._lock:
            found: dict[str, WorkerCard] = await self._do(self._look)
            return found

    async def watch(self) -> AsyncIterator[Change]:
        """All living cards as `Joined`, then every change, until the registry is closed. A failing look leaves them as they are.

        :raises RegistryError: the API server cannot be reached at the first look.
        """
        known: dict[str, WorkerCard] = {}
        current = await self.cards()
        while not self._closed.is_set():
            for change in changes(known, current):
                yield change
            known = current
            await self._pause(self._poll_seconds)
            try:
                current = await self.cards()
            except RegistryError as error:
                self._say("look", error)
                self._away = True
            else:
                self._said.discard("look")

    async def close(self) -> None:
        """Stop heartbeats, withdraw what this object registered, and end its watches. Idempotent."""
        self._closed.set()
        if self._heart is not None:
            await self._heart
        for worker_id in list(self._own):
            try:
                await self.unregister(worker_id)
            except RegistryError as error:
                self._say("withdrawal", error)
        if self._client is not None:
            await self._client.close()
            self._client = None

    def statistics(self) -> RegistryStatistics:
        """Counts since the registry object was made. O(1)."""
        return RegistryStatistics(
            registered=len(self._own),
            heartbeats=self._heartbeats,
            recreated=self._recreated,
            superseded=self._superseded,
            expired=self._expired,
            unreadable=self._unreadable,
            failures=self._failures,
        )

    # ---- our own cards

    async def _beat(self) -> None:
        await self._pause(self._ttl_seconds / BEATS_PER_TTL)
        while not self._closed.is_set():
            for worker_id, card in list(self._own.items()):
                async with self._lock:
                    if self._own.get(worker_id) is card:
                        await self._keep_alive(card)
            await self._pause(self._ttl_seconds / BEATS_PER_TTL)

    async def _keep_alive(self, card: WorkerCard) -> None:
        try:
            await self._do(lambda leases: self._renew(leases, card))
        except RegistryError as error:
            self._say("heartbeat", error)
        else:
            self._heartbeats += 1
            self._said.discard("heartbeat")

    async def _renew(self, leases: client.CoordinationV1Api, card: WorkerCard) -> None:
        there = await self._read(leases, card.worker_id)
        if there is None:
            self._recreated += 1
            logger.warning("the card of %s was gone; it is there again", card.worker_id)
            await self._put(leases, card)
        elif there.spec.holder_identity == self._identity:
            # On condition of what was read, so that somebody's newer card is never renewed in their place.
            await leases.replace_namespaced_lease(
                there.metadata.name, self._place, self._lease(card, there.metadata.resource_version)
            )
        else:
            await self._contend(leases, card, there)

    async def _contend(self, leases: client.CoordinationV1Api, card: WorkerCard, there: Any) -> None:
        """Somebody else put this worker's card: the later start has the place."""
        other = _card(there)
        if isinstance(other, str) or other.epoch < card.epoch:
            await self._put(leases, card)
            return
        self._superseded += 1
        del self._own[card.worker_id]
        logger.warning(
            "worker %s was registered by another process, with epoch %d: ours withdraws", card.worker_id, other.epoch
        )

    async def _put(self, leases: client.CoordinationV1Api, card: WorkerCard) -> None:
        """Create the lease, or replace the one that is there."""
        try:
            await leases.create_namespaced_lease(self._place, self._lease(card, None))
        except ApiException as error:
            if error.status != CONFLICT:
                raise
            there = await self._read(leases, card.worker_id)
            version = there.metadata.resource_version if there is not None else None
            await leases.replace_namespaced_lease(self._name(card.worker_id), self._place, self._lease(card, version))

    async def _withdraw(self, leases: client.CoordinationV1Api, worker_id: str) -> None:
        there = await self._read(leases, worker_id)
        if there is not None and there.spec.holder_identity == self._identity:
            await self._delete(leases, there)

    async def _read(self, leases: client.CoordinationV1Api, worker_id: str) -> Any:
        """A worker's lease; None: there is none."""
        try:
            return await leases.read_namespaced_lease(self._name(worker_id), self._place)
        except ApiException as error:
            if error.status == NOT_FOUND:
                return None
            raise

    async def _delete(self, leases: client.CoordinationV1Api, lease: Any) -> bool:
        """Delete a lease as it was seen; False: it has changed or is gone."""
        seen = client.V1Preconditions(resource_version=lease.metadata.resource_version)
        try:
            await leases.delete_namespaced_lease(
                lease.metadata.name, self._place, body=client.V1DeleteOptions(preconditions=seen)
            )
        except ApiException as error:
            if error.status in (NOT_FOUND, CONFLICT):
                return False
            raise
        return True

    def _name(self, worker_id: str) -> str:
        """Of the lease: any worker id will do, and namespaces are apart."""
        return "warmpath-" + blake2s(f"{self._namespace}/{worker_id}".encode(), digest_size=12).hexdigest()

    def _lease(self, card: WorkerCard, version: str | None) -> client.V1Lease:
        """A lease as it is sent; `version`: it replaces that one."""
        return client.V1Lease(
            api_version="coordination.k8s.io/v1",
            kind="Lease",
            metadata=client.V1ObjectMeta(
                name=self._name(card.worker_id),
                labels={LABEL: self._namespace},
                annotations={CARD: card_codec.encode(card).decode()},
                resource_version=version,
            ),
            spec=client.V1LeaseSpec(
                holder_identity=self._identity,
                lease_duration_seconds=max(1, round(self._ttl_seconds)),
                renew_time=datetime.now(UTC),
            ),
        )

    # ---- everybody's

    async def _look(self, leases: client.CoordinationV1Api) -> dict[str, WorkerCard]:
        """All living cards; what has expired is deleted."""
        listing = await leases.list_namespaced_lease(self._place, label_selector=f"{LABEL}={self._namespace}")
        before, self._sightings = self._sightings, {}
        if self._away:  # nobody could renew: everybody has one time to live to do so
            self._away = False
            before = {name: sighting._replace(renewed_at=time.monotonic()) for name, sighting in before.items()}
        for lease in listing.items:
            sighting = self._see(lease, before.get(lease.metadata.name))
            if time.monotonic() - sighting.renewed_at <= self._ttl_seconds:
                self._sightings[lease.metadata.name] = sighting
            else:
                await self._reap(leases, lease)
        return {sighting.card.worker_id: sighting.card for sighting in self._sightings.values() if sighting.card}

    def _see(self, lease: Any, before: _Sighting | None) -> _Sighting:
        now, version = time.monotonic(), lease.metadata.resource_version
        if before is not None:
            return before if before.version == version else _Sighting(version, now, self._readable(lease))
        age = (datetime.now(UTC) - lease.spec.renew_time).total_seconds() if lease.spec.renew_time else 0.0
        return _Sighting(version, now - max(0.0, age), self._readable(lease))

    def _readable(self, lease: Any) -> WorkerCard | None:
        card = _card(lease)
        if isinstance(card, str):
            self._unreadable += 1
            self._say(f"card {lease.metadata.name}", card)
            return None
        return card

    async def _reap(self, leases: client.CoordinationV1Api, lease: Any) -> None:
        try:
            gone = await self._delete(leases, lease)
        except ApiException as error:  # not allowed to: then it lies there, and counts for nothing
            self._say(f"removal of expired {lease.metadata.name}", error)
        else:
            self._expired += gone
            logger.warning("card %s has expired", lease.metadata.name)

    # ---- the API server

    async def _do(self, work: Callable[[client.CoordinationV1Api], Awaitable[Any]]) -> Any:
        """Some calls.

        :raises RegistryError: one failed.
        """
        try:
            if self._client is None:
                self._client = await self._connect()
            async with asyncio.timeout(CALL_SECONDS):
                result = await work(client.CoordinationV1Api(self._client))
        except (ApiException, aiohttp.ClientError, TimeoutError, OSError) as error:
            self._failures += 1
            reason = f"{error.status} {error.reason}" if isinstance(error, ApiException) else str(error) or "no answer"
            raise RegistryError(f"{self!r}: {reason}") from error
        return result

    async def _pause(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._closed.wait()
        except TimeoutError:
            return

    def _say(self, what: str, error: object) -> None:
        if what not in self._said:
            self._said.add(what)
            logger.warning("%s failed: %s", what, error)

    def __repr__(self) -> str:
        return f"<KubernetesRegistry {self._place}/{self._namespace}, {len(self._own)} own cards>"


def _card(lease: Any) -> WorkerCard | str:
    """The card in a lease, or why there is none."""
    try:
        return card_codec.decode((lease.metadata.annotations or {}).get(CARD, "").encode())
    except UnreadableCard as error:
        return str(error)
