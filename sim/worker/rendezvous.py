"""How the two sides of a shared-out request find each other: SGLang's bootstrap server, and rooms behind it.

    decode side: has memory → POST /rooms/{room}?rank=R at the prefill side → its first token, once the KV is across
    prefill side: a request for a room → the other side is there → computes → sends → its own answer

SGLang moves KV by RDMA and speaks of it over ZMQ; here one HTTP request a room stands for all of that. What is like SGLang:
`/route` and `/health` of the bootstrap server, the order of things, the texts of the errors, the timeouts, and that either side is
told when the other one is gone.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import aiohttp
from aiohttp import web

from sim.engine import DecodeEngine, PrefillEngine, TransferTiming
from sim.worker.generation import BadRequest, typed
from sim.worker.reply import json_reply

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sim.engine import Allocated, Prefilled
    from sim.worker.config import WorkerConfig
    from sim.worker.rank import Rank

logger = logging.getLogger(__name__)

FAKE_HOST = "2.2.2.2"
"""SGLang's word for "there is no other side": health checks and warm-ups use it."""


class Meeting(NamedTuple):
    """What a request says of its other side."""

    host: str
    port: int
    room: int
    prefill_rank: int | None = None
    """Of the prefill worker; None: the room's remainder."""


def meeting_of(body: Mapping[str, Any], rid: str) -> Meeting:
    """The fields of a request's body.

    :raises BadRequest: it has no room, or a field is of another type.
    """
    room = typed(dict(body), "bootstrap_room", int)
    if room is None:
        raise BadRequest(f"Invalid request: Disaggregated request received without bootstrap room id. req.rid={rid!r}")
    return Meeting(
        typed(dict(body), "bootstrap_host", str, FAKE_HOST),
        typed(dict(body), "bootstrap_port", int, 0),
        room,
        typed(dict(body), "disagg_prefill_dp_rank", int),
    )


class Side(Protocol):
    """What one side does about a request while it is here."""

    def begin(self, rank: Rank, rid: str, meeting: Meeting) -> None:
        """The request is in the rank's queue."""

    def end(self, rid: str) -> None:
        """It is over, whatever came of it. Idempotent."""


class _Room:
    """Where one request's two sides meet."""

    def __init__(self) -> None:
        self.rank: Rank | None = None
        self.rid = ""
        self.wanted = False
        """The decode side is there."""
        self.timeout: asyncio.TimerHandle | None = None
        self.kv: asyncio.Future[Prefilled] = asyncio.get_running_loop().create_future()


class Lost(Exception):
    """The KV of a room will not come."""


class PrefillSide:
    """The rooms of a prefill worker, and the server where decode workers ask for them."""

    def __init__(self, config: WorkerConfig, transfer: TransferTiming) -> None:
        self._config = config
        self._transfer = transfer
        self._rooms: dict[tuple[int, int], _Room] = {}  # by room and rank
        self._of_request: dict[str, tuple[int, int]] = {}
        self._sending = 0
        self._still = asyncio.Event()
        self._still.set()

    async def drain(self) -> None:
        """Wait until nobody reads KV of this worker."""
        await self._still.wait()

    def application(self, http_port: int) -> web.Application:
        """The bootstrap server."""
        described = {
            "attn_tp_size": 1,
            "attn_cp_size": 1,
            "dp_size": self._config.dp_size,
            "pp_size": 1,
            "page_size": self._config.page_size,
            "kv_cache_dtype": "auto",
            "follow_bootstrap_room": True,
            "prefill_http_port": http_port,
        }

        async def route(_: web.Request) -> web.Response:
            return json_reply(described)

        async def health(_: web.Request) -> web.Response:
            return web.Response(text="OK")

        application = web.Application()
        application.add_routes(
            [web.get("/route", route), web.get("/health", health), web.post("/rooms/{room}", self.receive)]
        )
        return application

    def begin(self, rank: Rank, rid: str, meeting: Meeting) -> None:
        """See `Side.begin`."""
        if meeting.host == FAKE_HOST:
            rank.met(rid)
            return
        key = meeting.room, rank.number
        room = self._rooms.setdefault(key, _Room())
        if room.rank is not None:
            rank.fail(rid, f"Prefill bootstrap failed for request rank=0 req.rid={rid!r}: the room is taken")
            return
        room.rank, room.rid = rank, rid
        self._of_request[rid] = key
        if room.wanted:
            rank.met(rid)
            return
        loop = asyncio.get_running_loop()
        room.timeout = loop.call_later(self._config.bootstrap_timeout_seconds, self._give_up, room, meeting.room)

    def prefilled(self, rank: Rank, prefilled: Prefilled) -> None:
        """A rank has a prompt's KV ready."""
        key = self._of_request.get(prefilled.rid)
        room = self._rooms.get(key) if key is not None else None
        if room is None:
            rank.sent(prefilled.rid)  # there is no other side
        elif not room.kv.done():
            room.kv.set_result(prefilled)

    def end(self, rid: str) -> None:
        """See `Side.end`."""
        room = self._rooms.get(self._of_request.get(rid, (-1, -1)))
        if room is None:
            return
        if room.timeout is not None:
            room.timeout.cancel()
        if not room.kv.done():
            room.kv.set_exception(Lost("the prefill side gave the request up"))
            room.kv.exception()  # nobody may be waiting
        if not room.wanted:
            self._forget(room)

    async def receive(self, http: web.Request) -> web.StreamResponse:
        """`POST /rooms/{room}?rank=R&cached_tokens=N`: the decode side has memory, and waits; leaving means giving up."""
        key = int(http.match_info["room"]), int(http.query["rank"])
        room = self._rooms.setdefault(key, _Room())
        room.wanted = True
        if room.timeout is not None:
            room.timeout.cancel()
        if room.rank is not None:
            room.rank.met(room.rid)
        try:
            return await self._send(http, room, int(http.query["cached_tokens"]))
        except (asyncio.CancelledError, ConnectionError):
            if room.rank is not None:
                what = "transfer" if room.kv.done() else "bootstrap"
                room.rank.fail(room.rid, f"Prefill {what} failed for request rank=0 req.rid={room.rid!r}")
            raise
        finally:
            self._rooms.pop(key, None)
            self._forget(room)

    async def _send(self, http: web.Request, room: _Room, cached_tokens: int) -> web.StreamResponse:
        try:
            prefilled = await room.kv
        except Lost as lost:
            return json_reply({"error": str(lost)}, 500)
        self._sending += 1
        self._still.clear()
        try:
            await asyncio.sleep(self._transfer.seconds(prefilled.tokens - cached_tokens))
            response = web.StreamResponse()
            await response.prepare(http)
            await response.write(str(prefilled.token).encode())
            await response.write_eof()
        finally:
            self._sending -= 1
            if not self._sending:
                self._still.set()
            assert room.rank is not None
            room.rank.sent(room.rid)
        return response

    def _give_up(self, room: _Room, number: int) -> None:
        assert room.rank is not None
        seconds = self._config.bootstrap_timeout_seconds
        room.rank.fail(
            room.rid,
            f"Prefill bootstrap failed for request rank=0 req.rid={room.rid!r} with exception Request {number} "
            f"timed out after {seconds:.1f}s in KVPoll.Bootstrapping",
        )

    def _forget(self, room: _Room) -> None:
        key = self._of_request.pop(room.rid, None)
        if key is not None:
            self._rooms.pop(key, None)


