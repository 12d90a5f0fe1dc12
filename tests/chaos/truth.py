"""What must be true once a fault is over, and what of it is not."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, NamedTuple

import aiohttp

from events import messages, subjects
from events.bus import BusError
from events.bus.nats import NatsBus
from events.membership import RegistryError
from events.messages import SnapshotChunk, SnapshotRequest, unpack_hashes
from events.snapshot import SnapshotError, assemble
from tests.chaos.site import BLOCK_SIZE, NAMESPACE

if TYPE_CHECKING:
    from tests.chaos.site import Site

LONG_HISTORY_BATCHES = 8000
"""An engine that has published more may not be able to tell all of it again: it keeps 10,000."""

COUNTERS = tuple(
    f"warmpath_{name}_total"
    for name in (
        *("events_applied", "events_dropped", "bus_dropped", "bus_reconnects", "gaps", "resyncs", "failed_snapshots"),
        *("migrations", "ejections", "other_routers_healed", "other_routers_expired"),
    )
)


class Findings(NamedTuple):
    """What differs from the truth; all empty: nothing."""

    divergent: list[str]
    """Caches believed in that are not the engines', or the other way round; membership that is not who is alive."""
    leaked: list[str]
    """Bookings and running requests that nobody waits for."""

    def __bool__(self) -> bool:
        return bool(self.divergent or self.leaked)


