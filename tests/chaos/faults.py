"""The faults, each a context manager around a whole site: broken on entry, mended on exit.

A fault is drawn with its victim; what it does to whom is what it yields.
"""

from __future__ import annotations

import asyncio
import signal
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import aiohttp

from tests.chaos.site import TTL_SECONDS

if TYPE_CHECKING:
    import random
    from collections.abc import AsyncIterator, Callable
    from contextlib import AbstractAsyncContextManager

    from launch.link import Link
    from tests.chaos.part import Part
    from tests.chaos.site import Site
    from tests.chaos.truth import Truth

BEYOND_LEASES_SECONDS = TTL_SECONDS + 1.0
BURST_TOKENS = 3200
BURST_CONCURRENCY = 8


class Scene(NamedTuple):
    """What a fault works with."""

    site: Site
    truth: Truth
    random: random.Random
    burst_events: int
    taken: set[str]
    """Parts that another fault has now."""

    def index(self, parts: list[Part]) -> int:
        """One of several that no other fault has, and nothing beside it."""
        free = [index for index, part in enumerate(parts) if not self.taken & _company(part.name)]
        index = self.random.choice(free)
        self.taken.add(parts[index].name)
        return index


def _company(name: str) -> set[str]:
    """A part, and the one that it lives with."""
    number = name[-1]
    return {f"engine{number}", f"adapter{number}"} if name.startswith(("engine", "adapter")) else {name}


FAULTS: dict[str, Callable[[Scene], AbstractAsyncContextManager[str]]] = {}


def _fault(inflict: Callable[[Scene], AsyncIterator[str]]) -> Callable[[Scene], AsyncIterator[str]]:
    """Make a generator function one of the faults."""
    FAULTS[inflict.__name__.replace("_", " ")] = asynccontextmanager(inflict)
    return inflict


# ---- engine → adapter


def _events_disturbed(kind: str) -> None:
    async def inflict(scene: Scene) -> AsyncIterator[str]:
        index, count = scene.index(scene.site.engines), scene.random.randrange(1, 5)
        if kind == "lose":
            scene.truth.forgetful.add(index)
        await _post(scene.site, f"{scene.site.engine_url(index)}/_fault", {"kind": f"{kind}_events", "count": count})
        yield f"engine{index}, {count} batches"
        await asyncio.sleep(0.5)
        await _clear(scene.site, f"{scene.site.engine_url(index)}/_fault")

    inflict.__name__ = f"engine events {kind}"
    _fault(inflict)


for _kind in ("drop", "lose", "duplicate", "reorder", "delay"):
    _events_disturbed(_kind)


# ---- adapter → router


def _messages_disturbed(kind: str) -> None:
    async def inflict(scene: Scene) -> AsyncIterator[str]:
        index, count = scene.index(scene.site.adapters), scene.random.randrange(1, 5)
        link = scene.site.nats_links[f"adapter{index}"]
        link.disturb(kind, count)
        yield f"adapter{index}, {count} messages"
        await asyncio.sleep(0.5)
        link.forgive()

    inflict.__name__ = f"NATS messages {kind}"
    _fault(inflict)


for _kind in ("drop", "duplicate", "reorder", "delay"):
    _messages_disturbed(_kind)


# ---- networks


def _partition(
    of: str, parts: Callable[[Site], list[Part]], place: str, links: Callable[[Site], Any], how: str
) -> None:
    async def inflict(scene: Scene) -> AsyncIterator[str]:
        victims = parts(scene.site)
        victim = victims[scene.index(victims)].name
        link: Link = links(scene.site)[victim]
        if how == "silent":
            link.silence()
        else:
            await link.cut()
        yield victim
        await asyncio.sleep(scene.random.uniform(0.2, BEYOND_LEASES_SECONDS))
        await link.heal()

    inflict.__name__ = f"{of} {how} {place}"
    _fault(inflict)


PARTS: dict[str, Callable[[Site], list[Part]]] = {
    "engine": lambda site: site.engines,
    "adapter": lambda site: site.adapters,
    "router": lambda site: site.routers,
}

for _how in ("silent", "cut off"):
    for _of in ("adapter", "router"):
        _partition(_of, PARTS[_of], "from NATS", lambda site: site.nats_links, _how)
        _partition(_of, PARTS[_of], "from etcd", lambda site: site.etcd_links, _how)
    _partition("engine", PARTS["engine"], "to requests", lambda site: site.http_links, _how)


# ---- processes


def _killed(kind: str, parts: Callable[[Site], list[Part]]) -> None:
    async def inflict(scene: Scene) -> AsyncIterator[str]:
        victims = parts(scene.site)
        index = scene.index(victims)
        await victims[index].kill()
        yield victims[index].name
        await asyncio.sleep(scene.random.choice((0.0, 0.5, BEYOND_LEASES_SECONDS)))
        await victims[index].start_again()

    inflict.__name__ = f"{kind} killed"
    _fault(inflict)


def _stopped(kind: str, parts: Callable[[Site], list[Part]]) -> None:
    async def inflict(scene: Scene) -> AsyncIterator[str]:
        victims = parts(scene.site)
        index = scene.index(victims)
        victims[index].send(signal.SIGSTOP)
        yield victims[index].name
        await asyncio.sleep(BEYOND_LEASES_SECONDS)
        victims[index].send(signal.SIGCONT)

    inflict.__name__ = f"{kind} stopped"
    _fault(inflict)


