"""A stand-in for an SGLang server: real HTTP and real ZMQ sockets, events as the test says them."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from dataclasses import dataclass, field

import msgspec
import zmq
import zmq.asyncio
from aiohttp import web

END = b"\xff" * 8


def free_ports(count: int, run: int = 1) -> list[int]:
    """First ports of `count` disjoint rows of `run` consecutive ports that nobody listens on now."""
    found: list[int] = []
    with contextlib.ExitStack() as held:
        while len(found) < count:
            probe = held.enter_context(socket.create_server(("127.0.0.1", 0)))
            first = probe.getsockname()[1]
            try:
                for port in range(first + 1, first + run):
                    held.enter_context(socket.create_server(("127.0.0.1", port)))
            except OSError:
                continue
            found.append(first)
    return found


async def until(condition, seconds=5.0):
    """Wait for what no event announces."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not become true in time"
        await asyncio.sleep(0.005)


def stored(ids, parent, tokens, page_size=16, **fields):
    """A store as 0.5.23 writes it."""
    head = {"type": "BlockStored", "block_hashes": ids, "parent_block_hash": parent, "token_ids": list(tokens)}
    return head | {"block_size": page_size, "lora_id": None, "medium": "GPU"} | fields


def removed(ids, medium="GPU"):
    """A removal as 0.5.23 writes it."""
    return {"type": "BlockRemoved", "block_hashes": ids, "medium": medium}


CLEARED = {"type": "AllBlocksCleared"}


@dataclass
class FakeRank:
    """One rank's publisher: PUB and replay ROUTER, with faults to order."""

    context: zmq.asyncio.Context
    port: int
    replay_port: int | None
    topic: str = ""
    rank: int = 0
    keeps_topic: bool = True
    """Replies have 4 parts, as from 0.5.22 on."""
    answers: bool = True
    """Whether replay requests are answered at all."""
    drops: set = field(default_factory=set)
    """Numbers that the next replay leaves out, END among them, as a ROUTER does with a slow reader."""

    def __post_init__(self):
        self.history: list[tuple[int, bytes]] = []
        self.requests: list[int] = []
        self.seq = 0
        self._pub = self.context.socket(zmq.XPUB)  # a PUB that hears of its subscribers
        self._pub.bind(f"tcp://127.0.0.1:{self.port}")
        self._router = None
        self._task = None
        if self.replay_port:
            self._router = self.context.socket(zmq.ROUTER)
            self._router.bind(f"tcp://127.0.0.1:{self.replay_port}")
            self._task = asyncio.get_running_loop().create_task(self._replay())

    async def publish(self, *events, live=True, kept=True, ts=None):
        """One batch. live False: only a replay brings it. kept False: only who listens gets it."""
        payload = msgspec.msgpack.encode([time.time() if ts is None else ts, list(events), self.rank])
        await self.publish_raw(payload, live=live, kept=kept)

    async def publish_raw(self, payload, live=True, kept=True):
        if kept:
            self.history.append((self.seq, payload))
        if live:
            await self._pub.send_multipart([self.topic.encode(), self.seq.to_bytes(8, "big"), payload])
        self.seq += 1

    async def subscribed(self):
        """Wait until a subscriber has arrived: what is published from then on reaches it."""
        assert (await asyncio.wait_for(self._pub.recv(), 5)) == b"\x01" + self.topic.encode()

    async def send(self, *parts):
        """Any message."""
        await self._pub.send_multipart(parts)

    async def _replay(self):
        while True:
            client, _, start = await self._router.recv_multipart()
            self.requests.append(int.from_bytes(start, "big"))
            if not self.answers:
                continue
            topic = [self.topic.encode()] if self.keeps_topic else []
            dropped, self.drops = self.drops, set()
            for seq, payload in self.history:
                if seq >= self.requests[-1] and seq not in dropped:
                    await self._router.send_multipart([client, b"", *topic, seq.to_bytes(8, "big"), payload])
            if END not in dropped:
                await self._router.send_multipart([client, b"", *([b""] if topic else []), END, b""])

    async def close(self):
        if self._task:
            self._task.cancel()
            await asyncio.wait([self._task])
            self._router.close(linger=0)
        self._pub.close(linger=0)


