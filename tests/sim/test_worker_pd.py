"""A prefill and a decode fake worker over real sockets: what they say together, and how either learns that the other is gone."""

from __future__ import annotations

import asyncio
import json
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest

from sim.engine import StepTiming, TransferTiming
from sim.worker import FakeWorker, WorkerConfig

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

FAST = StepTiming(speed=50.0)
PROMPT = list(range(100, 140))


class Duo:
    """Both workers, and what a router does with them."""

    def __init__(self, prefill: FakeWorker, decode: FakeWorker, session: aiohttp.ClientSession) -> None:
        self.prefill, self.decode, self.session = prefill, decode, session
        self.rooms = iter(range(1000, 10_000_000, 1000))

    def body(self, room: int, **fields: Any) -> dict[str, Any]:
        return {
            "input_ids": PROMPT,
            "sampling_params": {"max_new_tokens": 6},
            "bootstrap_host": "127.0.0.1",
            "bootstrap_port": self.prefill.ports.bootstrap,
            "bootstrap_room": room,
            **fields,
        }

    async def ask(self, worker: FakeWorker, body: dict[str, Any], path: str = "/generate") -> tuple[int, Any]:
        async with self.session.post(worker.url + path, json=body) as reply:
            return reply.status, await reply.json(content_type=None)

    async def both(self, room: int | None = None, **fields: Any) -> tuple[Any, Any]:
        body = self.body(next(self.rooms) if room is None else room, **fields)
        (_, prefill), (_, decode) = await asyncio.gather(self.ask(self.prefill, body), self.ask(self.decode, body))
        return prefill, decode

    async def loads(self, worker: FakeWorker) -> list[dict[str, Any]]:
        async with self.session.get(f"{worker.url}/v1/loads") as reply:
            return (await reply.json())["loads"]

    async def idle(self) -> None:
        for worker in (self.prefill, self.decode):
            async with asyncio.timeout(5):
                while any(rank.engine.busy for rank in worker.ranks):
                    await asyncio.sleep(0.01)
            assert all(rank.load().used_tokens == 0 for rank in worker.ranks)


@asynccontextmanager
async def duo(*, prefill: dict[str, Any] | None = None, decode: dict[str, Any] | None = None) -> AsyncIterator[Duo]:
    common: dict[str, Any] = {"timing": FAST, "heartbeat_seconds": 0.05, "transfer": TransferTiming(speed=50.0)}
    async with (
        FakeWorker(WorkerConfig(disaggregation_mode="prefill", **(common | (prefill or {})))) as one,
        FakeWorker(WorkerConfig(disaggregation_mode="decode", **(common | (decode or {})))) as two,
        aiohttp.ClientSession() as session,
    ):
        yield Duo(one, two, session)


async def alone(**fields: Any) -> Any:
    async with FakeWorker(WorkerConfig(timing=FAST)) as worker, aiohttp.ClientSession() as session:
        body = {"input_ids": PROMPT, "sampling_params": {"max_new_tokens": 6}, **fields}
        async with session.post(f"{worker.url}/generate", json=body) as reply:
            return await reply.json()


@pytest.mark.parametrize("caches", [False, True])
async def test_together_they_say_what_one_says(caches: bool) -> None:
    """As captured from SGLang 0.5.23: the prefill side answers with one token and length 0; both say what was cached."""
    async with duo(decode={"disaggregation_decode_enable_radix_cache": caches}) as both:
        for cached in (0, 32):
            prefill, decode = await both.both()
            assert prefill["output_ids"] == decode["output_ids"][:1]
            assert prefill["meta_info"]["finish_reason"] == {"type": "length", "length": 0}
            assert decode["meta_info"]["finish_reason"] == {"type": "length", "length": 6}
            assert prefill["meta_info"]["cached_tokens"] == cached
            assert decode["meta_info"]["cached_tokens"] == (cached if caches else 0)
            assert decode["output_ids"] == (await alone())["output_ids"]
        await both.idle()


async def test_the_openai_routes_too() -> None:
    async with duo() as both:
        body = both.body(7) | {"prompt": PROMPT, "max_tokens": 6, "model": "m"}
        (_, prefill), (status, decode) = await asyncio.gather(
            both.ask(both.prefill, body, "/v1/completions"), both.ask(both.decode, body, "/v1/completions")
        )
        assert status == 200
        assert decode["choices"][0]["text"] == (await alone())["text"]
        assert decode["choices"][0]["text"].startswith(prefill["choices"][0]["text"])


async def test_without_a_room_there_is_no_request() -> None:
    async with duo() as both:
        for worker in (both.prefill, both.decode):
            status, reply = await both.ask(worker, {"input_ids": PROMPT, "rid": "r"})
            assert status == 400
            assert reply["error"]["message"].startswith("Invalid request: Disaggregated request received without boot")


async def test_what_they_say_of_themselves() -> None:
    async with duo() as both:
        async with both.session.get(f"http://127.0.0.1:{both.prefill.ports.bootstrap}/route") as reply:
            route = await reply.json()
        assert (route["dp_size"], route["page_size"], route["follow_bootstrap_room"]) == (1, 16, True)
        for worker, mode, disabled in ((both.prefill, "prefill", False), (both.decode, "decode", True)):
            async with both.session.get(f"{worker.url}/server_info") as reply:
                info = await reply.json()
            assert (info["disaggregation_mode"], info["disable_radix_cache"]) == (mode, disabled)
            assert (await both.loads(worker))[0]["disaggregation"]["mode"] == mode
            async with both.session.get(f"{worker.url}/health") as reply:
                assert reply.status == 200
        assert info["disaggregation_bootstrap_port"] == 8998
        await both.idle()


