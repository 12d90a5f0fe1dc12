"""What an SGLang server says of itself at `/server_info`, as far as a worker card needs it (versions 0.5.3 to 0.5.23)."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

import msgspec

from events.blocks import DEFAULT_BLOCK_SIZE
from events.membership import Role, WorkerCard


class SchedulerState(msgspec.Struct):
    """An item of `internal_states`, one a rank."""

    effective_max_running_requests_per_dp: int | None = None


class ServerInfo(msgspec.Struct):
    """The fields of `/server_info` that a card is made of. Those with a default are missing in some versions."""

    max_total_num_tokens: int
    page_size: int | None = None
    max_req_input_len: int | None = None
    context_length: int | None = None
    served_model_name: str | None = None
    model_path: str | None = None
    dp_size: int = 1
    max_running_requests: int | None = None
    enable_hierarchical_cache: bool = False
    disaggregation_mode: str | None = None
    disaggregation_bootstrap_port: int | None = None
    is_embedding: bool | None = None
    tool_call_parser: str | None = None
    reasoning_parser: str | None = None
    chat_template: str | None = None
    lora_paths: Any = None
    expert_distribution_recorder_mode: str | None = None
    disaggregation_decode_enable_radix_cache: bool = False
    disable_radix_cache: bool = False
    version: str = ""
    internal_states: list[SchedulerState] = []

    def role(self) -> Role:
        """The part of a request that it does; `null` stands for the whole.

        :raises ValueError: an unknown part.
        """
        mode = self.disaggregation_mode
        return Role.AGGREGATED if mode in (None, "null") else Role(mode)

    def adapters(self) -> tuple[str, ...]:
        """Names of the LoRA adapters that it was started with: it lists them as texts, as objects, or as a map by name."""
        return tuple(sorted({name for entry in self.lora_paths or () if (name := _adapter_name(entry))}))

    def caches_prefixes(self) -> bool:
        """Whether prompts stay in its cache after their request: a decode worker's do only when it was asked for."""
        wanted = self.role() is not Role.DECODE or self.disaggregation_decode_enable_radix_cache
        return wanted and not self.disable_radix_cache

    def card(
        self,
        url: str,
        epoch: int,
        *,
        worker_id: str | None = None,
        model: str | None = None,
        block_size: int = DEFAULT_BLOCK_SIZE,
        page_size: int | None = None,
        kv_events: bool = False,
    ) -> WorkerCard:
        """The card of this server at `url`. `model` and `page_size` go before what the server says.

        :raises ValueError: an unknown role.
        """
        role, states = self.role(), self.internal_states
        prefill = role is Role.PREFILL
        return WorkerCard(
            worker_id=worker_id or default_worker_id(url),
            epoch=epoch,
            model=model or self.served_model_name or self.model_path or "default",
            endpoint=url,
            ranks=self.dp_size,
            block_size=block_size,
            page_size=page_size or self.page_size or 1,
            capacity_tokens=self.max_total_num_tokens,
            context_tokens=self.max_req_input_len or self.context_length or self.max_total_num_tokens,
            max_running_requests=(states and states[0].effective_max_running_requests_per_dp)
            or self.max_running_requests,
            kv_events=kv_events,
            tiers=("device", "host") if self.enable_hierarchical_cache else ("device",),
            prefix_cache=self.caches_prefixes(),
            role=role,
            bootstrap_host=urlsplit(url).hostname if prefill else None,
            bootstrap_port=self.disaggregation_bootstrap_port if prefill else None,
            engine_version=self.version,
            embedding=bool(self.is_embedding),
            tool_call_parser=self.tool_call_parser,
            reasoning_parser=self.reasoning_parser,
            named_template=self.chat_template,
            adapters=self.adapters(),
            records_experts=self.expert_distribution_recorder_mode is not None,
        )


def _adapter_name(entry: Any) -> str | None:
    """
    >>> [_adapter_name(entry) for entry in ("sql=/models/sql", "/models/sql", {"lora_name": "sql", "lora_path": "/x"})]
    ['sql', '/models/sql', 'sql']
    """
    if isinstance(entry, dict):
        name = entry.get("lora_name") or entry.get("name")
        return name if isinstance(name, str) else None
    return entry.partition("=")[0] if isinstance(entry, str) else None


def default_worker_id(url: str) -> str:
    """Host and port of a server.

    >>> default_worker_id("http://10.0.0.1:30000")
    '10.0.0.1:30000'
    """
    return urlsplit(url).netloc
