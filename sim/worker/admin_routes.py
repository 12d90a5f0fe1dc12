"""The routes beside generation: health, what the worker is, its load, abort, flush, metrics, faults."""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
from aiohttp import web

from events.blocks import DEFAULT_BLOCK_SIZE
from sim.engine import Request
from sim.worker.faults import FaultOrder
from sim.worker.generation import typed
from sim.worker.publisher import Disturbance
from sim.worker.rendezvous import queues_of
from sim.worker.reply import json_reply, native_error, read_body

if TYPE_CHECKING:
    from sim.worker.rank import Rank
    from sim.worker.server import Ports
    from sim.worker.service import Service

FLUSHED = (
    "Cache flushed.\nPlease check backend logs for more details. "
    "(When there are running or waiting requests, the operation will not be performed.)\n"
)
PROMETHEUS = "text/plain; version=0.0.4; charset=utf-8"


class AdminRoutes:
    """Everything that an adapter or an operator asks."""

    def __init__(self, service: Service, ports: Ports) -> None:
        self._service = service
        self._config = service.config
        self._ports = ports
        self._started = time.time()
        self._probes = 0

    def routes(self) -> list[web.RouteDef]:
        """What to add to the application."""
        return [
            *(web.get(path, self.server_info) for path in ("/server_info", "/get_server_info")),
            *(web.get(path, self.model_info) for path in ("/model_info", "/get_model_info")),
            *(web.get(path, self.ready) for path in ("/ready", "/ping")),
            *(web.get(path, self.health) for path in ("/health", "/health_generate")),
            web.get("/v1/models", self.models),
            web.get("/v1/loads", self.loads),
            web.get("/metrics", self.metrics),
            web.post("/abort_request", self.abort),
            *(web.post(path, self.tokenize) for path in ("/v1/tokenize", "/tokenize")),
            *(method("/flush_cache", self.flush) for method in (web.get, web.post)),
            web.get("/_cache", self.cache),
            web.get("/_fault", self.faults),
            web.post("/_fault", self.order_fault),
            web.delete("/_fault", self.clear_faults),
        ]

    async def ready(self, _: web.Request) -> web.Response:
        """Alive, and nothing more."""
        return web.Response()

    async def health(self, _: web.Request) -> web.Response:
        """Ready to generate: a token of a prompt of one."""
        self._probes += 1
        request = Request(f"HEALTH_CHECK_{self._probes}", np.zeros(1, np.uint32), max_new_tokens=1)
        await self._service.probe(request)
        return web.Response()

    async def models(self, _: web.Request) -> web.Response:
        """OpenAI's list of models."""
        name = self._config.model_name
        model = {
            "id": name,
            "object": "model",
            "created": int(self._started),
            "owned_by": "sglang",
            "root": name,
            "parent": None,
            "max_model_len": self._config.longest_context,
        }
        adapters = [
            model | {"id": adapter, "root": path, "parent": name, "max_model_len": None}
            for adapter, path in self._service.adapters.items()
        ]
        return json_reply({"object": "list", "data": [model, *adapters]})

    async def model_info(self, _: web.Request) -> web.Response:
        """What is served."""
        model = self._config.model_config
        return json_reply(
            {
                "model_path": str(self._config.model_path),
                "tokenizer_path": str(self._config.model_path),
                "is_generation": not self._config.is_embedding,
                "preferred_sampling_params": None,
                "weight_version": "default",
                "has_image_understanding": False,
                "has_audio_understanding": False,
                "model_type": model.get("model_type"),
                "architectures": model.get("architectures"),
            }
        )

    async def server_info(self, _: web.Request) -> web.Response:
        """The options, and what became of them: the keys that clients read, of several hundred."""
        engine = self._service.ranks[0].engine.config
        options = self._options()
        info = options | {
            "status": "ready",
            "max_total_num_tokens": self._service.ranks[0].load().capacity_tokens,
            "max_req_input_len": engine.max_input_tokens,
            "startup_time": {},
            "internal_states": [options | self._internal_state(rank) for rank in self._service.ranks],
            "version": self._config.version,
        }
        if self._config.dialect.describes_events:
            info["kv_events"] = self._kv_events()
        return json_reply(info)

    def _options(self) -> dict[str, Any]:
        config, ports = self._config, self._ports
        events = {"publisher": "zmq", "endpoint": f"tcp://*:{ports.kv_events}", "topic": config.topic}
        if ports.replay:
            events["replay_endpoint"] = f"tcp://*:{ports.replay}"
        return {
            "model_path": str(config.model_path),
            "tokenizer_path": str(config.model_path),
            "served_model_name": config.model_name,
            "skip_tokenizer_init": config.skip_tokenizer_init,
            "load_format": "dummy",
            "context_length": config.context_length,
            "is_embedding": config.is_embedding,
            "host": config.host,
            "port": ports.http,
            "tp_size": 1,
            "pp_size": 1,
            "dp_size": config.dp_size,
            "nnodes": 1,
            "node_rank": 0,
            "enable_dp_attention": False,
            "load_balance_method": "round_robin",
            "page_size": config.page_size,
            "max_total_tokens": config.max_total_tokens,
            "max_running_requests": config.max_running_requests,
            "chunked_prefill_size": config.chunked_prefill_size,
            "max_prefill_tokens": self._service.ranks[0].engine.config.max_prefill_tokens,
            "schedule_policy": "fcfs",
            "radix_eviction_policy": "lru",
            "disable_radix_cache": not config.caches_prefixes,
            "enable_hierarchical_cache": config.enable_hierarchical_cache,
            "hicache_ratio": config.hicache_ratio,
            "hicache_write_policy": "write_through",
            "enable_metrics": True,
            "enable_cache_report": config.enable_cache_report,
            "incremental_streaming_output": config.incremental_streaming_output,
            "stream_interval": 1,
            "decode_log_interval": config.decode_log_interval,
            "kv_events_config": json.dumps(events) if ports.kv_events else None,
            "load_publish_endpoint": f"tcp://*:{ports.load}" if ports.load else None,
            "disaggregation_mode": config.disaggregation_mode,
            "disaggregation_bootstrap_port": ports.bootstrap or 8998,
            "disaggregation_transfer_backend": "mooncake",
            "disaggregation_decode_enable_radix_cache": config.disaggregation_decode_enable_radix_cache,
            "speculative_algorithm": None,
            "expert_distribution_recorder_mode": config.expert_distribution_recorder_mode,
            "enable_lora": config.enable_lora or bool(config.lora_paths),
            "lora_paths": [{"lora_name": name, "lora_path": path} for name, path in self._service.adapters.items()],
            "reasoning_parser": config.reasoning_parser,
            "tool_call_parser": config.tool_call_parser,
            "weight_version": "default",
        }

    def _kv_events(self) -> dict[str, Any] | None:
        ports, config = self._ports, self._config
        if not ports.kv_events:
            return None
        described: dict[str, Any] = {
            "publisher": "zmq",
            "endpoint_host": "*",
            "endpoint_port_base": ports.kv_events,
            "topic": config.topic,
            "block_size": config.page_size,
            "dp_size": config.dp_size,
        }
        if ports.load:
            described |= {"load_endpoint_port_base": ports.load, "load_topic": "load"}
        if ports.replay:
            described |= {"replay_endpoint_port_base": ports.replay}
        return described

    def _internal_state(self, rank: Rank) -> dict[str, Any]:
        load, statistics = rank.load(), rank.engine.statistics()
        return {
            "world_size": 1,
            "effective_max_running_requests_per_dp": load.max_running_requests,
            "last_gen_throughput": statistics.generated_tokens_per_second,
            "memory_usage": {"weight": 0.0, "kvcache": 0.0, "token_capacity": load.capacity_tokens},
        }

    async def loads(self, http: web.Request) -> web.Response:
        """Each rank's load."""
        wanted = http.query.get("dp_rank")
        ranks = [rank for rank in self._service.ranks if wanted in (None, str(rank.number))]
        if not ranks:
            return native_error(f"dp_rank={wanted} out of range [0, {len(self._service.ranks)})")
        loads = [self._load(rank) for rank in ranks]
        if http.query.get("format") == "prometheus":
            return web.Response(body=_prometheus(loads).encode(), headers={"Content-Type": PROMETHEUS})
        return json_reply(
            {
                "timestamp": datetime.now(UTC).isoformat(),
                "version": self._config.version,
                "accelerator": None,
                "num_accelerators": 1,
                "loads": loads,
            }
        )

    def _load(self, rank: Rank) -> dict[str, Any]:
        load, statistics = rank.load(), rank.engine.statistics()
        queues = dict.fromkeys(("grammar", "paused", "retracted", "prealloc_ready"), 0)
        return {
            "timestamp": time.time(),
            "dp_rank": rank.number,
            "num_running_reqs": load.running_requests,
            "num_waiting_reqs": load.waiting_requests,
            "num_waiting_uncached_tokens": load.waiting_uncached_tokens,
            "num_used_tokens": load.used_tokens,
            "num_total_tokens": load.total_tokens,
            "num_active_tokens": load.used_tokens,
            "num_prealloc_ready_tokens": 0,
            "max_total_num_tokens": load.capacity_tokens,
            "max_running_requests": load.max_running_requests,
            "token_usage": round(load.used_tokens / load.capacity_tokens, 4),
            "gen_throughput": round(statistics.generated_tokens_per_second, 2) if load.running_requests else 0.0,
            "cache_hit_rate": round(statistics.cache_hit_rate, 4),
            "utilization": round(load.running_requests / load.max_running_requests, 4),
            "total_prefill_uncached_tokens": load.total_prefill_uncached_tokens,
            "total_prefill_busy_us": int(load.total_prefill_busy_seconds * 1e6),
            "decode_moments": list(statistics.decode_moments),
            "memory": {"weight_gb": 0.0, "kv_cache_gb": 0.0, "graph_gb": 0.0, "token_capacity": load.capacity_tokens},
            "disaggregation": {"mode": self._config.disaggregation_mode} | queues_of(rank),
            "queues": {"waiting": load.waiting_requests} | queues,
        }

    async def metrics(self, _: web.Request) -> web.Response:
        """Prometheus."""
        return web.Response(body=self._service.metrics.render(), headers={"Content-Type": PROMETHEUS})

    async def tokenize(self, http: web.Request) -> web.Response:
        """A text's tokens."""
        model = self._service.text_model
        if model is None:
            return native_error("no tokenizer was loaded (skip_tokenizer_init)")
        try:
            body = await read_body(http)
            special = typed(body, "add_special_tokens", bool, default=True)
            tokens = model.encode(typed(body, "prompt", str), special=special).tolist()
        except ValueError as error:
            return native_error(str(error))
        return json_reply({"tokens": tokens, "count": len(tokens), "max_model_len": self._config.longest_context})

    async def abort(self, http: web.Request) -> web.Response:
        """End one request, or all."""
        try:
            body = await read_body(http)
            rid, everything = typed(body, "rid", str, ""), typed(body, "abort_all", bool, default=False)
        except ValueError as error:
            return native_error(str(error))
        for rank in self._service.ranks:
            if everything:
                rank.abort_all()
            else:
                rank.abort(rid)
        return web.Response()

    async def flush(self, http: web.Request) -> web.Response:
        """Empty the cache of every rank, unless one is busy."""
        try:
            timeout = float(http.query.get("timeout", 0))
        except ValueError:
            return native_error(f"timeout must be seconds, not {http.query['timeout']!r}")
        flushed = [await rank.flush(timeout) for rank in self._service.ranks]
        if not all(flushed):
            return web.Response(text="Flush cache failed: requests are running or waiting.\n", status=400)
        return web.Response(text=FLUSHED)

    async def cache(self, http: web.Request) -> web.Response:
        """What each rank's cache holds now, as routers name it: for tests of those. `block_size`: the routing block, tokens."""
        block_size = int(http.query.get("block_size", DEFAULT_BLOCK_SIZE))
        return json_reply({"ranks": [rank.held(block_size) for rank in self._service.ranks]})

    async def faults(self, _: web.Request) -> web.Response:
        """What is armed."""
        return json_reply(self._service.faults.describe())

    async def order_fault(self, http: web.Request) -> web.Response:
        """Arm a fault."""
        try:
            order = msgspec.json.decode(await http.read(), type=FaultOrder)
        except msgspec.DecodeError as error:
            return native_error(str(error))
        if order.disturbance is not None:
            for rank in self._service.ranks:
                if rank.events is not None:
                    rank.events.disturb(Disturbance(order.disturbance), order.count)
        else:
            self._service.faults.order(order)
        return await self.faults(http)

    async def clear_faults(self, http: web.Request) -> web.Response:
        """Disarm all."""
        self._service.faults.clear()
        for rank in self._service.ranks:
            if rank.events is not None:
                rank.events.leave_alone()
        return await self.faults(http)


def _prometheus(loads: list[dict[str, Any]]) -> str:
    """The numbers of load reports as gauges."""
    lines = []
    for name, value in loads[0].items():
        if isinstance(value, int | float) and name != "dp_rank":
            lines.append(f"# TYPE sglang_{name} gauge")
            lines += [f'sglang_{name}{{dp_rank="{load["dp_rank"]}"}} {load[name]}' for load in loads]
    return "\n".join(lines) + "\n"
