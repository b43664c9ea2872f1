"""The output file and the error file of a run are its log: what they hold is done.

A result is one line, appended when it is there, and on the disk for good after the next `sync`.
A run that ended in any way can go on: a last line that was cut short is removed, and every input
line that has a result is left out. Beside the output stands a small file, ``<output>.run.json``,
with a digest of the input: comparing names (``custom_id``) alone would not notice that the text
behind a name has changed, and a file of lines without usable names could not be compared at all.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from sglang.srt.blendserve.batch_file.same_file import sidecar_of
from sglang.srt.blendserve.batch_file.types import BatchLine, LineError
from sglang.srt.blendserve.batch_file.whole_file import write_whole
from sglang.srt.blendserve.run.failure import RunFailure
from sglang.srt.blendserve.run.result_file import ResultFile
from sglang.srt.blendserve.store.line_result import LineResult

_FORMAT = 1


@dataclass(frozen=True, slots=True)
class Identity:
    """What a run is about, kept beside its output.

    Attributes:
        job: the job's name; result ids come from it.
        input_digest: of the input's bytes after decompression, see `BatchSource`.
        model: the model path the run was started with.
    """

    job: str
    input_digest: str
    model: str
    format: int = _FORMAT


class RunLog:
    """The two result files of one run. Use as a context manager.

    It is opened before the input is read through, so that `find` tells, as lines are read, which
    of them an earlier run has answered: result files name lines, not their numbers. `begin` comes
    afterwards, with the digest of what was read; before it no file is changed.

    Attributes:
        identity: what the run is about, after `begin`; of the earlier run where this resumes it.
        earlier_model: the model path of the run that is resumed, None if none is.
        completed, failed: lines in the output and in the error file.
        engine_record: where the run notes which lines are in the engine (`EngineRecord`).
    """

    identity: Identity

    def __init__(
        self,
        output: Path,
        errors: Path,
        *,
        resume: bool = False,
        overwrite: bool = False,
        retry_errors: bool = False,
    ) -> None:
        """Open the files, and with ``resume`` read what they hold.

        Args:
            output, errors: the two files.
            resume: go on with the run that wrote them.
            overwrite: discard what they hold.
            retry_errors: discard what ``errors`` holds; its lines have no result then.

        Raises:
            RunFailure: there are results already and neither ``resume`` nor ``overwrite`` is
                set; a file is in use, cannot be written or holds something else.
        """
        self.earlier_model: str | None = None
        self.completed = self.failed = 0
        self._begun = self._dirty = False
        self._syncing = threading.Lock()
        self._resume, self._retry_errors = resume, retry_errors
        self._earlier: Identity | None = None
        self._earlier_names: set[str] = set()
        self._earlier_lines: set[int] = set()
        self._done = bytearray()  # a line's number -> whether it has a result
        self._sidecar = sidecar_of(output)
        self.engine_record = output.with_name(output.name + ".engine")
        self._output = ResultFile(output)
        try:
            self._errors = ResultFile(errors)
        except BaseException:
            self._output.close(discard=True)
            raise
        self._files = (self._output, self._errors)
        self._whole = [0, 0]
        try:
            if not overwrite and any(file.size for file in self._files):
                self._read_earlier(resume, retry_errors)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> RunLog:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def done(self) -> int:
        """Input lines that have their result."""
        return self.completed + self.failed

    def find(self, line: BatchLine | LineError) -> bool:
        """Return whether an earlier run has answered a line, and know it by its number from now on.

        To be called for every line of the input once, before `begin`.
        """
        assert line.line is not None
        # A refused line goes by its number: it may repeat a custom_id, or have none.
        if isinstance(line, LineError):
            found = line.line in self._earlier_lines
        else:
            found = line.custom_id in self._earlier_names
        if found:
            self._mark(line.line)
        return found

    def begin(self, identity: Identity) -> None:
        """Take over the results of the earlier run, or drop them, and note what this run is about.

        Raises:
            RunFailure: the earlier run was one of another input.
        """
        earlier = self._earlier
        if earlier is not None:
            if earlier.input_digest != identity.input_digest:
                raise RunFailure(
                    f"{self._output.path} was written for another input: the input file has "
                    "changed since. Restore it, or use --overwrite to start again."
                )
            self.earlier_model = earlier.model
            identity = Identity(earlier.job, earlier.input_digest, identity.model)
        if not self._goes_on(identity):
            self.engine_record.unlink(missing_ok=True)
        self.identity = identity
        self._earlier_names.clear()
        self._earlier_lines.clear()
        for file, size in zip(self._files, self._whole, strict=True):
            if file.size > size:
                file.cut(size)
        self._write_sidecar()
        self._begun = True

    def _goes_on(self, identity: Identity) -> bool:
        """Whether what is on record of lines in the engine holds for this run: it resumes one of
        the same input, though that may have no result yet, and does not try failed lines again."""
        if not self._resume or self._retry_errors:
            return False
        try:
            return self._read_sidecar().input_digest == identity.input_digest
        except RunFailure:
            return False

    def __contains__(self, line: int) -> bool:
        return line < len(self._done) and self._done[line] == 1

    def append(self, results: Sequence[LineResult]) -> None:
        """Write results; they outlive this process from now on, the machine after `sync`.

        Raises:
            RunFailure: the disk takes no more.
        """
        for result in results:
            file = self._output if result.succeeded else self._errors
            file.append(result.data)
            self._dirty = True
            self._mark(result.line)
            self.completed += result.tally.completed
            self.failed += result.tally.failed

    def sync(self) -> None:
        """Have the disk keep all that was appended (takes milliseconds; safe in a thread).

        Raises:
            RunFailure: it cannot.
        """
        with self._syncing:
            if not self._dirty:
                return
            self._dirty = False
            try:
                self._output.sync()
                self._errors.sync()
            except BaseException:
                self._dirty = True  # whoever asks next must hear of it, too
                raise

    def close(self) -> None:
        """Sync and close the files; without `begin` leave no new ones behind."""
        try:
            self.sync()
        finally:
            for file in self._files:
                file.close(discard=not self._begun)

    def _mark(self, line: int) -> None:
        self._done.extend(bytes(max(0, line + 1 - len(self._done))))
        self._done[line] = 1

    def _read_earlier(self, resume: bool, retry_errors: bool) -> None:
        """Read the results of an earlier run."""
        if not resume:
            raise RunFailure(
                f"{next(file.path for file in self._files if file.size)} has results already. "
                "--resume goes on with that run, --retry-errors answers its failed lines again as "
                "well, --overwrite starts again."
            )
        self._earlier = self._read_sidecar()
        for index, file in enumerate(self._files):
            results, self._whole[index] = file.read()
            if retry_errors and file is self._errors:
                self._whole[index] = 0
                continue
            for custom_id, line in results:
                if line is not None:
                    self._earlier_lines.add(line)
                if custom_id is not None:
                    self._earlier_names.add(custom_id)
            if file is self._output:
                self.completed = len(results)
            else:
                self.failed = len(results)

    def _read_sidecar(self) -> Identity:
        try:
            found = json.loads(self._sidecar.read_text())
            if found.get("format") != _FORMAT:
                raise ValueError(f"its format is {found.get('format')}, not {_FORMAT}")
            return Identity(found["job"], found["input_digest"], found["model"])
        except FileNotFoundError:
            reason = "is missing"
        except (OSError, ValueError, KeyError, AttributeError) as error:
            reason = f"cannot be used ({error})"
        raise RunFailure(
            f"{self._sidecar} {reason}, so nobody knows which input {self._output.path} is for. "
            "Use --overwrite to start again."
        )

    def _write_sidecar(self) -> None:
        try:
            write_whole(self._sidecar, json.dumps(asdict(self.identity)).encode())
        except OSError as error:
            raise RunFailure(f"Cannot write {self._sidecar}: {error.strerror}.") from error
