"""As much of a Kubernetes API server as leases need: versions, conflicts, preconditions; it can be told to fail."""

from __future__ import annotations

import json
from typing import Any

from aiohttp import web
from kubernetes_asyncio import client

VERBS = {"GET": "list", "POST": "create", "PUT": "update", "DELETE": "delete"}
PATH = "/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases"


class FakeKubernetes:
    """An API server as an async context manager; `leases` is all it holds, by namespace and name."""

    def __init__(self) -> None:
        self.leases: dict[tuple[str, str], dict[str, Any]] = {}
        self.failing = False
        self.verbs: list[str] = []
        """What was asked, by the names that roles allow it with."""
        self._version = 0
        self._runner: web.AppRunner | None = None
        self.url = ""

    async def __aenter__(self) -> FakeKubernetes:
        application = web.Application(middlewares=[self._troubled])
        application.add_routes(
            [
                web.get(PATH, self.list),
                web.post(PATH, self.create),
                web.get(PATH + "/{name}", self.read),
                web.put(PATH + "/{name}", self.replace),
                web.delete(PATH + "/{name}", self.delete),
            ]
        )
        self._runner = web.AppRunner(application, access_log=None)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._runner is not None
        await self._runner.cleanup()

    async def connect(self) -> client.ApiClient:
        """A client of it."""
        return client.ApiClient(client.Configuration(host=self.url))

    @web.middleware
    async def _troubled(self, request: web.Request, handler: Any) -> web.StreamResponse:
        single = "name" in request.match_info
        self.verbs.append("get" if single and request.method == "GET" else VERBS[request.method])
        if self.failing:
            return _status(503, "ServiceUnavailable")
        response: web.StreamResponse = await handler(request)
        return response

    async def list(self, request: web.Request) -> web.Response:
        key, _, value = request.query.get("labelSelector", "").partition("=")
        items = [
            lease
            for (namespace, _), lease in self.leases.items()
            if namespace == request.match_info["namespace"] and lease["metadata"]["labels"].get(key) == value
        ]
        return web.json_response(
            {"kind": "LeaseList", "apiVersion": "coordination.k8s.io/v1", "metadata": {}, "items": items}
        )

    async def create(self, request: web.Request) -> web.Response:
        lease = await request.json()
        place = request.match_info["namespace"], lease["metadata"]["name"]
        if place in self.leases:
            return _status(409, "AlreadyExists")
        return self._keep(place, lease, 201)

    async def read(self, request: web.Request) -> web.Response:
        lease = self.leases.get(_place(request))
        return web.json_response(lease) if lease is not None else _status(404, "NotFound")

    async def replace(self, request: web.Request) -> web.Response:
        lease, place = await request.json(), _place(request)
        if place not in self.leases:
            return _status(404, "NotFound")
        if lease["metadata"].get("resourceVersion") not in (None, self.leases[place]["metadata"]["resourceVersion"]):
            return _status(409, "Conflict")
        return self._keep(place, lease, 200)

    async def delete(self, request: web.Request) -> web.Response:
        place, options = _place(request), json.loads(await request.text() or "{}")
        if place not in self.leases:
            return _status(404, "NotFound")
        wanted = options.get("preconditions", {}).get("resourceVersion")
        if wanted not in (None, self.leases[place]["metadata"]["resourceVersion"]):
            return _status(409, "Conflict")
        del self.leases[place]
        return _status(200, "")

    def _keep(self, place: tuple[str, str], lease: dict[str, Any], status: int) -> web.Response:
        self._version += 1
        lease["metadata"] |= {"resourceVersion": str(self._version), "namespace": place[0]}
        self.leases[place] = lease
        return web.json_response(lease, status=status)


def _place(request: web.Request) -> tuple[str, str]:
    return request.match_info["namespace"], request.match_info["name"]


def _status(code: int, reason: str) -> web.Response:
    kind = "Success" if code < 400 else "Failure"
    return web.json_response({"kind": "Status", "status": kind, "reason": reason, "code": code}, status=code)