class Truth:
    """Compares a quiet site's engines with what adapters and routers believe, block by block."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._bus: NatsBus | None = None
        self.forgetful: set[int] = set()
        """Engines of whose events some are lost for good: until they are flushed, less may be believed than is there."""

    async def findings(self) -> Findings:
        """All that is wrong now."""
        site = self._site
        divergent, leaked = await self._membership(), []
        for index in range(len(site.engines)):
            divergent += await self._caches(index)
            leaked += await self._engine_load(index)
        for index in range(len(site.routers)):
            leaked += await self._bookings(index)
        return Findings(divergent, leaked)

    async def disturbed(self, victims: set[str]) -> list[str]:
        """Workers that a router has lost though nothing was done to either; `victims` may grow meanwhile."""
        site, found = self._site, []
        for router, part in enumerate(site.routers):
            listed = await self._workers(router)
            if part.name in victims or isinstance(listed, str):
                continue
            names = {worker["worker_id"] for worker in listed}
            found += [
                f"router{router} has lost {site.worker_id(index)}, to which nothing was done"
                for index in range(len(site.engines))
                if site.worker_id(index) not in names and not victims & {f"engine{index}", f"adapter{index}"}
            ]
        return found

    async def counters(self) -> dict[str, float]:
        """What went wrong on the way, by all routers' metrics, each since its last start."""
        sums = dict.fromkeys(COUNTERS, 0.0)
        for router in range(len(self._site.routers)):
            url = f"{self._site.router_url(router)}/metrics"
            try:
                async with self._site.http.get(url, timeout=aiohttp.ClientTimeout(5)) as reply:
                    lines = (await reply.text()).splitlines()
            except (aiohttp.ClientError, TimeoutError):
                continue
            for line in lines:
                name = line.partition(" ")[0].partition("{")[0]
                if name in sums:
                    sums[name] += float(line.rsplit(" ", 1)[1])
        return sums

    async def close(self) -> None:
        """Disconnect."""
        if self._bus is not None:
            await self._bus.close()

    # ---- caches

    async def _caches(self, index: int) -> list[str]:
        site = self._site
        try:
            cache = await self._get(f"{site.engine_url(index)}/_cache?block_size={BLOCK_SIZE}")
        except (aiohttp.ClientError, TimeoutError) as error:
            return [f"engine{index} does not answer: {error!r}"]
        found = []
        for rank, held in enumerate(cache["ranks"]):
            engine = set(held["blocks"])
            found += self._compare(index, f"adapter of engine{index}/{rank}", engine, await self._mirror(index, rank))
            for router in range(len(site.routers)):
                name = f"router{router} on engine{index}/{rank}"
                found += self._compare(index, name, engine, await self._index(router, index, rank))
        return found

    def _compare(self, index: int, name: str, engine: set[int], believed: set[int] | str) -> list[str]:
        if isinstance(believed, str):
            return [f"{name}: {believed}"]
        ghosts, unseen = believed - engine, engine - believed
        if ghosts or (unseen and index not in self.forgetful):
            return [f"{name}: {len(ghosts)} blocks that are not there, {len(unseen)} unseen, of {len(engine)}"]
        return []

    async def _mirror(self, index: int, rank: int) -> set[int] | str:
        """What the adapter answers to a snapshot request."""
        worker_id = self._site.worker_id(index)
        try:
            bus = await self._connected()
            request = messages.encode(SnapshotRequest(worker_id, rank))
            subject = subjects.snapshot(NAMESPACE, worker_id, rank)
            parts = [messages.decode(part) async for part in bus.request(subject, request)]
            snapshot = assemble([part for part in parts if isinstance(part, SnapshotChunk)])
        except (BusError, SnapshotError) as error:
            return f"no snapshot: {error}"
        return {block for stored in snapshot.stored for block in unpack_hashes(stored.hashes).tolist()}

    async def _index(self, router: int, index: int, rank: int) -> set[int] | str:
        """What a router believes."""
        site = self._site
        try:
            blocks = await self._get(f"{site.router_url(router)}/workers/{site.worker_id(index)}/{rank}/blocks")
        except (aiohttp.ClientError, TimeoutError) as error:
            return f"does not answer: {error!r}"
        return set(blocks["device"])

    async def _connected(self) -> NatsBus:
        if self._bus is None:
            self._bus = NatsBus(self._site.broker.url, name="truth", wait_for_server=False)
            await self._bus.open()
            await asyncio.sleep(0.1)
        return self._bus

    # ---- who is there, and what is in flight

    async def _membership(self) -> list[str]:
        site = self._site
        alive = {site.worker_id(index) for index in range(len(site.engines))}
        registry = site.registry()
        try:
            registered = set(await registry.cards())
        except RegistryError as error:
            return [f"registry: {error}"]
        finally:
            await registry.close()
        found = [f"registry: {registered} are registered, {alive} are alive"] if registered != alive else []
        for router in range(len(site.routers)):
            listed = await self._workers(router)
            if isinstance(listed, str):
                found.append(listed)
            else:
                found += _unfit(router, listed, alive)
        return found

    async def _workers(self, router: int) -> list[dict[str, Any]] | str:
        try:
            listed: list[dict[str, Any]] = (await self._get(f"{self._site.router_url(router)}/workers"))["workers"]
        except (aiohttp.ClientError, TimeoutError) as error:
            return f"router{router} does not answer: {error!r}"
        return listed

    async def _bookings(self, router: int) -> list[str]:
        listed = await self._workers(router)
        if isinstance(listed, str):
            return []
        return [
            f"router{router}: {rank['requests']} and {rank['requests_elsewhere']} of others booked on {rank['target']}"
            for worker in listed
            for rank in worker.get("ranks", [])
            if rank["requests"] or rank["requests_elsewhere"] or rank["prefill_tokens"] or rank["context_tokens"]
        ]

    async def _engine_load(self, index: int) -> list[str]:
        try:
            loads = (await self._get(f"{self._site.engine_url(index)}/v1/loads"))["loads"]
        except (aiohttp.ClientError, TimeoutError):
            return []  # said already
        return [
            f"engine{index}/{load['dp_rank']} still has {load['num_running_reqs']} + {load['num_waiting_reqs']} requests"
            for load in loads
            if load["num_running_reqs"] + load["num_waiting_reqs"]
        ]

    async def _get(self, url: str) -> Any:
        async with self._site.http.get(url, timeout=aiohttp.ClientTimeout(5)) as reply:
            reply.raise_for_status()
            return await reply.json(content_type=None)


def _unfit(router: int, listed: list[dict[str, Any]], alive: set[str]) -> list[str]:
    names = {worker["worker_id"] for worker in listed}
    found = [f"router{router}: {names} are listed, {alive} are alive"] if names != alive else []
    for worker in listed:
        if "refused" in worker:
            found.append(f"router{router}: {worker['worker_id']} is refused: {worker['refused']}")
        for rank in worker.get("ranks", []):
            if not rank["exact"]:
                found.append(f"router{router}: {rank['target']} is not in step")
    return found
