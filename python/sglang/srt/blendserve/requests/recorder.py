"""Writes what blocks have come to, and what they make of lines before, waiting out a full disk."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import orjson

from sglang.srt.blendserve.answering.disk_retry import (
    RETRY_SECONDS,
    is_storage_failure,
    reason_of,
)
from sglang.srt.blendserve.batch_file.line_check import CheckedLine
from sglang.srt.blendserve.batch_file.types import LineError
from sglang.srt.blendserve.requests.across_lines import AcrossLines, Verdict
from sglang.srt.blendserve.requests.columns import ERRORS_FILE, NAMES_FILE, ColumnWriter
from sglang.srt.blendserve.requests.messages import Prepared
from sglang.srt.blendserve.requests.request_store import seal

logger = logging.getLogger(__name__)


class PreparationStopped(RuntimeError):
    """`Preparation.close` was called before the end."""


class Recorder:
    """The writing side of one preparation. One thread.

    Attributes:
        lines: lines that are written.
        problem: why writing waits, None when it does not.
    """

    def __init__(self, folder: Path, across: AcrossLines, stopped: threading.Event) -> None:
        """Begin a new store in ``folder``.

        Args:
            across: what the lines together show.
            stopped: set when it is to end, also while it waits.

        Raises:
            OSError: it cannot be begun.
        """
        self.lines = 0
        self.problem: str | None = None
        self._folder, self._across, self._stopped = folder, across, stopped
        self._writer = ColumnWriter(folder)
        self._named = {"namespace": {"": 0}, "model": {"": 0}}

    def write(self, rows: Prepared) -> None:
        """Write the rows of a block, and let readers see them.

        Raises:
            PreparationStopped: it was to end while the disk took no data.
        """
        writer = self._writer
        verdict = self._across.take(rows, writer.read)
        names = [("namespace", name) for name in rows.namespaces]
        numbers = np.array(self._number(names), dtype=np.int32)
        rows.columns["namespace"][:] = numbers[rows.columns["namespace"]]
        self._number([("model", name) for name in self._across.models])
        self._note(verdict, [LineError.model_validate(error) for error in rows.errors])
        self._persist(lambda: writer.append(rows.columns, rows.tokens))
        self.lines += len(rows.lines)

    def finish(
        self, fingerprint: Mapping[str, str], reread: Callable[[int, int, int], CheckedLine]
    ) -> None:
        """Judge what all lines together show, and seal the store.

        Args:
            fingerprint: what it was made of.
            reread: see `AcrossLines.settle`.
        """
        self._note(self._across.settle(self._writer.read, reread), [])
        self._persist(lambda: seal(self._folder, fingerprint, self._writer.sync()))

    def close(self) -> None:
        """Close the files. Calling it twice does nothing."""
        self._writer.close()

    def _number(self, names: list[tuple[str, str]]) -> list[int]:
        """Return the numbers of names, of which new ones are written."""
        new = b""
        found = []
        for kind, name in names:
            known = self._named[kind]
            if name not in known:
                known[name] = len(known)
                new += orjson.dumps([kind, name]) + b"\n"
            found.append(known[name])
        self._append_text(NAMES_FILE, new)
        return found

    def _note(self, verdict: Verdict, errors: list[LineError]) -> None:
        """Write errors, the last of a line counting, and flags that have changed."""
        lines = [error.model_dump_json().encode() + b"\n" for error in (*errors, *verdict.errors)]
        self._append_text(ERRORS_FILE, b"".join(lines))
        writer = self._writer
        if verdict.rows.size:
            self._persist(lambda: writer.set_flags(verdict.rows, verdict.flags))

    def _append_text(self, name: str, lines: bytes) -> None:
        writer = self._writer
        if lines:
            self._persist(lambda: writer.append_text(name, lines))

    def _persist(self, write: Callable[[], object]) -> None:
        """Write; while the disk takes nothing, try every few seconds.

        Raises:
            PreparationStopped: `close` was called meanwhile.
        """
        while True:
            try:
                write()
            except OSError as error:
                if not is_storage_failure(error):
                    raise
                if self.problem is None:
                    logger.error("%s takes no data, waiting: %s", self._folder, error)
                self.problem = reason_of(error)
            else:
                self.problem = None
                return
            if self._stopped.wait(RETRY_SECONDS):
                raise PreparationStopped("The requests are not all prepared.")
