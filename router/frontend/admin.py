"""`/admin/…`: what operators ask of engines, passed on to all workers or to chosen ones, with what each of them said.

Off unless there is a token. `?worker=ID,ID` and `?model=NAME` choose workers; the body, JSON or none, goes to each as it is.
"""

from __future__ import annotations

import hmac
import logging
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol
from urllib.parse import urlencode

import msgspec

from router.dispatch.fanout import Call, Fanout, Outcome
from router.frontend import http as web
from router.frontend.errors import ApiError, no_worker
from router.frontend.requests import json_object

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping

    from events.membership import WorkerCard
    from router.frontend.http.routes import Handler
    from router.metrics import Metrics

logger = logging.getLogger(__name__)

CHOOSING = ("worker", "model")
"""Fields of the query that are ours; the rest of it goes to the engines."""
NO_RECORDER = "it was started without --expert-distribution-recorder-mode, and SGLang dies of the question"


class Operation(NamedTuple):
    """Something that engines can do."""

    path: str
    """Of the engine's route."""
    holds: str = ""
    """While this is so, a worker gets no requests: set before the call, and left so if it succeeds."""
    frees: str = ""
    """What ends when it succeeds."""
    during: str = ""
    """The same, but only for as long as the call takes."""
    empties_cache: bool = False
    needs_recorder: bool = False


PAUSED, RELEASED, LOADING = "generation is paused", "its memory is released", "its weights are being replaced"
OPERATIONS: Mapping[str, Operation] = {
    "flush_cache": Operation("/flush_cache", empties_cache=True),
    "lora/load": Operation("/load_lora_adapter"),
    "lora/unload": Operation("/unload_lora_adapter"),
    "profile/start": Operation("/start_profile"),
    "profile/stop": Operation("/stop_profile"),
    "expert_distribution/start": Operation("/start_expert_distribution_record", needs_recorder=True),
    "expert_distribution/stop": Operation("/stop_expert_distribution_record", needs_recorder=True),
    "expert_distribution/dump": Operation("/dump_expert_distribution_record", needs_recorder=True),
    "weights/update_from_disk": Operation("/update_weights_from_disk", during=LOADING, empties_cache=True),
    "weights/update_from_tensor": Operation("/update_weights_from_tensor", during=LOADING, empties_cache=True),
    "weights/update_from_distributed": Operation(
        "/update_weights_from_distributed", during=LOADING, empties_cache=True
    ),
    "weights/update_from_ipc": Operation("/update_weights_from_ipc", during=LOADING, empties_cache=True),
    "weights/init_group": Operation("/init_weights_update_group"),
    "weights/destroy_group": Operation("/destroy_weights_update_group"),
    "pause": Operation("/pause_generation", holds=PAUSED),
    "continue": Operation("/continue_generation", frees=PAUSED),
    "memory/release": Operation("/release_memory_occupation", holds=RELEASED, empties_cache=True),
    "memory/resume": Operation("/resume_memory_occupation", frees=RELEASED),
}


class AdministeredFleet(Protocol):
    """The workers, as far as an administrator moves them."""

    def cards(self) -> Mapping[str, WorkerCard]:
        """All that are there, by worker id."""

    async def hold(self, worker_id: str, reason: str) -> None:
        """Give a worker no new requests, until every reason for that has ended. Unknown ones are ignored."""

    async def release(self, worker_id: str, reason: str) -> None:
        """One reason has ended."""

    def cache_emptied(self, worker_id: str) -> None:
        """A worker holds nothing any more; its events, where it has them, will say so themselves."""

    def set_adapters(self, worker_id: str, adapters: tuple[str, ...]) -> None:
        """A worker has these LoRA adapters now."""