async def test_ranks_meet_by_room_and_by_name() -> None:
    async with duo(prefill={"dp_size": 3}, decode={"dp_size": 2}) as both:
        for room in range(9, 15):
            prefill, decode = await both.both(room)
            assert prefill["meta_info"]["dp_rank"] == room % 3
            assert decode["output_ids"] == (await alone())["output_ids"]
        body = both.body(9)
        (_, prefill), (status, _) = await asyncio.gather(
            both.ask(both.prefill, body | {"routed_dp_rank": 2}),
            both.ask(both.decode, body | {"disagg_prefill_dp_rank": 2, "routed_dp_rank": 1}),
        )
        assert (status, prefill["meta_info"]["dp_rank"]) == (200, 2)
        await both.idle()


async def test_either_side_may_come_first() -> None:
    async with duo() as both:
        for first, second in ((both.prefill, both.decode), (both.decode, both.prefill)):
            body = both.body(next(both.rooms))
            early = asyncio.create_task(both.ask(first, body))
            while not any(rank.engine.busy for rank in first.ranks):
                await asyncio.sleep(0.005)
            (_, late), (_, answer) = await asyncio.gather(both.ask(second, body), early)
            assert {len(late["output_ids"]), len(answer["output_ids"])} == {1, 6}


async def test_a_side_that_never_comes() -> None:
    async with duo(prefill={"bootstrap_timeout_seconds": 0.1}, decode={"waiting_timeout_seconds": 0.1}) as both:
        for worker, text in ((both.prefill, "Prefill bootstrap failed"), (both.decode, "Decode transfer failed")):
            status, reply = await both.ask(worker, both.body(next(both.rooms)))
            assert (status, text in reply["error"]["message"]) == (500, True)
        assert "timed out after 0.1s" in reply["error"]["message"]
        await both.idle()


async def test_a_stream_says_it_in_the_stream() -> None:
    async with duo(prefill={"bootstrap_timeout_seconds": 0.05}) as both:
        body = both.body(5, stream=True)
        async with both.session.post(f"{both.prefill.url}/generate", json=body) as reply:
            lines = (await reply.text()).split("\n\n")
        error = json.loads(lines[0].removeprefix("data: "))["error"]
        assert error["code"] == 500
        assert "bootstrap failed" in error["message"]
        assert lines[1] == "data: [DONE]"


@pytest.mark.parametrize("leaver", ["prefill", "decode"])
@pytest.mark.parametrize("by", ["leaving", "abort"])
async def test_a_client_that_leaves_one_side_ends_the_other(leaver: str, by: str) -> None:
    slow = StepTiming(prefill_floor_seconds=0.6)  # a step that runs is not broken off
    async with duo(prefill={"timing": slow}) as both:
        body = both.body(5, rid="r")
        here = both.prefill if leaver == "prefill" else both.decode
        other = both.decode if leaver == "prefill" else both.prefill
        asked = {worker: asyncio.create_task(both.ask(worker, body)) for worker in (both.prefill, both.decode)}
        async with asyncio.timeout(5):
            while not (both.prefill.ranks[0].load().used_tokens and both.decode.ranks[0].load().used_tokens):
                await asyncio.sleep(0.005)
        if by == "leaving":
            asked[here].cancel()
        else:
            await both.ask(here, {"rid": "r"}, "/abort_request")
        status, reply = await asked[other]
        assert status == 500
        assert "failed for request" in reply["error"]["message"]


async def test_a_prefill_worker_that_dies_is_found_out() -> None:
    slow = StepTiming(prefill_floor_seconds=0.6)  # a step that runs is not broken off
    async with duo(prefill={"timing": slow}) as both:
        asked = asyncio.create_task(both.both(5))
        while not both.prefill.ranks[0].load().used_tokens:
            await asyncio.sleep(0.005)
        started = time.monotonic()
        both.prefill._vanish()
        with pytest.raises(aiohttp.ClientError):
            await asked
        status, reply = await both.ask(both.decode, both.body(6))
        assert status == 500
        assert "Could not fetch prefill parallel info" in reply["error"]["message"]
        assert time.monotonic() - started < 10
        async with asyncio.timeout(5):
            while both.decode.ranks[0].engine.busy:
                await asyncio.sleep(0.01)


async def test_kv_under_transfer_outlives_the_client_and_the_order_to_stop() -> None:
    """A draining prefill worker keeps serving its KV; what was already computed still arrives."""
    async with duo(prefill={"transfer": TransferTiming(base_seconds=0.5)}) as both:
        body = both.body(5)
        prefilling = asyncio.create_task(both.ask(both.prefill, body))
        decoding = asyncio.create_task(both.ask(both.decode, body))
        while not both.prefill.ranks[0].engine.sending:  # type: ignore[attr-defined]
            await asyncio.sleep(0.005)
        prefilling.cancel()
        draining = asyncio.create_task(both.prefill.drain())
        await asyncio.sleep(0.05)
        assert both.prefill.ranks[0].load().used_tokens > 0
        assert not draining.done()
        status, reply = await decoding
        await draining
        assert (status, reply["output_ids"]) == (200, (await alone())["output_ids"])
        await both.idle()


async def test_a_room_is_for_one_request() -> None:
    async with duo() as both:
        body = both.body(5)
        waiting = asyncio.create_task(both.ask(both.prefill, body))
        while not both.prefill.ranks[0].engine.busy:
            await asyncio.sleep(0.005)
        status, reply = await both.ask(both.prefill, body)
        assert (status, "the room is taken" in reply["error"]["message"]) == (500, True)
        status, _ = await both.ask(both.decode, body)
        assert status == 200
        assert (await waiting)[0] == 200
