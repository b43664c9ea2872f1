"""The output file and the error file of a run are its journal: what they hold is done.

A result is one line, appended when it is there, and on the disk for good after the next `sync`.
A run that ended in any way can go on: a last line that was cut short is removed, and every input
line that has a result is left out. Beside the output stands a small file, ``<output>.run.json``,
with a digest of the input: comparing names (``custom_id``) alone would not notice that the text
behind a name has changed, and a file of lines without usable names could not be compared at all.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from sglang.srt.blendserve.batch_file.results import OutputLine
from sglang.srt.blendserve.batch_file.types import BatchLine, LineError
from sglang.srt.blendserve.run.failure import RunFailure
from sglang.srt.blendserve.run.result_file import ResultFile, StoredResult

_FORMAT = 1


@dataclass(frozen=True, slots=True)
class Identity:
    """What a run is about, kept beside its output.

    Attributes:
        job: the job's name; result ids come from it.
        input_digest: of the input, see `Scan`.
        model: the model path the run was started with.
    """

    job: str
    input_digest: str
    model: str
    format: int = _FORMAT


class RunJournal:
    """The two result files of one run. Use as a context manager.

    Attributes:
        identity: what the run is about; of the earlier run where this one resumes it.
        earlier_model: the model path of the run that is resumed, None if none is.
        completed, failed: lines in the output and in the error file.
    """

    def __init__(
        self,
        output: Path,
        errors: Path,
        identity: Identity,
        *,
        resume: bool = False,
        overwrite: bool = False,
    ) -> None:
        """Open the files, and with ``resume`` read what they hold.

        Raises:
            RunFailure: there are results already and neither ``resume`` nor ``overwrite`` is
                set; they are of another input; a file is in use or cannot be written.
        """
        self.identity = identity
        self.earlier_model: str | None = None
        self.completed = self.failed = 0
        self._names: set[str] = set()
        self._lines: set[int] = set()
        self._dirty = False
        self._sidecar = output.with_name(output.name + ".run.json")
        self._output = ResultFile(output)
        try:
            self._errors = ResultFile(errors)
        except BaseException:
            self._output.close()
            raise
        try:
            self._open(resume, overwrite)
        except BaseException:
            self.close()
            raise

    def _open(self, resume: bool, overwrite: bool) -> None:
        files = (self._output, self._errors)
        if overwrite:
            for file in files:
                file.cut(0)
        elif any(file.size for file in files):
            if not resume:
                raise RunFailure(
                    f"{next(file.path for file in files if file.size)} has results already. "
                    "--resume goes on with that run, --overwrite starts again."
                )
            self._adopt()
        self._write_sidecar()

    def __enter__(self) -> RunJournal:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def done(self) -> int:
        """Input lines that have their result."""
        return self.completed + self.failed

    def __contains__(self, line: BatchLine | LineError) -> bool:
        # A refused line goes by its number: it may repeat a custom_id, or have none.
        if isinstance(line, LineError):
            return line.line in self._lines
        return line.custom_id in self._names

    def append(self, result: OutputLine) -> None:
        """Write one result; it outlives this process from now on, the machine after `sync`.

        Raises:
            RunFailure: the disk takes no more.
        """
        file = self._output if result.succeeded else self._errors
        file.append(result.to_json())
        self._dirty = True
        self._count(result.succeeded)

    def sync(self) -> None:
        """Have the disk keep all that was appended (takes milliseconds; safe in a thread)."""
        if self._dirty:
            self._dirty = False
            self._output.sync()
            self._errors.sync()

    def close(self) -> None:
        """Sync and close the files."""
        try:
            self.sync()
        finally:
            self._output.close()
            self._errors.close()

    def _count(self, succeeded: bool) -> None:
        if succeeded:
            self.completed += 1
        else:
            self.failed += 1

    def _adopt(self) -> None:
        """Take over the results of an earlier run."""
        earlier = self._read_sidecar()
        if earlier.input_digest != self.identity.input_digest:
            raise RunFailure(
                f"{self._output.path} was written for another input: the input file has changed "
                "since. Restore it, or use --overwrite to start again."
            )
        self.earlier_model = earlier.model
        self.identity = Identity(earlier.job, earlier.input_digest, self.identity.model)
        for file in (self._output, self._errors):
            for result in file.recover():
                self._remember(result, succeeded=file is self._output)

    def _remember(self, result: StoredResult, *, succeeded: bool) -> None:
        self._count(succeeded)
        if result.line is not None:
            self._lines.add(result.line)
        if result.custom_id is not None:
            self._names.add(result.custom_id)

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
        temporary = self._sidecar.with_name(self._sidecar.name + ".tmp")
        try:
            with open(temporary, "w") as file:
                json.dump(asdict(self.identity), file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, self._sidecar)
            folder = os.open(self._sidecar.parent, os.O_RDONLY)
            try:
                os.fsync(folder)  # the names of all three files
            finally:
                os.close(folder)
        except OSError as error:
            raise RunFailure(f"Cannot write {self._sidecar}: {error.strerror}.") from error
