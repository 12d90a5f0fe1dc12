"""A card as a file: replaced whole or not at all, alive by its time of modification."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import TYPE_CHECKING
from urllib.parse import quote

from events.membership import card_codec
from events.membership.card_codec import UnreadableCard

if TYPE_CHECKING:
    from pathlib import Path

    from events.membership import WorkerCard

SUFFIX = ".json"
TEMPORARY = ".tmp"


def file_name(worker_id: str) -> str:
    """The name of a worker's card, without anything that means something to a file system.

    >>> file_name("10.0.0.1:30000/a")
    '10.0.0.1%3A30000%2Fa.json'
    """
    return quote(worker_id, safe="") + SUFFIX


def write(path: Path, card: WorkerCard) -> int:
    """Put a card in its place at once (a reader sees the old one or the new one); the file's inode.

    :raises OSError: the folder does not take it.
    """
    temporary = path.with_name(f"{path.name}.{os.getpid()}{TEMPORARY}")
    try:
        temporary.write_bytes(card_codec.encode(card))
        inode = temporary.stat().st_ino
        temporary.replace(path)
    except OSError:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    return inode


def read(path: Path) -> WorkerCard:
    """The card in a file.

    :raises UnreadableCard: it is no JSON, of an unknown version, lacks a field, or is not the card of this file's name.
    :raises OSError: the file cannot be read.
    """
    card = card_codec.decode(path.read_bytes())
    if file_name(card.worker_id) != path.name:
        raise UnreadableCard(f"it is the card of {card.worker_id!r}")
    return card