class Administration:
    """The handlers. `token` None: all of them say that they are off."""

    def __init__(
        self, fleet: AdministeredFleet, metrics: Metrics, token: str | None, fanout: Fanout | None = None
    ) -> None:
        self._fleet = fleet
        self._metrics = metrics
        self._token = token
        self._fanout = fanout or Fanout()

    def __repr__(self) -> str:
        return f"Administration({'on' if self._token else 'off'})"

    def routes(self) -> list[web.Route]:
        """What to add to the application."""
        operations = [web.post(f"/admin/{name}", self._guarded(self._operation(name))) for name in OPERATIONS]
        return [
            *operations,
            web.get("/admin", self._guarded(self.index)),
            web.get("/admin/lora", self._guarded(self.adapters)),
            web.post("/admin/engine/{name:.+}", self._guarded(self.engine_route)),
        ]

    async def index(self, http: web.Request) -> web.Response:
        """`GET /admin`: what there is."""
        names = sorted({name for card in self._fleet.cards().values() for name, _ in card.engine_routes})
        return _json({"operations": sorted(OPERATIONS), "engine_routes": names, "workers": sorted(self._fleet.cards())})

    async def adapters(self, http: web.Request) -> web.Response:
        """`GET /admin/lora`: the adapters that each worker has loaded."""
        outcomes = await self._call(self._chosen(http), Call("GET", "/v1/models"))
        listed = [outcome._replace(reply=_adapters(outcome.reply)) if outcome.ok else outcome for outcome in outcomes]
        return self._report("lora", listed)

    async def engine_route(self, http: web.Request) -> web.Response:
        """`POST /admin/engine/{name}`: a route that workers were started with (`--engine-route`)."""
        name, body = http.match_info["name"], await http.read()
        chosen = self._chosen(http)
        paths = {worker_id: dict(card.engine_routes).get(name) for worker_id, card in chosen.items()}
        if not any(paths.values()):
            message = f"no worker was started with --engine-route {name}"
            raise ApiError(404, message, code="unknown_engine_route", param="name")
        outcomes = []
        for worker_id, path in paths.items():
            if path is None:
                outcomes.append(Outcome(worker_id, ok=False, error=f"it was not started with --engine-route {name}"))
            else:
                outcomes += await self._call({worker_id: chosen[worker_id]}, _call(http, path, body))
        return self._report(f"engine/{name}", outcomes)

    def _operation(self, name: str) -> Handler:
        async def handle(http: web.Request) -> web.Response:
            operation, body, chosen = OPERATIONS[name], await http.read(), self._chosen(http)
            fields = json_object(body) if body else {}
            fit = {i: card for i, card in chosen.items() if card.records_experts or not operation.needs_recorder}
            async with self._held(operation.holds or operation.during, fit) as done:
                outcomes = await self._call(fit, _call(http, operation.path, body))
                done(set() if operation.during else {outcome.worker_id for outcome in outcomes if outcome.ok})
            for outcome in outcomes:
                if outcome.ok:
                    await self._done(name, operation, outcome.worker_id, fields)
            unfit = [Outcome(worker_id, ok=False, error=NO_RECORDER) for worker_id in chosen if worker_id not in fit]
            return self._report(name, outcomes + unfit)

        return handle

    @asynccontextmanager
    async def _held(self, reason: str, cards: Mapping[str, WorkerCard]) -> AsyncIterator[Callable[[set[str]], None]]:
        """Hold workers back; afterwards those go on that are not named to the function it gives."""
        stay: set[str] = set()
        for worker_id in cards if reason else ():
            await self._fleet.hold(worker_id, reason)
        try:
            yield stay.update
        finally:
            for worker_id in cards.keys() - stay if reason else ():
                await self._fleet.release(worker_id, reason)

    async def _done(self, name: str, operation: Operation, worker_id: str, fields: Mapping[str, Any]) -> None:
        """What follows for the router from a success."""
        if operation.frees:
            await self._fleet.release(worker_id, operation.frees)
        if operation.empties_cache:
            self._fleet.cache_emptied(worker_id)
        adapter = fields.get("lora_name")
        card = self._fleet.cards().get(worker_id)
        if name.startswith("lora/") and isinstance(adapter, str) and card is not None:
            others = set(card.adapters) - {adapter}
            self._fleet.set_adapters(worker_id, tuple(sorted(others | ({adapter} if name == "lora/load" else set()))))

    # ---- the parts of a call

    def _guarded(self, handler: Handler) -> Handler:
        async def answer(http: web.Request) -> web.Response | web.StreamResponse:
            self._check(http)
            return await handler(http)

        return answer

    def _check(self, http: web.Request) -> None:
        """Let administrators in alone.

        :raises ApiError: there are none, or this is none.
        """
        if self._token is None:
            message = "administration is off: start the router with --admin-token or WARMPATH_ADMIN_TOKEN to allow it"
            raise ApiError(403, message, "permission_error", "administration_off")
        given = http.headers.get("Authorization") or ""
        if not hmac.compare_digest(given.encode(), f"Bearer {self._token}".encode()):
            logger.warning("%s %s refused: not the administrator's token", http.method, http.path)
            headers = {"WWW-Authenticate": "Bearer"}
            message = "give the administrator's token as `Authorization: Bearer …`"
            raise ApiError(401, message, "authentication_error", "invalid_token", headers=headers)

    def _chosen(self, http: web.Request) -> dict[str, WorkerCard]:
        """The workers that are meant: all, or those of `?worker=` and `?model=`.

        :raises ApiError: one is not there, or there is none.
        """
        cards, wanted, model = self._fleet.cards(), http.query.get("worker"), http.query.get("model")
        names = [name for name in wanted.split(",") if name] if wanted is not None else list(cards)
        if unknown := [name for name in names if name not in cards]:
            there = ", ".join(sorted(cards)) or "none"
            raise ApiError(
                404, f"no worker {', '.join(unknown)}; there are: {there}", code="unknown_worker", param="worker"
            )
        chosen = {name: cards[name] for name in names if model in (None, cards[name].model)}
        if not chosen:
            raise no_worker("none is there" if model is None else f"none serves {model}")
        return chosen

    async def _call(self, cards: Mapping[str, WorkerCard], call: Call) -> list[Outcome]:
        return await self._fanout.call({worker_id: card.endpoint for worker_id, card in cards.items()}, call)

    def _report(self, name: str, outcomes: list[Outcome]) -> web.Response:
        """What came of it, worker by worker; status 502 if some did not do it."""
        for outcome in outcomes:
            self._metrics.admin_calls.labels(name.partition("/")[0], "ok" if outcome.ok else "failed").inc()
        ok = all(outcome.ok for outcome in outcomes)
        logger.info("admin %s: %d of %d workers", name, sum(outcome.ok for outcome in outcomes), len(outcomes))
        workers = [outcome._asdict() for outcome in outcomes]
        return _json({"operation": name, "ok": ok, "workers": workers}, 200 if ok else 502)


def _call(http: web.Request, path: str, body: bytes) -> Call:
    """What the engines are asked: the body as it came, and the query but for what is ours.

    :raises ApiError: the body is no JSON.
    """
    if body:
        json_object(body)
    query = urlencode({name: value for name, value in http.query.items() if name not in CHOOSING})
    return Call("POST", f"{path}?{query}" if query else path, body or b"{}")


def _adapters(models: Any) -> list[dict[str, Any]]:
    """The adapters in a reply of `/v1/models`: what has a parent."""
    listed = models.get("data") if isinstance(models, dict) else None
    return [{"name": model.get("id"), "path": model.get("root")} for model in listed or () if model.get("parent")]


def _json(content: object, status: int = 200) -> web.Response:
    return web.Response(body=msgspec.json.encode(content), status=status, content_type="application/json")
