"""SGLang's own spelling of options that the fake worker has under another name, and those that mean nothing without a GPU."""

from __future__ import annotations

import argparse
import logging
from typing import Any
from urllib.parse import urlsplit

import msgspec

logger = logging.getLogger(__name__)

WITHOUT_EFFECT = (
    "--tp-size",
    "--pp-size",
    "--ep-size",
    "--mem-fraction-static",
    "--device",
    "--dtype",
    "--kv-cache-dtype",
    "--load-format",
    "--attention-backend",
    "--sampling-backend",
    "--chat-template",
    "--cuda-graph-max-bs",
    "--max-loras-per-batch",
    "--max-lora-rank",
    "--disaggregation-transfer-backend",
    "--disaggregation-ib-device",
    "--hicache-size",
    "--hicache-io-backend",
    "--hicache-mem-layout",
)
"""They take a value."""
SWITCHES_WITHOUT_EFFECT = (
    "--trust-remote-code",
    "--enable-metrics",
    "--enable-dp-attention",
    "--skip-server-warmup",
)


class _Events(msgspec.Struct):
    publisher: str | None = None
    endpoint: str = "tcp://*:5557"
    replay_endpoint: str | None = None
    topic: str = ""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add them; `translate` takes them out again."""
    add = parser.add_argument
    add("--kv-events-config", metavar="JSON", help="SGLang's way to say where events and replay are, and their topic")
    add(
        "--load-publish-endpoint", metavar="ENDPOINT", help="SGLang's way to say where load reports are; auto: anywhere"
    )
    for name in WITHOUT_EFFECT:
        add(name, *(("--tp", "--tensor-parallel-size") if name == "--tp-size" else ()), help=argparse.SUPPRESS)
    for name in SWITCHES_WITHOUT_EFFECT:
        add(name, action="store_true", help=argparse.SUPPRESS)


def translate(values: dict[str, Any]) -> dict[str, Any]:
    """Parsed options without those of `add_options`, what they mean put in the others' terms.

    :raises ValueError: one cannot be read.
    """
    left = dict(values)
    idle = [name for name in (*WITHOUT_EFFECT, *SWITCHES_WITHOUT_EFFECT) if left.pop(name[2:].replace("-", "_"))]
    if idle:
        logger.warning("this is a model of an engine; without effect here: %s", ", ".join(idle))
    events, load = left.pop("kv_events_config"), left.pop("load_publish_endpoint")
    if events is not None:
        left |= _ports(events)
        left["load_port"] = left["load_port"] or 0  # nothing is published that was not asked for
    if load is not None:
        left["load_port"] = None if load == "auto" else _port("load_publish_endpoint", load)
    return left


def _ports(config: str) -> dict[str, Any]:
    try:
        stated = msgspec.json.decode(config, type=_Events)
    except msgspec.DecodeError as error:
        raise ValueError(f"kv_events_config: {error}") from error
    if stated.publisher in (None, "null"):
        return {"kv_events_port": 0, "replay_port": 0}
    replay = _port("replay_endpoint", stated.replay_endpoint) if stated.replay_endpoint else 0
    return {"kv_events_port": _port("endpoint", stated.endpoint), "replay_port": replay, "topic": stated.topic}


def _port(name: str, endpoint: str) -> int:
    """The port of a ZMQ endpoint, whatever its host.

    >>> _port("endpoint", "tcp://*:5557")
    5557
    """
    try:
        port = urlsplit(endpoint.replace("*", "any")).port
    except ValueError:
        port = None
    if not endpoint.startswith("tcp://") or not port:
        raise ValueError(f"{name} must be tcp://HOST:PORT, not {endpoint!r}")
    return port
