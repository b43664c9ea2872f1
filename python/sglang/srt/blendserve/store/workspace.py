"""The folder ``batches/<id>`` of one open batch."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from sglang.srt.blendserve.store.disk import (
    open_private,
    private_folder,
    sync_directory,
    write_whole,
)
from sglang.srt.blendserve.store.engine_record import EngineRecord
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

    def input_bytes(self) -> int:
        """Return the size of the input in bytes, 0 where it is gone."""
        try:
            return self.input.stat().st_size
        except OSError:
            return 0

    @property
    def journal(self) -> Path:
        """The batch's results so far; see `journal.ResultJournal`."""
        return self.folder / "results.journal"

    @property
    def engine_record(self) -> Path:
        """Which lines are in the engine; see `engine_record.EngineRecord`."""
        return self.folder / "engine.record"

    @property
    def requests(self) -> Path:
        """The batch's request store, where it is planned as a whole; made again if it is lost."""
        return self.folder / "requests"

    @property
    def about(self) -> Path:
        """The batch as it was created, JSON: what the database would know if it were lost."""
        return self.folder / "batch.json"

    @property
    def digest(self) -> Path:
        """Digest of the input as it was validated; not there before."""
        return self.folder / "input.digest"

    def create(self, content: Path, about: str) -> None:
        """Make the folder, with ``content`` as its input and ``about`` as what the batch is.

        Raises:
            OSError: the content is not there, or the disk is full; no folder is left.
        """
        self.folder.mkdir(mode=0o700)
        try:
            try:
                os.link(content, self.input)
            except PermissionError:  # a file system without hard links
                fd = open_private(self.input, os.O_WRONLY | os.O_TRUNC)
                with open(content, "rb") as source, open(fd, "wb") as copied:
                    shutil.copyfileobj(source, copied)
                    copied.flush()
                    os.fsync(copied.fileno())
            write_whole(self.about, about.encode())
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
        private_folder(self.folder)  # if someone removed it, the input is missing
        return ResultJournal(self.journal)

    def open_engine_record(self) -> EngineRecord:
        """Return the record of lines in the engine.

        Raises:
            OSError: it cannot be read or written.
        """
        private_folder(self.folder)
        return EngineRecord(self.engine_record)

    def is_bare(self) -> bool:
        """Whether nothing would be lost with the folder: it has no results, and its input has
        another name.

        Raises:
            OSError: it cannot be read.
        """
        if self.journal.exists() and self.journal.stat().st_size:
            return False
        return not self.input.exists() or self.input.stat().st_nlink > 1

    def remove(self) -> None:
        """Remove the folder, if it is there."""
        shutil.rmtree(self.folder, ignore_errors=True)
