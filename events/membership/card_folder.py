"""The living cards in a folder: who looks takes away what has expired."""

from __future__ import annotations

import logging
import os
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from events.membership import card_file
from events.membership.card_codec import UnreadableCard
from events.membership.card_file import SUFFIX, TEMPORARY

if TYPE_CHECKING:
    from events.membership import WorkerCard

logger = logging.getLogger(__name__)


class _Signature(NamedTuple):
    """Changes whenever a card is replaced or kept alive."""

    inode: int
    size: int
    modified_ns: int


class _Sighting(NamedTuple):
    """A file as it was when it last changed."""

    signature: _Signature
    changed_at: float  # by our monotonic clock, so that a jump of the wall clock does not make all cards expire at once
    card: WorkerCard | None  # None: unreadable


class CardFolder:
    """Looks at the cards in a folder. It waits for the disk: call it from a thread, one at a time."""

    def __init__(self, path: Path, ttl_seconds: float) -> None:
        self.expired = 0
        """Files that we took away."""
        self.unreadable = 0
        """Times that a card was read and not understood."""
        self._path = path
        self._ttl_seconds = ttl_seconds
        self._sightings: dict[str, _Sighting] = {}  # by file name
        self._complained: set[str] = set()  # files that the log has mentioned

    def scan(self) -> dict[str, WorkerCard]:
        """All living cards by worker id; the folder is made if it is missing. One stat per card; only what changed is read.

        :raises OSError: the folder cannot be read or made.
        """
        self._path.mkdir(parents=True, exist_ok=True)
        before, self._sightings = self._sightings, {}
        for path, status in self._files():
            self._see(path, status, before.get(path.name))
        return {sighting.card.worker_id: sighting.card for sighting in self._sightings.values() if sighting.card}

    def _files(self) -> list[tuple[Path, os.stat_result]]:
        files = []
        with os.scandir(self._path) as entries:
            for entry in entries:
                with suppress(FileNotFoundError):  # gone between listing and looking
                    if entry.name.endswith((SUFFIX, TEMPORARY)) and entry.is_file():
                        files.append((Path(entry.path), entry.stat()))
        return files

    def _see(self, path: Path, status: os.stat_result, before: _Sighting | None) -> None:
        with suppress(FileNotFoundError):  # gone meanwhile
            sighting = self._sight(path, status, before)
            if time.monotonic() - sighting.changed_at > self._ttl_seconds:
                self._reap(path)
            else:
                self._sightings[path.name] = sighting

    def _sight(self, path: Path, status: os.stat_result, before: _Sighting | None) -> _Sighting:
        now, signature = time.monotonic(), _Signature(status.st_ino, status.st_size, status.st_mtime_ns)
        if before is None:  # how long it has been lying there, only the wall clock can say
            age = max(0.0, time.time() - status.st_mtime)
            return _Sighting(signature, now - age, self._read(path))
        return before if before.signature == signature else _Sighting(signature, now, self._read(path))

    def _read(self, path: Path) -> WorkerCard | None:
        if path.suffix == TEMPORARY:  # being written, or left over from a crash: then it expires
            return None
        try:
            card = card_file.read(path)
        except FileNotFoundError:
            raise
        except (UnreadableCard, OSError) as error:
            self.unreadable += 1
            self._complain(path, f"is skipped: {error}")
            return None
        self._complained.discard(path.name)
        return card

    def _reap(self, path: Path) -> None:
        try:
            path.unlink()
        except FileNotFoundError:
            raise  # another process was quicker
        except OSError as error:
            self._complain(path, f"has expired, and cannot be removed: {error}")
        else:
            self.expired += 1
            self._complained.discard(path.name)
            logger.warning("card %s has expired", path)

    def _complain(self, path: Path, text: str) -> None:
        if path.name not in self._complained:
            self._complained.add(path.name)
            logger.warning("card %s %s", path, text)

    def __repr__(self) -> str:
        return f"<CardFolder {self._path}, {len(self._sightings)} cards>"
