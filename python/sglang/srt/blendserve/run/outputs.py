"""What ``--output`` may be: JSON lines, a table, a folder of parts, here or elsewhere."""

from __future__ import annotations

from pathlib import Path

from sglang.srt.blendserve.run import table_output
from sglang.srt.blendserve.run.delivery import Delivery, TableDelivery
from sglang.srt.blendserve.run.parts import PartsDelivery
from sglang.srt.blendserve.run.place import Folder
from sglang.srt.blendserve.tables import remote

_RESULTS = "_results.jsonl"
"""Result files in a folder of parts."""


def delivery_of(
    output: str, errors: Path | None, work_dir: Path | None, part_rows: int, *, retry: bool
) -> Delivery:
    """Return what makes ``output``.

    Args:
        output: as given: a folder if it ends in a slash or is one on this machine, a table if it
            ends in ``.parquet``, else a file of JSON lines.
        errors: the error file, None: beside the output.
        work_dir: where the result files are kept of an output that is not on this machine, None:
            ``NAME.run`` in the working directory.
        part_rows: rows of a part.
        retry: failed lines are answered again.

    Raises:
        ValueError: it cannot be written, or flags do not go together.
    """
    is_remote = remote.is_remote(output)
    if is_remote:
        remote.check(output)
        if output.lower().startswith(("http://", "https://")):
            raise ValueError(f"{remote.shown(output)}: nothing can be written to the web")
    elif work_dir is not None:
        raise ValueError("--work-dir is for an output that is not on this machine")
    name = remote.name_of(output) if is_remote else Path(output).name
    if is_remote and "/" not in output.partition("://")[2].rstrip("/") and not output.endswith("/"):
        raise ValueError(f"{output} is a bucket: give a name in it, or end it in a slash for parts")
    is_folder = output.endswith("/") or (not is_remote and Path(output).is_dir())
    is_table = not is_folder and output.endswith(".parquet")
    if errors is not None and (is_folder or is_table):
        raise ValueError("--errors does not go with a table, which holds the refused lines as well")
    if errors is not None and is_remote:
        raise ValueError("--errors: the error file goes beside an output that is not here")
    if output.endswith(".gz"):
        raise ValueError("--output is appended to, not compressed; give a name without .gz")
    url, work = None, None
    if is_remote:
        url, work = output, work_dir or Path(f"{name}.run")
    if is_folder:
        log = (work or Path(output)) / _RESULTS
        place = Folder(output)
        return PartsDelivery(
            log, _errors_of(log), url, work, place=place, part_rows=part_rows, retry=retry
        )
    local = Path(output) if work is None else work / name
    if is_table:
        return TableDelivery(*table_output.log_files(local), url, work, table=local)
    return Delivery(local, errors or _errors_of(local), url, work)


def _errors_of(output: Path) -> Path:
    return output.with_name(f"{output.stem}.errors{output.suffix}")
