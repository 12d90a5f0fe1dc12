"""What a server says of itself (`/server_info`), as a worker card and the places of its streams."""

from __future__ import annotations

import re
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit

import msgspec

from events.membership.server_info import ServerInfo

if TYPE_CHECKING:
    from collections.abc import Mapping

    from events.membership import WorkerCard

EVENTS_FLAG = """--kv-events-config '{"publisher":"zmq","endpoint":"tcp://*:5557","replay_endpoint":"tcp://*:5657"}'"""
_TRUSTED_SINCE = (0, 5, 6)
_RANKED_SINCE = (0, 5, 15)
_ANY_HOST = {"*", "0.0.0.0", "::", "[::]", ""}  # noqa: S104 - hosts to recognise, nothing is bound to them
_TCP = re.compile(r"tcp://(?P<host>.*):(?P<port>\d+)")


class CardError(ValueError):
    """A server's description cannot be used; the text names the field and the reason."""


class Stream(NamedTuple):
    """Sockets of one kind: rank r's is at `port` + r."""

    host: str
    port: int
    topic: str = ""

    def endpoint(self, rank: int) -> str:
        """ZMQ endpoint of a rank.

        >>> Stream("10.0.0.1", 5557).endpoint(1)
        'tcp://10.0.0.1:5558'
        """
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"tcp://{host}:{self.port + rank}"


class Chosen(NamedTuple):
    """What of a card the server does not decide."""

    url: str
    worker_id: str
    block_size: int
    model: str | None = None
    """Instead of the name that the server gives."""
    stated: Mapping[str, object] = MappingProxyType({})
    """Further fields of the card, as they were given on the command line."""
    advertised: str | None = None
    """Base URL for routers, where it is not `url`."""


class Description(NamedTuple):
    """All that the adapter needs to know of a server."""

    card: WorkerCard
    events: Stream | None
    replay: Stream | None
    load: Stream | None
    """None: `/v1/loads` must be asked."""
    no_events: str = ""
    """Why `events` is None."""
    lora: bool = False
    """Adapters can be loaded and unloaded while it runs."""


class EventSource(msgspec.Struct):
    """`kv_events`, from 0.5.13 on."""

    endpoint_port_base: int
    endpoint_host: str = "*"
    topic: str = ""
    block_size: int | None = None
    """Tokens of a page as events count them: the page size times the context-parallel ranks that share it."""
    replay_endpoint_port_base: int | None = None
    load_endpoint_port_base: int | None = None


class EventsConfig(msgspec.Struct):
    """`kv_events_config`, the flag's own JSON, in every version."""

    publisher: str | None = None
    endpoint: str = "tcp://*:5557"
    replay_endpoint: str | None = None
    topic: str = ""


class PublishingServer(ServerInfo):
    """A server's description, with what is needed to follow its events."""

    enable_dp_attention: bool = False
    enable_lora: bool | None = None
    nnodes: int = 1
    kv_events: EventSource | None = None
    kv_events_config: str | None = None

    def release(self) -> tuple[int, ...]:
        """The version's first three numbers; an unknown one counts as later than all.

        >>> PublishingServer(1, version="0.5.3.post2").release()
        (0, 5, 3)
        """
        numbers = re.match(r"(\d+)\.(\d+)\.(\d+)", self.version)
        return tuple(map(int, numbers.groups())) if numbers else (999,)

    def events(self) -> EventSource | None:
        """Where events come from; None: from nowhere that a network reaches."""
        return self.kv_events or _from_config(self.kv_events_config)

    def objection(self) -> str:
        """Why its events cannot be used, or nothing."""
        if self.events() is None:
            return f"it publishes none over TCP; start it with {EVENTS_FLAG}"
        if self.release() < _TRUSTED_SINCE:
            return f"SGLang {self.version} names pages by their content alone and breaks chains; 0.5.6 is the first to serve"
        if self.release() < _RANKED_SINCE and self.dp_size > 1 and not self.enable_dp_attention:
            return (
                f"the {self.dp_size} ranks of SGLang {self.version} publish on one port; 0.5.15 is the first to serve"
            )
        if self.nnodes > 1 and self.dp_size > 1:
            return f"its {self.dp_size} ranks publish on {self.nnodes} machines, and it names only one"
        return ""


def _from_config(config: str | None) -> EventSource | None:
    if not config:
        return None
    stated = msgspec.json.decode(config, type=EventsConfig)
    events, replay = _TCP.fullmatch(stated.endpoint), _TCP.fullmatch(stated.replay_endpoint or "")
    if stated.publisher in (None, "null") or events is None:
        return None
    return EventSource(
        int(events["port"]),
        events["host"],
        stated.topic,
        replay_endpoint_port_base=int(replay["port"]) if replay else None,
    )


def _template(named: str | None) -> dict[str, object]:
    """A server's own chat template: its source, if it is a file that this machine has, else its name.

    >>> _template("chatml")
    {'named_template': 'chatml'}
    """
    path = Path(named or "")
    if path.suffix != ".jinja" or not path.is_file():
        return {"named_template": named}
    return {"named_template": None, "chat_template": path.read_text(encoding="utf-8")}


def describe(info: dict[str, Any], chosen: Chosen, epoch: int) -> Description:
    """A server's card and streams. O(1).

    :raises CardError: a field that routers need is missing, or one is of the wrong kind.
    """
    try:
        server = msgspec.convert(info, PublishingServer)
        return _described(server, chosen, epoch)
    except ValueError as error:  # msgspec.ValidationError is one, and names the field
        raise CardError(f"{chosen.url}/server_info: {error}") from error


def _described(server: PublishingServer, chosen: Chosen, epoch: int) -> Description:
    source, objection = server.events(), server.objection()
    card = server.card(
        chosen.advertised or chosen.url,
        epoch,
        worker_id=chosen.worker_id,
        model=chosen.model,
        block_size=chosen.block_size,
        page_size=source.block_size if source else None,
        kv_events=not objection,
    )
    card = msgspec.structs.replace(card, **_template(card.named_template) | dict(chosen.stated))
    lora = bool(server.enable_lora or card.adapters)
    if source is None:
        return Description(card, None, None, None, objection, lora)
    host = urlsplit(chosen.url).hostname if source.endpoint_host in _ANY_HOST else source.endpoint_host.strip("[]")

    def stream(port: int | None, topic: str = "") -> Stream | None:
        return Stream(host or "", port, topic) if port else None

    load = stream(source.load_endpoint_port_base)
    if objection:
        return Description(card, None, None, load, objection, lora)
    events, replay = stream(source.endpoint_port_base, source.topic), stream(source.replay_endpoint_port_base)
    return Description(card, events, replay, load, lora=lora)
