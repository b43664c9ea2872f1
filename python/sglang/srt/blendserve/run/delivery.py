"""Where the answers of a run go, and what becomes of its result files on the way there.

A run appends JSON lines to two files on this machine, which outlive any crash and which
``--resume`` goes on with. They are all there is to it (`Delivery`), or a table is made of them
at the end (`TableDelivery`), or parts of one as they come (`parts.PartsDelivery`). An output that
is not on this machine is made in a working folder here, and put there when it is whole.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sglang.srt.blendserve.batch_file.same_file import sidecar_of
from sglang.srt.blendserve.run import table_output
from sglang.srt.blendserve.run.failure import RunFailure
from sglang.srt.blendserve.tables import remote
from sglang.srt.blendserve.tables.data_error import DataError

if TYPE_CHECKING:
    from sglang.srt.blendserve.run.run_log import RunLog

_OWNER = "destination"
"""File of a working folder that says which output it is for."""


@dataclass(frozen=True)
class Delivery:
    """JSON lines, in the result files themselves.

    Attributes:
        output, errors: the result files.
        url: where they are put at the end, None if they stay where they are.
        work: the working folder, where there is a ``url``.
    """

    output: Path
    errors: Path
    url: str | None = None
    work: Path | None = None

    @property
    def name(self) -> str:
        """What messages call the output."""
        return str(self.output) if self.url is None else remote.shown(self.url)

    def prepare(self, *, again: bool, overwrite: bool) -> None:
        """Check that no output of a finished run is lost and that one can be written, and make the
        working folder.

        Args:
            again: an earlier run is to go on.
            overwrite: what is there is to be replaced.

        Raises:
            RunFailure: the output is there, or cannot be made.
        """
        if self.url is None:
            return
        try:
            self._check_remote(self.url, again=again, overwrite=overwrite)
            self._make_work(self.url)
        except (DataError, OSError) as error:
            raise RunFailure(str(error)) from error

    @contextmanager
    def running(self, log: RunLog, *, overwrite: bool = False) -> Iterator[None]:
        """Do what is to be done while lines are answered, after `RunLog.begin`.

        Args:
            log: the run's, which has the result files for itself.
            overwrite: what is there of an earlier run goes now.
        """
        yield

    def finish(self, *, failed: int) -> None:
        """Deliver what a run has written that has ended.

        Args:
            failed: lines without an answer. With some the result files stay, for
                ``--retry-errors``.

        Raises:
            RunFailure: it cannot be delivered; the result files are there.
        """
        if self.url is None:
            return
        beside = self._beside(self.url)
        with self._or_say_what_is_kept():
            remote.put(self.output, self.url)
            if failed:
                remote.put(self.errors, beside)
            elif remote.exists(beside):  # of a run before this one
                remote.remove(beside)
        self._end(failed)

    def _beside(self, url: str) -> str:
        """Where the error file is put, by a ``url`` of the output file."""
        return url.removesuffix(self.output.name) + self.errors.name

    def _check_remote(self, url: str, *, again: bool, overwrite: bool) -> None:
        remote.check(url)
        for path in [] if again or overwrite else self._targets(url):
            if remote.exists(path):
                raise RunFailure(f"{remote.shown(path)} is there already. --overwrite replaces it.")
        if again and not sidecar_of(self.output).exists():
            raise RunFailure(
                f"{self.work} holds no results to go on with. Run where the earlier run was, or "
                "name its folder by --work-dir."
            )

    def _targets(self, url: str) -> list[str]:
        return [url, self._beside(url)]

    def _make_work(self, url: str) -> None:
        assert self.work is not None
        self.work.mkdir(parents=True, exist_ok=True)
        owner = self.work / _OWNER
        if not owner.exists() and any(self.work.iterdir()):
            raise RunFailure(  # it is removed in the end, with all that is in it
                f"{self.work} is not empty, and no working folder of a run. Name another one by "
                "--work-dir."
            )
        if owner.exists() and owner.read_text().strip() != remote.shown(url):
            raise RunFailure(
                f"{self.work} holds the results of a run for {owner.read_text().strip()}. Name "
                "another folder by --work-dir, or remove it."
            )
        owner.write_text(remote.shown(url) + "\n")

    @contextmanager
    def _or_say_what_is_kept(self) -> Iterator[None]:
        try:
            yield
        except (DataError, OSError) as error:
            raise RunFailure(
                f"{error}\nThe answers are in {self.output}; the same command with --resume (and "
                "without --overwrite) delivers them."
            ) from error

    def _end(self, failed: int) -> None:
        """Say that all is there, and remove the working folder if nothing can be retried."""
        print(f"{self.name} is written.")
        if failed:
            print(f"{self.work} stays, for --retry-errors.")
        elif self.work is not None:
            sidecar_of(self.output).unlink(missing_ok=True)  # first: without it, all is delivered
            shutil.rmtree(self.work)


@dataclass(frozen=True)
class TableDelivery(Delivery):
    """One table, made at the end.

    Attributes:
        table: the Parquet file on this machine.
    """

    table: Path = Path()

    @property
    def name(self) -> str:
        """What messages call the output."""
        return str(self.table) if self.url is None else remote.shown(self.url)

    def prepare(self, *, again: bool, overwrite: bool) -> None:
        """Check as `Delivery.prepare` does, and that a table can be written."""
        table_output.check(self.table, overwrite=overwrite)
        super().prepare(again=again, overwrite=overwrite)

    def _targets(self, url: str) -> list[str]:
        return [url]

    def finish(self, *, failed: int) -> None:
        """Make the table, and deliver it as `Delivery.finish` does.

        Raises:
            RunFailure: it cannot be made or delivered; the result files are there.
        """
        if self.url is None:
            table_output.write(self.table, failed=failed)
            return
        table_output.write(self.table, failed=1)  # what it is made of is needed until it is there
        with self._or_say_what_is_kept():
            remote.put(self.table, self.url)
        self._end(failed)