class FakeServer:
    """`async with FakeServer(ranks=2) as server`: HTTP and its ranks' sockets, which can die and come back at the same place."""

    def __init__(self, *, ranks=1, events=True, replay=True, load_stream=False, page_size=16, topic="", **info):
        self.ports = free_ports(4, ranks)
        self.http_port, self._kv_port, self._replay_port, self._load_port = self.ports
        self.url = f"http://127.0.0.1:{self.http_port}"
        self._ranks = ranks
        self._topic = topic
        self._events, self._replay, self._load_stream = events, replay, load_stream
        self.info = self._info(page_size) | info
        self.loads = [
            {"dp_rank": rank, "num_running_reqs": rank + 1, "num_waiting_reqs": 0, "num_used_tokens": 7}
            | {"max_total_num_tokens": 2048}
            for rank in range(ranks)
        ]
        self.asked: list[str] = []
        self.probed: list[dict] = []
        self.silent_ranks: set[int] = set()
        self.ready_status = 200
        self.adapters: list[str] = []
        self.ranks: list[FakeRank] = []
        self.stores = None
        """What a rank publishes when it is sent a prompt: a coroutine function of both."""
        self.tokenizes = True

    def _info(self, page_size):
        source = {"publisher": "zmq", "endpoint_host": "*", "endpoint_port_base": self._kv_port, "topic": self._topic}
        source |= {"block_size": page_size, "dp_size": self._ranks}
        source |= {"replay_endpoint_port_base": self._replay_port} if self._replay else {}
        source |= {"load_endpoint_port_base": self._load_port, "load_topic": "load"} if self._load_stream else {}
        return {
            "max_total_num_tokens": 2048,
            "max_req_input_len": 2042,
            "page_size": page_size,
            "served_model_name": "tiny",
            "dp_size": self._ranks,
            "version": "0.5.23",
            "kv_events": source if self._events else None,
            "internal_states": [{"effective_max_running_requests_per_dp": 64}],
        }

    async def start(self):
        """Begin a life: numbers from 0, nothing remembered."""
        self._context = zmq.asyncio.Context()
        self.ranks = [
            FakeRank(
                self._context,
                self._kv_port + rank,
                self._replay_port + rank if self._replay else None,
                self._topic,
                rank,
            )
            for rank in range(self._ranks)
        ]
        self.load = self._context.socket(zmq.PUB)
        self.load.bind(f"tcp://127.0.0.1:{self._load_port}")
        app = web.Application()
        for path in ("/server_info", "/ready", "/v1/loads", "/v1/models"):
            app.router.add_get(path, self._answer)
        app.router.add_post("/generate", self._generate)
        app.router.add_post("/v1/tokenize", self._tokenize)
        self._runner = web.AppRunner(app)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self.http_port, reuse_address=True).start()

    async def die(self):
        """End at once."""
        await self._runner.cleanup()
        for rank in self.ranks:
            await rank.close()
        self.load.close(linger=0)
        self._context.destroy(linger=0)

    async def _generate(self, request):
        """Answers only if its rank does."""
        body = await request.json()
        self.probed.append(body)
        rank = body.get("routed_dp_rank", 0)
        if self.stores is not None and rank not in self.silent_ranks:
            await self.stores(self.ranks[rank], body["input_ids"])
        silent = rank in self.silent_ranks
        return web.json_response({}, status=500 if silent else 200)

    async def _tokenize(self, request):
        body = await request.json()
        assert body["add_special_tokens"] is False
        return web.json_response({"tokens": [len(body["prompt"])]} if self.tokenizes else {}, status=200)

    async def _answer(self, request):
        self.asked.append(request.path)
        if request.path == "/server_info":
            return web.json_response(self.info)
        if request.path == "/v1/models":
            adapters = [{"id": name, "parent": "tiny"} for name in self.adapters]
            return web.json_response({"data": [{"id": "tiny", "parent": None}, *adapters]})
        if request.path == "/v1/loads":
            return web.json_response({"loads": self.loads}) if self.loads is not None else web.Response(status=404)
        return web.Response(status=self.ready_status)

    async def __aenter__(self):
        await self.start()
        return self

    async def __aexit__(self, *error):
        await self.die()
