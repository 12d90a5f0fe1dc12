"""What operators ask of a worker: adapters, profiles, the expert recorder, weights, pauses, memory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from aiohttp import web

from sim.worker.generation import BadRequest, typed
from sim.worker.reply import json_reply, native_error, read_body

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from sim.worker.service import Service

WEIGHTS = ("disk", "tensor", "distributed", "ipc")


class ControlRoutes:
    """SGLang's routes for administrators, as far as a model of an engine can follow."""

    def __init__(self, service: Service, die: Callable[[], None]) -> None:
        self._service = service
        self._die = die
        self._profiling = False

    def routes(self) -> list[web.RouteDef]:
        """What to add to the application."""
        handlers: dict[str, Callable[[dict[str, Any]], Awaitable[web.Response]]] = {
            "/load_lora_adapter": self.load_adapter,
            "/unload_lora_adapter": self.unload_adapter,
            "/start_profile": self.start_profile,
            "/stop_profile": self.stop_profile,
            "/start_expert_distribution_record": self.record_experts,
            "/stop_expert_distribution_record": self.record_experts,
            "/dump_expert_distribution_record": self.record_experts,
            "/pause_generation": self.pause,
            "/continue_generation": self.go_on,
            "/release_memory_occupation": self.release_memory,
            "/resume_memory_occupation": self.go_on,
            "/freeze_gc": self.freeze_gc,
        }
        handlers |= {f"/update_weights_from_{source}": self.update_weights for source in WEIGHTS}
        return [web.post(path, _guarded(handler)) for path, handler in handlers.items()]

    async def load_adapter(self, body: dict[str, Any]) -> web.Response:
        """Another LoRA adapter; nothing is read from its path."""
        name, path = typed(body, "lora_name", str), typed(body, "lora_path", str)
        if not name or not path:
            raise BadRequest("lora_name and lora_path are needed")
        if name in self._service.adapters:
            return self._adapters(f"{name} is already loaded.")
        self._service.adapters[name] = path
        return self._adapters()

    async def unload_adapter(self, body: dict[str, Any]) -> web.Response:
        """One adapter less."""
        name = typed(body, "lora_name", str)
        if self._service.adapters.pop(name, None) is None:
            return self._adapters(f"{name} is not loaded.")
        return self._adapters()

    def _adapters(self, error: str | None = None) -> web.Response:
        reply = {"success": error is None, "error_message": error or "", "loaded_adapters": self._service.adapters}
        return json_reply(reply, 400 if error else 200)

    async def start_profile(self, body: dict[str, Any]) -> web.Response:
        """Nothing is profiled, but a second start is refused as SGLang does."""
        if self._profiling:
            return web.Response(text="Profiling is already in progress.\n", status=400)
        self._profiling = True
        return web.Response(text="Start profiling.\n")

    async def stop_profile(self, body: dict[str, Any]) -> web.Response:
        """The end of it."""
        self._profiling = False
        return web.Response(text="Stop profiling. This will take some time.\n")

    async def record_experts(self, body: dict[str, Any]) -> web.Response:
        """As in 0.5.23: without a recorder mode, the question kills the worker."""
        if self._service.config.expert_distribution_recorder_mode is None:
            self._die()
        return web.Response(text="Expert distribution record.\n")

    async def update_weights(self, body: dict[str, Any]) -> web.Response:
        """Other weights, so an empty cache."""
        if not all([await rank.flush() for rank in self._service.ranks]):
            return json_reply({"success": False, "message": "requests are running", "num_paused_requests": 0}, 400)
        return json_reply({"success": True, "message": "Succeeded to update model weights.", "num_paused_requests": 0})

    async def pause(self, body: dict[str, Any]) -> web.Response:
        """Stop stepping; `mode` abort, SGLang's default, ends what runs."""
        for rank in self._service.ranks:
            if typed(body, "mode", str, "abort") == "abort":
                rank.abort_all()
            rank.pause()
        return json_reply({"message": "Generation paused successfully.", "status": "ok"})

    async def release_memory(self, body: dict[str, Any]) -> web.Response:
        """Give the KV pool back; only an idle worker can."""
        if not all([await rank.flush() for rank in self._service.ranks]):
            return native_error("release_memory_occupation needs an idle server")
        for rank in self._service.ranks:
            rank.pause()
        return web.Response()

    async def go_on(self, body: dict[str, Any]) -> web.Response:
        """Step again."""
        for rank in self._service.ranks:
            rank.go_on()
        return json_reply({"message": "Generation continued successfully.", "status": "ok"})

    async def freeze_gc(self, body: dict[str, Any]) -> web.Response:
        """A route that only `--engine-route` opens."""
        return web.Response(text="Garbage collection frozen.\n")


def _guarded(
    handler: Callable[[dict[str, Any]], Awaitable[web.Response]],
) -> Callable[[web.Request], Awaitable[web.Response]]:
    async def answer(http: web.Request) -> web.Response:
        try:
            return await handler(await read_body(http) if await http.read() else {})
        except ValueError as error:
            return native_error(str(error))

    return answer