def _clock_jumps(kind: str, parts: Callable[[Site], list[Part]]) -> None:
    async def inflict(scene: Scene) -> AsyncIterator[str]:
        victims = parts(scene.site)
        index = scene.index(victims)
        jump, back = scene.random.choice([(signal.SIGUSR1, signal.SIGUSR2), (signal.SIGUSR2, signal.SIGUSR1)])
        victims[index].send(jump)
        yield f"{victims[index].name}, {'forward' if jump == signal.SIGUSR1 else 'back'}"
        await asyncio.sleep(1.0)
        victims[index].send(back)

    inflict.__name__ = f"{kind} clock jumps"
    _fault(inflict)


for _kind, _parts in PARTS.items():
    _killed(_kind, _parts)
    _stopped(_kind, _parts)
    _clock_jumps(_kind, _parts)


async def _engine_and_adapter_killed(scene: Scene) -> AsyncIterator[str]:
    site = scene.site
    index = scene.index(site.engines)
    await asyncio.gather(site.engines[index].kill(), site.adapters[index].kill())
    yield site.engines[index].name
    for part in (site.engines[index], site.adapters[index]):
        await part.start_again()


async def _nats_killed(scene: Scene) -> AsyncIterator[str]:
    await scene.site.kill_broker()
    yield "nats-server"
    await asyncio.sleep(scene.random.choice((0.0, 1.0, BEYOND_LEASES_SECONDS)))
    await scene.site.broker.start()


async def _nats_stopped(scene: Scene) -> AsyncIterator[str]:
    scene.site.signal_broker(signal.SIGSTOP)
    yield "nats-server"
    await asyncio.sleep(BEYOND_LEASES_SECONDS)
    scene.site.signal_broker(signal.SIGCONT)


async def _etcd_killed(scene: Scene) -> AsyncIterator[str]:
    await scene.site.etcd.kill()
    yield "etcd"
    await asyncio.sleep(scene.random.choice((0.0, 1.0, BEYOND_LEASES_SECONDS)))
    await scene.site.etcd.start()


async def _etcd_lost_its_data(scene: Scene) -> AsyncIterator[str]:
    await scene.site.etcd.kill()
    scene.site.etcd.lose_data()
    yield "etcd"
    await scene.site.etcd.start()


async def _etcd_stopped(scene: Scene) -> AsyncIterator[str]:
    scene.site.etcd.send(signal.SIGSTOP)
    yield "etcd"
    await asyncio.sleep(BEYOND_LEASES_SECONDS)
    scene.site.etcd.send(signal.SIGCONT)


# ---- caches


async def _flushed_while_idle(scene: Scene) -> AsyncIterator[str]:
    index = scene.index(scene.site.engines)
    yield f"engine{index}"
    await flush(scene.site, index)
    scene.truth.forgetful.discard(index)


async def _burst_of_events(scene: Scene) -> AsyncIterator[str]:
    """Prompts that nobody shares, straight to an engine: each of its pages is an event when it comes and when it goes."""
    site = scene.site
    index = scene.index(site.engines)
    page_size = (await _get(site, f"{site.engine_url(index)}/server_info"))["page_size"]
    requests = max(1, scene.burst_events * page_size // (2 * BURST_TOKENS))
    requests = min(requests, 2 * scene.burst_events // 100)  # large pages: fewer events, or it would take for ever
    yield f"engine{index}, {requests * 2 * BURST_TOKENS // page_size} events"
    places = asyncio.Semaphore(BURST_CONCURRENCY)

    async def one() -> None:
        prompt = [scene.random.randrange(3, 2000) for _ in range(BURST_TOKENS)]
        async with places:
            body = {"input_ids": prompt, "sampling_params": {"max_new_tokens": 1}}
            await _post(site, f"{site.engine_url(index)}/generate", body)

    await asyncio.gather(*(one() for _ in range(requests)))


for _inflict in (
    _engine_and_adapter_killed,
    _nats_killed,
    _nats_stopped,
    _etcd_killed,
    _etcd_lost_its_data,
    _etcd_stopped,
    _flushed_while_idle,
    _burst_of_events,
):
    _inflict.__name__ = _inflict.__name__.lstrip("_")
    _fault(_inflict)


async def flush(site: Site, index: int) -> None:
    """Empty an engine's cache, when it is idle."""
    async with site.http.post(f"{site.engine_url(index)}/flush_cache?timeout=20") as reply:
        reply.raise_for_status()


async def _post(site: Site, url: str, body: object) -> None:
    async with site.http.post(url, json=body) as reply:
        reply.raise_for_status()
        await reply.read()


async def _clear(site: Site, url: str) -> None:
    try:
        async with site.http.delete(url) as reply:
            reply.raise_for_status()
    except aiohttp.ClientError:
        return


async def _get(site: Site, url: str) -> dict[str, int]:
    async with site.http.get(url) as reply:
        reply.raise_for_status()
        content: dict[str, int] = await reply.json(content_type=None)
        return content
