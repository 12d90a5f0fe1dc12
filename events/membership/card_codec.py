"""A card in bytes, as registries keep it: JSON with a version."""

from __future__ import annotations

from typing import Any

import msgspec

from events.membership import WorkerCard

VERSION = 1


class UnreadableCard(Exception):
    """The bytes hold no card that we understand."""


class _Envelope(msgspec.Struct, frozen=True):
    version: int
    card: msgspec.Raw = msgspec.Raw(b"null")


def encode(card: WorkerCard) -> bytes:
    """A card's bytes."""
    return msgspec.json.encode({"version": VERSION, "card": card})


def decode(data: bytes) -> WorkerCard:
    """The card in some bytes; fields that a newer version added are ignored.

    :raises UnreadableCard: it is no JSON, of an unknown version, or lacks a field.
    """
    envelope = _decode(data, _Envelope)
    if envelope.version != VERSION:
        raise UnreadableCard(f"card version {envelope.version} is unknown, want {VERSION}")
    card: WorkerCard = _decode(envelope.card, WorkerCard)
    return card


def _decode(data: bytes | msgspec.Raw, kind: Any) -> Any:
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UnreadableCard(str(error)) from error
