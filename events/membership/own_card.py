"""A card that this process keeps alive in a folder."""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING

from events.membership import card_file
from events.membership.card_codec import UnreadableCard
from events.membership.kept import Superseded

if TYPE_CHECKING:
    from pathlib import Path

    from events.membership import WorkerCard

logger = logging.getLogger(__name__)


class OwnCard:
    """A worker's card in its file. Files are touched by system calls that may wait for a disk: call it from a thread.

    Every method raises OSError if the folder cannot be written.
    """

    def __init__(self, folder: Path, card: WorkerCard) -> None:
        self.card = card
        self._folder = folder
        self._path = folder / card_file.file_name(card.worker_id)
        self._inode = -1

    def write(self) -> None:
        """Put the card in its place; the folder is made if it is missing."""
        self._folder.mkdir(parents=True, exist_ok=True)
        self._inode = card_file.write(self._path, self.card)

    def touch(self) -> bool:
        """Keep the card alive. False: it was gone, and is written anew.

        :raises Superseded: the place is taken.
        """
        try:
            if self._path.stat().st_ino == self._inode:
                os.utime(self._path)
            else:
                self._contend()
        except FileNotFoundError:
            logger.warning("the card of %s had expired; it is there again", self.card.worker_id)
            self.write()
            return False
        return True

    def withdraw(self) -> None:
        """Take the card away, if it is still ours."""
        try:
            if self._path.stat().st_ino == self._inode:
                self._path.unlink()
        except FileNotFoundError:
            logger.debug("the card of %s is already gone", self.card.worker_id)

    def _contend(self) -> None:
        """Somebody else wrote this worker's card: the later start has the place."""
        try:
            other = card_file.read(self._path)
        except UnreadableCard:
            self.write()
            return
        if other.epoch >= self.card.epoch:
            raise Superseded(
                f"worker {self.card.worker_id} was registered by another process, with epoch {other.epoch}"
            )
        self.write()

    def __repr__(self) -> str:
        return f"<OwnCard {self._path}>"
