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
from events.membership import RegistryError, WorkerCard, card_codec
from events.membership.card_codec import UnreadableCard
from events.membership.kept import KeptRegistry, Superseded

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

logger = logging.getLogger(__name__)

LABEL = "warmpath.dev/namespace"
CARD = "warmpath.dev/card"
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


class KubernetesRegistry(KeptRegistry):
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
        super().__init__(ttl_seconds, poll_seconds)
        self._namespace = subjects.token(namespace)
        self._place = kubernetes_namespace or own_namespace()
        self._ttl_seconds = ttl_seconds
        self._connect = connect
        self._client: client.ApiClient | None = None
        self._identity = uuid.uuid4().hex
        self._sightings: dict[str, _Sighting] = {}
        self._away = False  # the last look failed

    async def close(self) -> None:
        """Stop heartbeats, withdraw what this object registered, end its watches, and disconnect. Idempotent."""
        await super().close()
        if self._client is not None:
            await self._client.close()
            self._client = None

    # ---- our own cards

    async def _put(self, card: WorkerCard) -> None:
        await self._do(lambda leases: self._write(leases, card))

    async def _renew(self, card: WorkerCard) -> bool:
        renewed: bool = await self._do(lambda leases: self._keep(leases, card))
        return renewed

    async def _withdraw(self, card: WorkerCard) -> None:
        await self._do(lambda leases: self._take_away(leases, card.worker_id))

    async def _keep(self, leases: client.CoordinationV1Api, card: WorkerCard) -> bool:
        """Renew a lease; False: it was gone, and is created anew.

        :raises Superseded: it is another process's, of a later start.
        """
        there = await self._read(leases, card.worker_id)
        if there is None:
            logger.warning("the card of %s was gone; it is there again", card.worker_id)
            await self._write(leases, card)
            return False
        if there.spec.holder_identity == self._identity:
            # On condition of what was read, so that somebody's newer card is never renewed in their place.
            await leases.replace_namespaced_lease(
                there.metadata.name, self._place, self._lease(card, there.metadata.resource_version)
            )
        else:
            await self._contend(leases, card, there)
        return True

    async def _contend(self, leases: client.CoordinationV1Api, card: WorkerCard, there: Any) -> None:
        """Somebody else put this worker's card: the later start has the place."""
        other = _card(there)
        if isinstance(other, WorkerCard) and other.epoch >= card.epoch:
            raise Superseded(f"worker {card.worker_id} was registered by another process, with epoch {other.epoch}")
        await self._write(leases, card)

    async def _write(self, leases: client.CoordinationV1Api, card: WorkerCard) -> None:
        """Create the lease, or replace the one that is there."""
        try:
            await leases.create_namespaced_lease(self._place, self._lease(card, None))
        except ApiException as error:
            if error.status != CONFLICT:
                raise
            there = await self._read(leases, card.worker_id)
            version = there.metadata.resource_version if there is not None else None
            await leases.replace_namespaced_lease(self._name(card.worker_id), self._place, self._lease(card, version))

    async def _take_away(self, leases: client.CoordinationV1Api, worker_id: str) -> None:
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

    async def _look(self) -> dict[str, WorkerCard]:
        try:
            found: dict[str, WorkerCard] = await self._do(self._list)
        except RegistryError:
            self._away = True
            raise
        return found

    async def _list(self, leases: client.CoordinationV1Api) -> dict[str, WorkerCard]:
        """All living cards, by one request; what has expired is deleted."""
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

    def __repr__(self) -> str:
        return f"<KubernetesRegistry {self._place}/{self._namespace}, {len(self._own)} own cards>"


def _card(lease: Any) -> WorkerCard | str:
    """The card in a lease, or why there is none."""
    try:
        return card_codec.decode((lease.metadata.annotations or {}).get(CARD, "").encode())
    except UnreadableCard as error:
        return str(error)
