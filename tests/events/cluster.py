"""Three nats-servers that are one cluster, on this machine, to do violence to."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

from events.bus.broker import EmbeddedBroker

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

SERVERS = 3


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on now."""
    with contextlib.ExitStack() as held:
        probes = [held.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [probe.getsockname()[1] for probe in probes]


class Cluster:
    """The servers, by number."""

    def __init__(self, folder: Path) -> None:
        ports, routes = free_ports(SERVERS), free_ports(SERVERS)
        meeting = ",".join(f"nats://127.0.0.1:{port}" for port in routes)
        self.brokers = [
            EmbeddedBroker(
                ports[number],
                store_dir=folder / str(number),
                arguments=[
                    *("--name", f"n{number}", "--cluster_name", "c", "--routes", meeting),
                    *("--cluster", f"nats://127.0.0.1:{routes[number]}"),
                ],
            )
            for number in range(SERVERS)
        ]

    @property
    def urls(self) -> list[str]:
        return [f"nats://127.0.0.1:{broker.port}" for broker in self.brokers]

    def number_of(self, url: str) -> int:
        """Which server a client is connected to."""
        port = int(url.rpartition(":")[2])
        return next(number for number, broker in enumerate(self.brokers) if broker.port == port)

    async def kill(self, number: int) -> None:
        """Kill -9; it is gone when this returns."""
        pid = self.brokers[number].pid
        os.kill(pid, signal.SIGKILL)
        await asyncio.to_thread(os.waitid, os.P_PID, pid, os.WEXITED | os.WNOWAIT)

    async def start(self, number: int) -> None:
        """Start a server that was killed, at its place and with its store."""
        await self.brokers[number].start()

    def stop(self, number: int) -> None:
        """SIGSTOP."""
        os.kill(self.brokers[number].pid, signal.SIGSTOP)

    def go_on(self, number: int) -> None:
        """SIGCONT."""
        os.kill(self.brokers[number].pid, signal.SIGCONT)


@contextlib.asynccontextmanager
async def running(folder: Path) -> AsyncIterator[Cluster]:
    """A cluster of three; those that still run are ended after it."""
    cluster = Cluster(folder)
    async with AsyncExitStack() as parts:
        for broker in cluster.brokers:
            await parts.enter_async_context(broker)
        yield cluster