class DecodeSide:
    """What a decode worker does to get its prompts' KV."""

    def __init__(self, config: WorkerConfig) -> None:
        self._config = config
        self._meetings: dict[str, Meeting] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._ranks: dict[str, int] = {}
        self._session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=None))

    async def close(self) -> None:
        """Give everything up."""
        for task in self._tasks.values():
            task.cancel()
        await self._session.close()

    def begin(self, rank: Rank, rid: str, meeting: Meeting) -> None:
        """See `Side.begin`."""
        self._meetings[rid] = meeting

    def end(self, rid: str) -> None:
        """See `Side.end`."""
        self._meetings.pop(rid, None)
        if task := self._tasks.pop(rid, None):
            task.cancel()

    def allocated(self, rank: Rank, allocated: Allocated) -> None:
        """A rank has memory for a prompt."""
        meeting = self._meetings.get(allocated.rid)
        if meeting is None:
            return  # given up since
        if meeting.host == FAKE_HOST:
            rank.received(allocated.rid, 0)
            return
        self._tasks[allocated.rid] = asyncio.get_running_loop().create_task(self._receive(rank, allocated, meeting))

    async def _receive(self, rank: Rank, allocated: Allocated, meeting: Meeting) -> None:
        rid = allocated.rid
        try:
            async with asyncio.timeout(self._config.waiting_timeout_seconds):
                rank.received(rid, await self._ask(allocated, meeting))
        except TimeoutError:
            seconds = self._config.waiting_timeout_seconds
            rank.fail(rid, self._failed(rid, meeting, f"timed out after {seconds:.1f}s in KVPoll.WaitingForInput"))
        except aiohttp.ClientConnectorError:
            address = f"{meeting.host}:{meeting.port}"
            rank.fail(rid, f"Could not fetch prefill parallel info from {address} after 1 attempts")
        except aiohttp.ClientError as error:  # the other side is gone, which a heartbeat would find out
            await asyncio.sleep(self._config.heartbeat_seconds)
            rank.fail(rid, self._failed(rid, meeting, str(error)))
        except Lost as lost:
            rank.fail(rid, self._failed(rid, meeting, str(lost)))

    async def _ask(self, allocated: Allocated, meeting: Meeting) -> int:
        base = f"http://{meeting.host}:{meeting.port}"
        rank = meeting.prefill_rank
        if rank is None:
            rank = meeting.room % await self._ranks_of(base)
        query = {"rank": rank, "cached_tokens": allocated.cached_tokens}
        async with self._session.post(f"{base}/rooms/{meeting.room}", params=query) as reply:
            body = await reply.read()
            if reply.status != 200:
                raise Lost(body.decode(errors="replace"))
            return int(body)

    async def _ranks_of(self, base: str) -> int:
        if base not in self._ranks:
            async with self._session.get(f"{base}/route") as reply:
                self._ranks[base] = int((await reply.json())["dp_size"])
        return self._ranks[base]

    @staticmethod
    def _failed(rid: str, meeting: Meeting, why: str) -> str:
        return (
            f"Decode transfer failed for request rank=0 decode_req.req.rid={rid!r} "
            f"decode_req.req.bootstrap_room={meeting.room} with exception {why}"
        )


def queues_of(rank: Rank) -> dict[str, Any]:
    """What `/v1/loads` says of the sides' queues."""
    engine = rank.engine
    queues = dict.fromkeys(
        (
            "prefill_bootstrap_queue_reqs",
            "prefill_inflight_queue_reqs",
            "decode_prealloc_queue_reqs",
            "decode_transfer_queue_reqs",
            "decode_retracted_queue_reqs",
        ),
        0,
    )
    if isinstance(engine, PrefillEngine):
        return queues | {"prefill_bootstrap_queue_reqs": engine.unmet, "prefill_inflight_queue_reqs": engine.sending}
    if isinstance(engine, DecodeEngine):
        return queues | {
            "decode_prealloc_queue_reqs": engine.unallocated,
            "decode_transfer_queue_reqs": engine.receiving,
        }
    return queues
