"""``DIR/lost+found``: folders of batches that the database does not know, put aside, not deleted.

A batch gets there when the database was lost or an old copy of it was put in place.
"""

from __future__ import annotations

import logging
import os
import shlex
from pathlib import Path

from sglang.srt.blendserve.store.disk import private_folder, sync_directory
from sglang.srt.blendserve.store.objects import is_batch_id
from sglang.srt.blendserve.store.workspace import Workspace

logger = logging.getLogger(__name__)


class LostFound:
    """The folder; it is made when there is something to put into it."""

    def __init__(self, directory: Path) -> None:
        """Use ``directory``, which need not exist."""
        self._directory = directory

    def take(self, workspace: Workspace) -> None:
        """Put a batch's folder aside, and say so in the log.

        Raises:
            OSError: it cannot be moved; it stays where it is.
        """
        private_folder(self._directory)
        batch_id = workspace.folder.name
        place, tries = self._directory / batch_id, 1
        while place.exists():
            tries += 1
            place = self._directory / f"{batch_id}.{tries}"
        _move(workspace.folder, place)
        logger.warning(
            "The database does not know the batch %s: put aside in %s, with its results. To bring "
            "it back, stop the server and run: sglang-blendserve recover --batch-dir %s %s",
            batch_id, place, shlex.quote(str(self._directory.parent)), batch_id,
        )  # fmt: skip

    def batches(self) -> list[Workspace]:
        """Return the folders that can be brought back, in the order of their ids."""
        if not self._directory.exists():
            return []
        folders = sorted(self._directory.iterdir())
        return [Workspace(folder) for folder in folders if is_batch_id(folder.name)]

    def give_back(self, batch_id: str, place: Path) -> None:
        """Move a batch's folder to ``place``.

        Raises:
            FileNotFoundError: it is not here.
            OSError: there is something in that place already.
        """
        _move(self._directory / batch_id, place)


def _move(source: Path, target: Path) -> None:
    os.rename(source, target)
    sync_directory(target.parent)
    sync_directory(source.parent)
