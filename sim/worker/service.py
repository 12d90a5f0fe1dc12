"""The worker behind its routes: which rank takes a request, and how its tokens get to the client."""

from __future__ import annotations

import asyncio
import itertools
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

from aiohttp import web

from sim.worker.faults import Faults, Triggered
from sim.worker.generation import BadRequest, Generation, typed
from sim.worker.rendezvous import FAKE_HOST, Meeting, meeting_of
from sim.worker.reply import DONE, json_reply, open_stream

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sim.engine import Request
    from sim.worker.config import WorkerConfig
    from sim.worker.faults import FaultOrder, Fuse
    from sim.worker.metrics import Metrics
    from sim.worker.rank import Rank
    from sim.worker.rendezvous import Side
    from sim.worker.shapes import Shape
    from sim.worker.text import TextModel


class Service:
    """A worker's ranks and what they share."""

    def __init__(
        self,
        config: WorkerConfig,
        ranks: Sequence[Rank],
        text_model: TextModel | None,
        metrics: Metrics,
        die: Callable[[], None],
        side: Side | None = None,
    ) -> None:
        self.config = config
        self.ranks = ranks
        self.text_model = text_model
        self.metrics = metrics
        self.faults = Faults()
        self.adapters = dict(adapter.partition("=")[::2] for adapter in config.lora_paths)
        """LoRA adapters that are loaded: names and paths."""
        self._die = die
        self._side = side
        self._turns = itertools.count()

    def rank_for(self, body: dict[str, Any], header: str | None = None) -> Rank:
        """The rank that the client names, else the next one in turn.

        :raises BadRequest: there is no such rank.
        """
        if header is not None:
            if not header.isdigit():
                raise BadRequest(f"X-Data-Parallel-Rank must be a number, not {header!r}")
            wanted: int | None = int(header)
        else:
            wanted = typed(body, "routed_dp_rank", int, typed(body, "data_parallel_rank", int))
        room = typed(body, "bootstrap_room", int)
        if wanted is None and room is not None and not self.ranks[0].delivers:
            wanted = room % len(self.ranks)  # SGLang's way to tell a prefill worker's ranks apart
        if wanted is None:
            return self.ranks[next(self._turns) % len(self.ranks)]
        if not 0 <= wanted < len(self.ranks):
            raise BadRequest(f"routed_dp_rank={wanted} out of range [0, {len(self.ranks)})")
        return self.ranks[wanted]

    def accept(self, request: Request, rank: Rank, stops: list[str], body: dict[str, Any]) -> Generation:
        """A generation that its rank will take.

        :raises ValueError: it would not, see `Engine.submit`; it lacks the fields by which it meets its other side; or stop texts
            are asked for without a tokenizer.
        """
        length, longest = len(request.prompt), self.config.longest_context
        if length >= longest:
            raise BadRequest(
                f"The input ({length} tokens) is longer than the model's context length ({longest} tokens)."
            )
        if stops and self.text_model is None:
            raise BadRequest("stop: no tokenizer was loaded (skip_tokenizer_init)")
        if any(other.holds(request.rid) for other in self.ranks):
            raise BadRequest(f"Duplicate request ID detected: {request.rid}")
        adapter = request.namespace.lora_name
        if adapter is not None and adapter not in self.adapters:
            raise BadRequest(f"The following requested LoRA adapters are not loaded: {{{adapter!r}}}")
        rank.engine.validate(request)
        meeting = meeting_of(body, request.rid) if self._side is not None else None
        several = len(self.ranks) > 1
        return Generation(request, rank, self.text_model, stops, self._side, meeting, tell_rank=several)

    async def probe(self, request: Request) -> None:
        """Have rank 0 answer a request of the worker's own; a side needs no other one for it."""
        outputs = self.ranks[0].submit(request)
        if self._side is not None:
            self._side.begin(self.ranks[0], request.rid, Meeting(FAKE_HOST, 0, 0))
        async for _ in outputs:
            pass
        if self._side is not None:
            self._side.end(request.rid)

    async def answer(
        self, http: web.Request, generation: Generation, shape: Shape, *, stream: bool
    ) -> web.StreamResponse:
        """Run a generation and send what comes of it; a client that leaves aborts it."""
        fuse = self.faults.next()
        response: web.StreamResponse | None = None
        try:
            fuse.check(0)
            if not stream:
                return await self._whole(generation, shape, fuse)
            response = await open_stream(http)
            await self._stream(response, generation, shape, fuse)
        except Triggered as fault:
            return await self._fail(http, response, fault.order, shape)
        except ConnectionError:
            pass  # the client left, and the generation is aborted by now
        return response if response is not None else web.Response(status=499)

    async def _whole(self, generation: Generation, shape: Shape, fuse: Fuse) -> web.StreamResponse:
        async with aclosing(generation.advance()) as progress:
            async for _ in progress:
                fuse.check(len(generation.output_ids) - 1)
        if generation.failure:
            return shape.error(generation.failure, 500)
        self.metrics.finished(generation, streaming=False)
        return json_reply(shape.whole(generation))

    async def _stream(self, response: web.StreamResponse, generation: Generation, shape: Shape, fuse: Fuse) -> None:
        async with aclosing(generation.advance()) as progress:
            async for _ in progress:
                fuse.check(len(generation.output_ids) - 1)
                if generation.failure:
                    await response.write(shape.error_event(generation.failure, 500) + DONE)
                    await response.write_eof()
                    return
                await response.write(shape.token(generation))
        await response.write(shape.end(generation) + DONE)
        await response.write_eof()
        self.metrics.finished(generation, streaming=True)

    async def _fail(
        self, http: web.Request, response: web.StreamResponse | None, order: FaultOrder, shape: Shape
    ) -> web.StreamResponse:
        if order.kind == "error":
            if response is None:
                return shape.error(order.message, order.status)
            await response.write(shape.error_event(order.message, order.status) + DONE)
            return response
        if order.kind == "hang":
            await asyncio.Event().wait()  # until the client gives up
        if order.kind == "die":
            self._die()
        if http.transport is not None:
            http.transport.abort()
        return response if response is not None else web.Response(status=500)
