"""What an open batch needs on the disk: its input and the journal of its results."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from sglang.srt.blendserve.store.content import sync_directory
from sglang.srt.blendserve.store.journal import ResultJournal


class Workspace:
    """The folder ``batches/<id>`` of one open batch.

    The input is a hard link to the uploaded file's content: deleting the file, through the API
    or when it expires, leaves the batch what it needs.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def input(self) -> Path:
        """The batch's input lines."""
        return self.folder / "input.jsonl"

    @property
    def journal(self) -> Path:
        """The batch's results so far; see `journal.ResultJournal`."""
        return self.folder / "results.journal"

    def create(self, content: Path) -> None:
        """Make the folder, with ``content`` as its input.

        Raises:
            OSError: the content is not there, or the disk is full; no folder is left.
        """
        self.folder.mkdir(mode=0o700)
        try:
            try:
                os.link(content, self.input)
            except PermissionError:  # a file system without hard links
                shutil.copyfile(content, self.input)
                with open(self.input, "rb+") as copied:
                    os.fsync(copied.fileno())
            sync_directory(self.folder)
            sync_directory(self.folder.parent)
        except BaseException:
            self.remove()
            raise

    def open_journal(self) -> ResultJournal:
        """Return the journal of results.

        Raises:
            OSError: it cannot be read or written.
        """
        self.folder.mkdir(mode=0o700, exist_ok=True)  # if someone removed it, the input is missing
        return ResultJournal(self.journal)

    def remove(self) -> None:
        """Remove the folder, if it is there."""
        shutil.rmtree(self.folder, ignore_errors=True)
